"""Reading: every file once, in parallel, with bounded memory, and none that can stop the others.

Each file has a time limit. One that crashes its decoder, or holds it in a loop that cannot be interrupted, takes a
worker process with it; the files that were under way are then read one by one until it is found.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import BaseContext
from pathlib import Path
from types import FrameType

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from synthvision.data.cache import THUMB, ImageCache, Picture, Rows, Shelf, place_in, state_of
from synthvision.data.decoding import Pixels, decode_file, read_file
from synthvision.data.images import averaged, central_square, require_content, resized
from synthvision.data.unusable import UnusableImage

SECONDS = 30.0  # for one file
CHUNK = 32  # files per message to a worker
COMMIT = 2048  # pictures after which an interrupted run has not to be repeated
CRASHED = "its decoder crashed or did not end"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
Job = tuple[int, Path, int]  # index of the file, the file, the row that its picture gets


class _TooLongError(BaseException):  # not an Exception: what catches a decoder's errors must not catch this
    pass


def patient_hash(patient: str, salt: int) -> str:
    """Return how a patient's number appears in manifests."""
    return hashlib.sha256(f"{salt}:{patient}".encode()).hexdigest()[:12] if patient else ""


def read_pictures(
    files: Sequence[Path], cache: ImageCache, workers: int | None = None, seconds: float = SECONDS
) -> list[Picture]:
    """Return each file's picture, reading what the cache does not know yet.

    Args:
        files: in any order; a file may come twice.
        cache: gets what is read. Where a run was interrupted, the next goes on from there.
        workers: processes; None takes one per core that this process may use.
        seconds: limit for one file.

    Returns:
        as many as there are files, in their order; unusable ones say why.
    """
    with cache.lock:
        pictures = cache.known(files)
        new = [index for index, picture in enumerate(pictures) if picture is None]
        if new:
            first = cache.next_row()
            jobs = [(index, files[index], first + number) for number, index in enumerate(new)]
            pool = _Pool(cache.shelf, min(workers or _cores(), len(new)), seconds)
            for index, picture in _kept(_shown(pool.read(jobs), len(jobs)), cache):
                pictures[index] = picture
    return [picture for picture in pictures if picture is not None]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shown(results: Iterator[tuple[int, Picture, str]], total: int) -> Iterator[tuple[int, Picture, str]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(results, total=total, description="reading images")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


def _kept(results: Iterator[tuple[int, Picture, str]], cache: ImageCache) -> Iterator[tuple[int, Picture]]:
    """Enter what was read into the cache, every so often and in the end, whatever happens."""
    waiting: list[tuple[str, Picture]] = []
    try:
        for index, picture, place in results:
            if picture.sha256 and picture.reason != CRASHED:
                waiting.append((place, picture))
            if len(waiting) >= COMMIT:
                cache.keep(waiting)
                waiting = []
            yield index, picture
    finally:
        cache.keep(waiting)


class _Pool:
    """Worker processes that are replaced when a file takes them down."""

    def __init__(self, shelf: Shelf, workers: int, seconds: float) -> None:
        self.shelf, self.workers, self.seconds = shelf, workers, seconds

    def _open(self, workers: int) -> ProcessPoolExecutor:
        pool = ProcessPoolExecutor(workers, _context(), _start_worker)
        try:
            pool.submit(os.getpid).result()  # else every file would seem to crash its decoder, one after the other
        except BrokenProcessPool as error:
            raise RuntimeError(
                "the processes that read images cannot start; what they printed above says why. Often a package is "
                "missing or another one of that name is found first: reinstall synthvision"
            ) from error
        return pool

    def read(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Picture, str]]:
        left = deque(jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK))
        while left:
            suspects: list[Job] = []
            pool = self._open(self.workers)
            under_way: dict[Future[list[tuple[int, Picture, str]]], Sequence[Job]] = {}
            try:
                while left or under_way:
                    while left and len(under_way) < 2 * self.workers:  # no more wait in memory than workers can use
                        chunk = left.popleft()
                        under_way[pool.submit(_read_chunk, chunk, self.shelf, self.seconds)] = chunk
                    for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                        results = done.result()
                        del under_way[done]
                        yield from results
            except BrokenProcessPool:
                suspects = [job for chunk in under_way.values() for job in chunk]
            finally:
                pool.shutdown(cancel_futures=True)
            yield from self._one_by_one(suspects)

    def _one_by_one(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Picture, str]]:
        pool = self._open(1) if jobs else None
        try:
            for job in jobs:
                assert pool is not None
                try:
                    yield from pool.submit(_read_chunk, [job], self.shelf, self.seconds).result()
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = self._open(1)
                    yield job[0], Picture("", reason=CRASHED), ""
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Return a way to start processes that copies no threads: a model's may be running here."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker() -> None:
    _keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who gives out the work
    parent = multiprocessing.parent_process()
    if parent is not None:  # killed outright it tells nobody, and this process would wait for ever
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _keep_memory() -> None:
    """Have glibc keep up to 64 MiB that were freed: to give them back and be given them again for each picture takes
    longer than to decode it. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            library.mallopt(M_MMAP_THRESHOLD, 32 << 20)
            library.mallopt(M_TRIM_THRESHOLD, 64 << 20)


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _read_chunk(jobs: Sequence[Job], shelf: Shelf, seconds: float) -> list[tuple[int, Picture, str]]:
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _interrupt)
    with shelf.opened() as rows:
        return [(index, *_placed(file, row, rows, seconds)) for index, file, row in jobs]


def _placed(file: Path, row: int, rows: Rows, seconds: float) -> tuple[Picture, str]:
    """Return a file's picture and its place; none where it changed while it was read."""
    state = state_of(file)
    picture = _limited(file, row, rows, seconds)
    return picture, place_in(file, state) if state and state == state_of(file) else ""


