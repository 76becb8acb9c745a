"""The cache of decoded pictures: one memory-mapped array for all runs, keyed by what the files hold.

A picture is decoded once, whatever study, arm or sweep asks for it first. Which file holds which picture is remembered
by the file's place, size and times, as version control does, so that a second run reads only what is new or changed.
The cache may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock

from synthvision.artifact import digest_of, sha256_file
from synthvision.data.decoding import Pixels

THUMB = 64  # side of the grey thumbnails that copies are looked for in
DECODERS = ("pillow", "simplejpeg", "pydicom", "numpy")
MODULES = ("cache", "decoding", "dicom", "images", "reading")
_content = json.JSONEncoder(ensure_ascii=False).encode
TABLES = """
CREATE TABLE IF NOT EXISTS files (place TEXT PRIMARY KEY, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pictures (sha256 TEXT PRIMARY KEY, row INTEGER, content TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Picture:
    """What is known of a file's picture. Its pixels and thumbnail are row `row` of the cache."""

    sha256: str  # of the file
    row: int = -1
    reason: str = ""  # why there is no usable picture; then the rest is empty
    height: int = 0
    width: int = 0
    conversions: tuple[str, ...] = ()
    facts: Mapping[str, str | float] | None = None
    patient: str = ""  # salted hash of the patient that the file itself names
    checksum: int = 0  # of the row; equal pictures have equal ones

    @property
    def usable(self) -> bool:
        """Whether there are pixels."""
        return not self.reason


@dataclass(frozen=True)
class Shelf:
    """Where rows are kept, and how wide they are; small enough to be sent to a worker."""

    folder: Path
    size: int
    salt: int

    @contextmanager
    def opened(self) -> Iterator[Rows]:
        """Open the rows for writing, from any process."""
        with ExitStack() as stack:
            handles = []
            for name in ("pixels", "thumbs"):
                handles.append(os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o644))
                stack.callback(os.close, handles[-1])
            yield Rows(self.size, self.salt, *handles)


@dataclass(frozen=True)
class Rows:
    """An open shelf."""

    size: int
    salt: int
    pixels: int  # file descriptors
    thumbs: int

    def write(self, row: int, pixels: Pixels, thumb: Pixels) -> int:
        """Write a row and return its checksum."""
        for handle, data in ((self.pixels, pixels.data), (self.thumbs, thumb.data)):
            os.pwrite(handle, data, row * data.nbytes)
        return zlib.crc32(pixels.data)


class ImageCache:
    """Decoded pictures of one size.

    Args:
        folder: of all caches; each size, salt and version of the decoders has its own below.
        size: side of the kept pictures, in pixels.
        salt: of the patients' hashes.
    """

    def __init__(self, folder: Path, size: int, salt: int) -> None:
        own = folder / f"{size}-{digest_of([salt, _decoders()])[:12]}"
        own.mkdir(parents=True, exist_ok=True)
        self.shelf = Shelf(own, size, salt)
        self.lock = FileLock(own / "lock")
        with self.lock, closing(self._open()) as database:
            database.executescript(TABLES)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.shelf.folder / "index.db", timeout=60)

    def known(self, files: Sequence[Path]) -> list[Picture | None]:
        """Return what is known of each file as it is now; None where it must be read."""
        with closing(self._open()) as database:
            return [self._known(database, file) for file in files]

    def _known(self, database: sqlite3.Connection, file: Path) -> Picture | None:
        place = place_of(file)
        found = (
            place
            and database.execute(
                "SELECT content FROM files JOIN pictures USING (sha256) WHERE place = ?", (place,)
            ).fetchone()
        )
        return _picture(found[0]) if found else None

    def next_row(self) -> int:
        """Return the first row that no picture has."""
        with closing(self._open()) as database:
            (last,) = database.execute("SELECT max(row) FROM pictures").fetchone()
        return 0 if last is None else int(last) + 1

    def keep(self, read: Iterable[tuple[str, Picture]]) -> None:
        """Enter files, as `place_of` named them before they were read, and their pictures. A row is on disk first."""
        for name in ("pixels", "thumbs"):
            if (self.shelf.folder / name).exists():
                handle = os.open(self.shelf.folder / name, os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        self._enter("REPLACE", read)

    def keep_written(self, written: Iterable[tuple[str, Picture]]) -> None:
        """Enter files that were written out of rows, and so need not be decoded. What was read of a file stays."""
        self._enter("IGNORE", written)

    def _enter(self, known: str, entries: Iterable[tuple[str, Picture]]) -> None:
        listed = list(entries)
        pictures = ((p.sha256, p.row if p.usable else None, _content(vars(p))) for _, p in listed)
        files = ((place, picture.sha256) for place, picture in listed if place)
        with closing(self._open()) as database, database:
            database.executemany(f"INSERT OR {known} INTO pictures VALUES (?, ?, ?)", pictures)
            database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?)", files)

    def of_content(self, sha256: str) -> Picture | None:
        """Return what is known of the picture in files of this content, wherever they lie."""
        with closing(self._open()) as database:
            found = database.execute("SELECT content FROM pictures WHERE sha256 = ?", (sha256,)).fetchone()
        return _picture(found[0]) if found else None

    def pixels(self) -> Pixels:
        """Return all pictures, memory-mapped: uint8 (rows, size, size, 3)."""
        return self._mapped("pixels", (self.shelf.size, self.shelf.size, 3))

    def thumbs(self) -> Pixels:
        """Return all grey thumbnails, memory-mapped: uint8 (rows, THUMB, THUMB)."""
        return self._mapped("thumbs", (THUMB, THUMB))

    def _mapped(self, name: str, shape: tuple[int, ...]) -> Pixels:
        file = self.shelf.folder / name
        rows = file.stat().st_size // int(np.prod(shape)) if file.exists() else 0
        if not rows:
            return np.empty((0, *shape), dtype=np.uint8)
        return np.memmap(file, dtype=np.uint8, mode="r", shape=(rows, *shape))

    def row(self, pixels: Pixels, picture: Picture) -> Pixels:
        """Return one picture out of `pixels()`, uint8 (size, size, 3).

        Raises:
            ValueError: the disk does not hold what was written.
        """
        image = np.array(pixels[picture.row])
        if zlib.crc32(image.tobytes()) != picture.checksum:
            raise ValueError(f"the cache {self.shelf.folder} is damaged; delete it, and everything is read again")
        return image


def _picture(content: str) -> Picture:
    values = json.loads(content)
    facts = {sys.intern(name): value for name, value in (values["facts"] or {}).items()}  # the names are few
    return Picture(**{**values, "conversions": tuple(values["conversions"]), "facts": facts or None})


@cache
def _decoders() -> str:
    """Return a digest of what decoding depends on."""
    source = {name: sha256_file(Path(__file__).with_name(f"{name}.py")) for name in MODULES}
    return digest_of([source, {name: version(name) for name in DECODERS}])


def place_of(file: Path) -> str:
    """Return a digest of a file's place, size and times, which changes when its content may have; "" without a file."""
    state = state_of(file)
    return place_in(file, state) if state else ""


def state_of(file: Path) -> tuple[int, ...]:
    """Return a file's size, times and number on its disk; nothing without a file."""
    try:
        stat = file.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def place_in(file: Path, state: tuple[int, ...]) -> str:
    """Return what `place_of` does, of a file in a state that is known."""
    told = (str(file.absolute()), *state)
    return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()[:32]
