"""What a stage leaves behind: files written atomically, digests, and the `stage.json` that is written last.

A stage is a function of its config and of its inputs' digests. The hash of both is its fingerprint; its output
folder is named by it. A folder without a matching `stage.json` is unfinished and is never read by another stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

STAGE_FILE = "stage.json"
WORK = "work"  # resumable state of an unfinished stage; removed when the stage finishes
PART = ".part"  # ends the name of a file that is being written; a killed run leaves such files behind
BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal characters."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-serialisable value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write a file so that a reader, or a run after a crash, sees the old content or the new, never a part.

    `durable` waits for the disk (some 3 ms), so that this holds after a power cut too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        Path(name).chmod(0o644)  # mkstemp's 0600 would hide results from a team's shared group
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


@dataclass(frozen=True)
class StageRecord:
    """The content of `stage.json`: what was done, from what, with what result."""

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]  # name of the input -> digest
    output: str  # digest of every file the stage wrote
    run_id: str  # MLflow run that made it; empty if it was not tracked
    version: str  # of synthvision
    seconds: float  # that the work took; after an interruption, of the last attempt


def fingerprint(stage: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the 16 hexadecimal characters that name a stage's output folder."""
    return digest_of({"stage": stage, "config": config, "inputs": inputs})[:16]


@cache
def code_digest(*rooms: str) -> str:
    """Return a digest of the source in these folders and modules of the package.

    Read once per process: whoever edits the source while a sweep runs changes the next sweep, not this one.
    """
    package = Path(__file__).parent
    files = (path.relative_to(package) for path in sorted(package.rglob("*")) if path.suffix in (".py", ".j2"))
    return digest_of({path.as_posix(): sha256_file(package / path) for path in files if path.parts[0] in rooms})


def tree_digest(folder: Path) -> str:
    """Return a digest over the relative names and contents of the files that the stage wrote.

    `stage.json`, the work folder and the remains of interrupted writes do not count.
    """
    return digest_of({name: sha256_file(path) for name, path in _files(folder)})


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] not in (STAGE_FILE, WORK) and not _is_part(path):
            yield relative.as_posix(), path


def _is_part(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == PART


def finished(folder: Path) -> StageRecord | None:
    """Return the record of a finished stage, or None where the stage never ran or was interrupted."""
    try:
        return StageRecord(**json.loads((folder / STAGE_FILE).read_text()))
    except FileNotFoundError:
        return None


def finish(folder: Path, record: StageRecord) -> None:
    """Write `stage.json`: from now on the stage counts as done. Then drop the work folder and interrupted writes.

    In this order, because a work folder of gigabytes takes long to drop, and without `stage.json` all would be redone.
    """
    write_json(folder / STAGE_FILE, asdict(record))
    shutil.rmtree(folder / WORK, ignore_errors=True)
    for path in [path for path in folder.rglob(f".*{PART}") if path.is_file()]:
        path.unlink()