def _limited(file: Path, row: int, rows: Rows, seconds: float) -> Picture:
    """Read a file within its time: Python is interrupted, and a decoder that cannot be ends with its process."""
    if not hasattr(signal, "setitimer"):
        return read_picture(file, row, rows)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * seconds)  # of computing; nobody handles it, so it ends the process
    try:
        return read_picture(file, row, rows)
    except _TooLongError:
        return Picture("", reason=f"took longer than {seconds:g} s to decode")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise _TooLongError


def read_picture(file: Path, row: int, rows: Rows) -> Picture:
    """Read a file, decode it and write its row."""
    sha256 = ""
    try:
        data = read_file(file)
        sha256 = hashlib.sha256(data).hexdigest()
        decoded = decode_file(data)
        require_content(decoded.pixels)
    except UnusableImage as error:
        return Picture(sha256, reason=str(error))
    except MemoryError:
        return Picture(sha256, reason="too large for this machine's memory")
    pixels = decoded.pixels
    return Picture(
        sha256=sha256,
        row=row,
        height=pixels.shape[0],
        width=pixels.shape[1],
        conversions=decoded.conversions,
        facts=dict(decoded.facts),
        patient=patient_hash(decoded.patient, rows.salt),
        checksum=rows.write(row, *fit_and_thumbnail(pixels, rows.size)),
    )


def pixel_digest(file: Path) -> str:
    """Return the sha256 of a file's picture as it is decoded, and of its shape.

    Raises:
        UnusableImage: the file cannot be read, or its bytes are no complete picture.
    """
    pixels = decode_file(read_file(file)).pixels
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def fit_and_thumbnail(pixels: Pixels, size: int) -> tuple[Pixels, Pixels]:
    """Return the central square as `images.fit` does, and small in grey: uint8 (size, size, 3) and (THUMB, THUMB)."""
    square = central_square(pixels)
    image = Image.fromarray(square)  # a copy, so it is made once for both
    few, box = averaged(image, THUMB)
    how = Image.Resampling.BOX if len(square) >= THUMB else Image.Resampling.BILINEAR
    thumb = np.asarray(few.convert("L").resize((THUMB, THUMB), how, box=box))
    if len(square) == size:
        return np.ascontiguousarray(square), thumb
    return resized(*((few, box) if size == THUMB else averaged(image, size)), size), thumb
