"""An append-only file of what runs log, until the store has it.

One journal per process, one JSON object per line: a process killed at any moment leaves whole lines and at most a
part of one, which is not read. Files that shall become artifacts lie beside it, as hard links where the disk allows.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from synthvision import artifact

SUFFIX = ".ndjson"
Entry = Mapping[str, Any]


class Journal:
    """A journal, held by one process at a time.

    Args:
        file: `<name>.ndjson`; `<name>.sent`, `<name>.files/` and `<name>.lock` lie beside it.

    Raises:
        filelock.Timeout: another process holds it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._sent_file, self._folder = file.with_suffix(".sent"), file.with_suffix(".files")
        self._lock = FileLock(file.with_suffix(".lock"), blocking=False, thread_local=False)
        self._lock.acquire()
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._writing = threading.Lock()  # a logger, the sampler of system metrics and the stage write at once
        self.written = file.stat().st_size  # bytes
        self.sent = int(self._sent_file.read_text()) if self._sent_file.exists() else 0  # bytes

    @classmethod
    def new(cls, folder: Path) -> Journal:
        """Begin a journal; names sort by time."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}{SUFFIX}")

    def append(self, entry: Entry) -> None:
        """Write an entry to the end of the file, whole or not at all as far as a reader can tell."""
        line = json.dumps(entry, separators=(",", ":"), default=str).encode() + b"\n"
        with self._writing:
            os.write(self._descriptor, line)
            self.written += len(line)

    def keep(self, path: Path) -> str:
        """Keep a file or folder as it is now, and return the name to find it by."""
        name = f"{uuid.uuid4().hex[:8]}/{path.name}"
        target = self._folder / name
        target.parent.mkdir(parents=True)
        if path.is_dir():
            shutil.copytree(path, target, copy_function=_link)
        else:
            _link(path, target)
        return name

    def make(self, name: str) -> tuple[str, Path]:
        """Return the name and the path of a file or folder that the caller fills."""
        key = f"{uuid.uuid4().hex[:8]}/{name}"
        (self._folder / key).parent.mkdir(parents=True)
        return key, self._folder / key

    def kept(self, name: str) -> Path:
        """Return where a kept file lies."""
        return self._folder / name

    def drop(self, name: str) -> None:
        """Remove a kept file that has arrived."""
        shutil.rmtree((self._folder / name).parent, ignore_errors=True)

    def waiting(self) -> Iterator[tuple[Entry, int]]:
        """Yield each entry that was not sent, and the number of bytes up to its end."""
        position = self.sent
        with self.file.open("rb") as lines:
            lines.seek(position)
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # being written, or cut short by a kill
                position += len(line)
                yield json.loads(line), position

    def acknowledge(self, position: int) -> None:
        """Note that all up to a position has arrived."""
        artifact.write_bytes(self._sent_file, str(position).encode(), durable=False)
        self.sent = position

    def close(self) -> None:
        """Let another process have it; remove it where nothing waits."""
        os.close(self._descriptor)
        if next(self.waiting(), None) is None:
            self.file.unlink()
            self._sent_file.unlink(missing_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def left_behind(folder: Path) -> Iterator[Journal]:
    """Yield the journals that no living process holds, oldest first; whoever takes one closes it."""
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        with suppress(Timeout):
            journal = Journal(file)
            yield journal


def _link(source: str | Path, target: str | Path) -> None:
    """Link a file: what is written anew under its name later is another file, so the content stays."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
