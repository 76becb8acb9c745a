"""A physician's policy names the key that breaks its rule."""

import re
from dataclasses import replace

import pytest

from synthvision.review.policy import PhysicianPolicy

POLICY = PhysicianPolicy(
    accept=4, per_set=None, reads=1, readers=[], rule="majority", rounds="alike", salt=0.1, repeats=0.1, seed=0,
    max_similarity=0.95, min_change=0.01,
)  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accept", 0), ("per_set", [150, 100]), ("per_set", [1]), ("per_set", [0, 0]), ("reads", 0), ("rule", "most"),
        ("rounds", "all"), ("readers", ["ada", "ada"]), ("salt", 1.5), ("repeats", -0.1), ("max_similarity", 0),
        ("min_change", 1),
    ],
)  # fmt: skip
def test_a_bad_value_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"review\.{key} must be .*; it is {re.escape(repr(value))}"):
        replace(POLICY, **{key: value})  # type: ignore[arg-type]


def test_double_reading_needs_two_readers() -> None:
    with pytest.raises(ValueError, match=r"at least review\.reads=2 names"):
        replace(POLICY, reads=2, readers=["ada"])
    assert replace(POLICY, reads=2, per_set=[100, 150]).readers == []
