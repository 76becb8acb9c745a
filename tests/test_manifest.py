"""A Record checks itself; a Manifest survives its CSV unchanged."""

from dataclasses import replace
from pathlib import Path

import pytest

from synthvision.manifest import COLUMNS, Manifest, Record, labels_of

RECORD = Record("lesion-0a1b", "prepare/x/images/lesion-0a1b.png", "0" * 64, "lesion", "real", split="train")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_id", ""),
        ("image_id", "a/b"),
        ("image_id", ".hidden"),
        ("path", ""),
        ("path", "/absolute.png"),
        ("path", "a/../../b.png"),
        ("sha256", "0" * 63),
        ("sha256", "G" * 64),
        ("label", ""),
        ("label", " lesion"),
        ("origin", "fake"),
        ("split", "validation"),
        ("decision", "maybe"),
    ],
)
def test_a_broken_rule_names_image_field_and_value(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*; it is ") as error:
        replace(RECORD, **{field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("split", ["guide", "val", "test"])
def test_synthetic_images_are_never_evaluated_on(split: str) -> None:
    with pytest.raises(ValueError, match="synthetic images only train"):
        replace(RECORD, origin="synthetic", split=split)


def test_csv_keeps_every_value(tmp_path: Path) -> None:
    awkward = replace(RECORD, image_id="b", caption='pustules, "umbilicated"\nfünf · 五', reason="a;b,c", patient="007")
    manifest = Manifest((RECORD, awkward), tmp_path)
    manifest.write(tmp_path / "manifest.csv")
    assert Manifest.read(tmp_path / "manifest.csv", tmp_path) == manifest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("manifest 2", "manifest 1", "first line"),
        ("image_id,path", "path,image_id", "columns must be"),
        (",lesion,real", ",lesion,unreal", "origin must be"),
    ],
)
def test_a_csv_of_another_schema_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "manifest.csv"
    Manifest((RECORD,), tmp_path).write(file)
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message):
        Manifest.read(file, tmp_path)


def test_image_ids_are_unique(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unique.*lesion-0a1b"):
        Manifest((RECORD, RECORD), tmp_path)


def test_digest_sees_every_column_but_not_the_root(tmp_path: Path) -> None:
    manifest = Manifest((RECORD,), tmp_path)
    assert Manifest((RECORD,), tmp_path / "elsewhere").digest() == manifest.digest()
    changed = {"sha256": "1" * 64, "origin": "synthetic", "split": "train", "decision": "accept", "image_id": "other"}
    for column in COLUMNS:
        value = changed.get(column, "other")
        if column != "split":
            assert manifest.with_values(lambda _, c=column, v=value: {c: v}).digest() != manifest.digest()


def test_where_selects_and_addition_joins(tmp_path: Path) -> None:
    other = replace(RECORD, image_id="b", label="normal", split="test")
    manifest = Manifest((RECORD,), tmp_path) + Manifest((other,), tmp_path)
    assert list(manifest.where(split="test")) == [other]
    assert list(manifest.where(lambda record: record.label == "lesion", split="train")) == [RECORD]
    assert len(manifest.where(label="lesion", split="test")) == 0
    assert manifest.file(other) == tmp_path / other.path
    assert labels_of(manifest) == ["lesion", "normal"]
