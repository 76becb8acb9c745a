"""What ties two sides together is named, once, and what lies on one side is no leak."""

from dataclasses import replace
from pathlib import Path

import pytest

from synthvision.data.leakage import Leak, find_leaks
from synthvision.manifest import Manifest, Record


def study(*splits: str, **values: list[str]) -> Manifest:
    records = [Record(f"i{i}", f"{i}.png", f"{i:064x}", "lesion", "real", split=part) for i, part in enumerate(splits)]
    for name, column in values.items():
        records = [replace(record, **{name: value}) for record, value in zip(records, column, strict=True)]
    return Manifest(tuple(records), Path("study"))


def test_near_duplicates_on_two_sides_leak_whichever_comes_first() -> None:
    manifest = study("train", "test", "guide")
    near = {("i0", "i1"): 0.95, ("i0", "i2"): 0.91}
    assert find_leaks(manifest, near) == [
        Leak("near", "i1", "i0", ("test", "train"), 0.95),
        Leak("near", "i2", "i0", ("guide", "train"), 0.91),
    ]


def test_copies_on_one_side_or_on_none_are_no_leak() -> None:
    assert find_leaks(study("train", "train", "", ""), {("i0", "i1"): 1.0, ("i2", "i3"): 1.0, ("i0", "i2"): 1.0}) == []


def test_the_same_file_is_an_exact_leak() -> None:
    manifest = study("train", "test").with_values(lambda _: {"sha256": "f" * 64})
    assert find_leaks(manifest, {}) == [Leak("exact", "i1", "i0", ("test", "train"), 1.0)]


@pytest.mark.parametrize("column", ["patient", "lesion"])
def test_each_pair_of_sides_is_told_once(column: str) -> None:
    manifest = study("guide", "train", "train", "test", "val", **{column: ["p", "p", "p", "p", "q"]})
    leaks = find_leaks(manifest, {})
    assert {leak.kind for leak in leaks} == {column}
    assert sorted(leak.sides for leak in leaks) == [("guide", "test"), ("guide", "train"), ("test", "train")]


def test_siblings_tied_through_a_copy_on_no_side_leak() -> None:
    manifest = study("train", "", "test", siblings=["i0", "i0", "i0"])
    near = {("i0", "i1"): 0.95, ("i1", "i2"): 0.95}
    assert find_leaks(manifest, near) == [Leak("siblings", "i2", "i0", ("test", "train"), 1.0)]
    assert [leak.kind for leak in find_leaks(manifest, {**near, ("i0", "i2"): 0.92})] == ["near"]


def test_nothing_leaks_from_nothing() -> None:
    assert find_leaks(Manifest((), Path("study")), {}) == []
