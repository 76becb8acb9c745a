"""What lies on the disk and no run refers to. Nothing is removed but by `remove`, which says what and how much."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from synthvision import artifact
from synthvision.tracking.config import KEY_TAG, OFFLINE, TrackingConfig
from synthvision.tracking.query import runs_of

FINGERPRINT_LENGTH = 16  # of the name of a stage's folder


@dataclass(frozen=True)
class Rubbish:
    """A file or folder that may go."""

    path: Path
    why: str
    size: int  # bytes
    lock: Path | None = None  # held by whoever works on it


def find(config: TrackingConfig, study: str, root: Path) -> list[Rubbish]:
    """Return what no run of the store refers to: a study's stage folders, remains of stages, the store's artifacts.

    A stage folder stays if its run is there, if a stage that stays was made from it, or if it is unfinished and may be
    resumed by a run that is there. What people made (decisions, splits, the ledger) is no stage's and is not looked at.

    Raises:
        ValueError: the store knows no run of these folders, so it is not the one that they belong to.
    """
    runs = runs_of(config, study)
    known = {run.run_id for run in runs} | {run.tags.get(KEY_TAG, "") for run in runs}
    resumable = {run.tags.get("fingerprint", "") for run in runs}
    finished, unfinished = _stage_folders(root / study)
    kept = {folder for folder, record in finished.items() if _is_known(record, known)}
    if finished and not kept:
        raise ValueError(
            f"{config.place} has no run of any of the {len(finished)} stage folders in {root / study}; they belong to "
            "another store. Set tracking.root=FOLDER or tracking=server to theirs"
        )
    kept = _with_inputs(kept, finished)
    found = [_of_stage(folder, "its run is deleted", folder) for folder in finished if folder not in kept]
    found += [
        _of_stage(folder, "unfinished, and its run is deleted", folder)
        for folder in unfinished
        if folder.name not in resumable and any(folder.iterdir())
    ]
    found += [_remains(path, folder) for folder in sorted(kept) for path in _left_in(folder)]
    return [*found, *(_artifacts(config) if config.server is None else [])]


def remove(found: Sequence[Rubbish]) -> tuple[int, list[Path]]:
    """Remove what was found; return the bytes, and what a run is working on and was left."""
    freed, left = 0, []
    for each in found:
        try:
            with FileLock(each.lock, timeout=0) if each.lock else nullcontext():
                _remove(each.path)
        except Timeout:
            left.append(each.path)
            continue
        freed += each.size
    return freed, left


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    (path / artifact.STAGE_FILE).unlink(missing_ok=True)  # first: half a folder must not count as finished
    shutil.rmtree(path)


def _is_known(record: artifact.StageRecord, known: set[str]) -> bool:
    return not record.run_id or record.run_id.startswith(OFFLINE) or record.run_id in known  # offline: not sent yet


def _stage_folders(study: Path) -> tuple[dict[Path, artifact.StageRecord], list[Path]]:
    """Return finished stages' folders with their records, and unfinished ones."""
    finished, unfinished = {}, []
    for folder in sorted(study.glob(f"*/{'[0-9a-f]' * FINGERPRINT_LENGTH}")):
        record = artifact.finished(folder) if folder.is_dir() else None
        if record:
            finished[folder] = record
        elif (folder / artifact.WORK).is_dir() or folder.with_suffix(".lock").exists():
            unfinished.append(folder)
    return finished, unfinished


def _with_inputs(kept: set[Path], finished: dict[Path, artifact.StageRecord]) -> set[Path]:
    """Return these folders and all that they were made from."""
    by_output = {(record.stage, record.output): folder for folder, record in finished.items()}
    waiting, all_kept = list(kept), set(kept)
    while waiting:
        for stage, output in finished[waiting.pop()].inputs.items():
            folder = by_output.get((stage, output))
            if folder and folder not in all_kept:
                all_kept.add(folder)
                waiting.append(folder)
    return all_kept


def _left_in(folder: Path) -> Iterator[Path]:
    """Yield what a finished stage's end was killed before it could remove: checkpoints and half-written files."""
    if (folder / artifact.WORK).is_dir():
        yield folder / artifact.WORK
    yield from (path for path in folder.rglob(f".*{artifact.PART}") if artifact.WORK not in path.parts)


def _remains(path: Path, folder: Path) -> Rubbish:
    why = "checkpoints of a finished stage" if path.is_dir() else "half-written file of a finished stage"
    return _of_stage(path, why, folder)


def _of_stage(path: Path, why: str, folder: Path) -> Rubbish:
    return Rubbish(path, why, _size(path), folder.with_suffix(".lock"))


def _artifacts(config: TrackingConfig) -> Iterator[Rubbish]:
    """Yield the embedded store's folders of runs and models that are deleted or were never there."""
    with closing(sqlite3.connect(f"{config.database.as_uri()}?mode=ro", uri=True, timeout=20)) as database:
        runs = {row[0] for row in database.execute("select run_uuid from runs where lifecycle_stage = 'active'")}
        models = dict(
            database.execute("select model_id, source_run_id from logged_models where lifecycle_stage = 'active'")
        )
        registered = " ".join(
            f"{row[0]} {row[1]}" for row in database.execute("select source, storage_location from model_versions")
        )
    folder = config.folder / "artifacts"
    for path in sorted(folder.glob("*")):
        if path.is_dir() and path.name != "models" and path.name not in runs:
            yield Rubbish(path, "artifacts of a deleted run", _size(path))
    for path in sorted(folder.glob("models/*")):
        source = models.get(path.name)
        if path.name not in registered and (path.name not in models or (source and source not in runs)):
            yield Rubbish(path, "model of a deleted run", _size(path))


def _size(path: Path) -> int:
    """Return the bytes of a file or folder; files of several names count once."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in (file.stat() for file in files)}.values())
