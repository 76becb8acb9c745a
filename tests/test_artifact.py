"""Files are written whole, digests see content alone, and a stage counts as done only with its record."""

import hashlib
import os
from pathlib import Path

import pytest

from synthvision import artifact
from synthvision.artifact import PART, STAGE_FILE, WORK, StageRecord, digest_of, finish, finished, tree_digest

RECORD = StageRecord("prepare", "0" * 16, {"size": 64}, {"sources": "1"}, "2" * 64, "", "0.1.0", seconds=1.5)


def test_file_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "file").write_bytes(data)
    assert artifact.sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1, "b": [1, 2]}) != digest_of({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize("durable", [True, False])
def test_write_replaces_and_leaves_nothing_else(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "new" / "file.txt"
    artifact.write_bytes(file, b"old", durable)
    artifact.write_bytes(file, b"new", durable)
    assert file.read_bytes() == b"new"
    assert list(file.parent.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o644


def test_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        artifact.write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_fingerprint_changes_with_stage_config_and_inputs() -> None:
    prints = {
        artifact.fingerprint("a", {"x": 1}, {"m": "1"}),
        artifact.fingerprint("b", {"x": 1}, {"m": "1"}),
        artifact.fingerprint("a", {"x": 2}, {"m": "1"}),
        artifact.fingerprint("a", {"x": 1}, {"m": "2"}),
    }
    assert len(prints) == 4
    assert all(len(value) == 16 for value in prints)


def test_tree_digest_ignores_what_an_undisturbed_run_would_not_have(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    before = tree_digest(tmp_path)
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "state").write_bytes(b"s")
    (tmp_path / "images" / f".x1y2{PART}").write_bytes(b"half")
    (tmp_path / STAGE_FILE).write_text("{}")
    assert tree_digest(tmp_path) == before
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "b.png")
    assert tree_digest(tmp_path) != before


def test_stage_is_finished_only_with_its_record(tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / f".x1y2{PART}").write_bytes(b"half")
    assert finished(tmp_path) is None
    finish(tmp_path, RECORD)
    assert finished(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == [STAGE_FILE]


def test_code_digest_sees_its_rooms_alone() -> None:
    data, review = artifact.code_digest("data"), artifact.code_digest("review")
    assert data == artifact.code_digest("data")
    assert len({data, review, artifact.code_digest("data", "review"), artifact.code_digest("artifact.py")}) == 4
