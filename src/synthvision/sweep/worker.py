"""Runs one frozen job, in whatever process a launcher has for it. Imports nothing heavy before the job does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from synthvision.sweep.book import DONE, FAILED, PRUNED, WAITING, Book, Outcome
from synthvision.sweep.composed import Pruned, ReportedError, StopOnSignal, Stopped, first_line

_slots: list[FileLock] = []  # the slot that this process has taken, for as long as it lives


class Ended(Protocol):
    """What a stage's run gives back."""

    @property
    def validation(self) -> Mapping[str, float]: ...
    @property
    def waits_for(self) -> str: ...
    @property
    def folders(self) -> Mapping[str, Path]: ...


Task = Callable[..., Ended]  # (config, overrides, and as in pipeline.Swept) -> what came of it


@dataclass(frozen=True)
class Work:
    """How jobs of one start of a sweep are run; sent to the processes that run them.

    Args:
        book: the sweep's folder, absolute.
        session: this start of the sweep.
        parent: MLflow run that the jobs' runs belong below.
        task: runs a composed config; a function of a module, since it is sent by its name.
        cwd: folder that relative paths of the config mean.
        aside: the config's part that is no part of a job: where runs are tracked, and `debug`.
        hooks: job -> what is told of each epoch of its training; see `search.py`.
    """

    book: Book
    session: str
    parent: str
    task: Task
    cwd: Path
    aside: Mapping[str, Any]
    hooks: Mapping[str, Callable[[int, Mapping[str, float]], None]]

    def __call__(self, digest: str) -> None:
        """Run a job in this process, unless it is done or another process has it; note what became of it.

        Raises:
            Stopped: a signal came. The job counts as not run.
        """
        with FileLock(self.book.lock(digest)):  # a worker that outlived its sweep may still be at it
            before = self.book.outcome(digest)
            if self.book.session != self.session or (before and before.holds):
                return
            self.book.begin(digest)
            start = time.monotonic()
            outcome = self._run(digest, start)
            self.book.end(digest, outcome)

    def _run(self, digest: str, start: float) -> Outcome:
        job = self.book.read(digest)
        config = OmegaConf.create({**job.config, **self.aside})
        assert isinstance(config, DictConfig)
        try:
            ended = self.task(
                config, job.overrides, parent=self.parent, name=job.name, digest=digest,
                on_epoch=self.hooks.get(digest), gives_up=(Pruned,),
            )  # fmt: skip
        except Pruned as reason:
            return Outcome(PRUNED, time.monotonic() - start, str(reason))
        except ReportedError as error:
            return Outcome(FAILED, time.monotonic() - start, first_line(error.__cause__ or error))
        folders = [str(folder.absolute()) for folder in ended.folders.values()]
        state = WAITING if ended.waits_for else DONE
        return Outcome(state, time.monotonic() - start, ended.waits_for, ended.validation, folders)


@dataclass(frozen=True)
class Elsewhere:
    """Runs a job in a process of its own kind: with its share of cores and GPUs, and printing into the job's log.

    Args:
        work: what to run.
        threads: of this process.
        gpus: what CUDA_VISIBLE_DEVICES may be; empty leaves it to whoever started the process.
        slots: processes that share them.
    """

    work: Work
    threads: int
    gpus: Sequence[str] = ()
    slots: int = 1

    def __call__(self, digest: str) -> None:
        """Run a job; a signal ends it quietly, since whoever sent it knows."""
        os.chdir(self.work.cwd)
        if multiprocessing.get_start_method(allow_none=True) == "loky":  # a way that processes of ours do not know
            multiprocessing.set_start_method(None, force=True)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(self.threads)  # read when torch is imported, by the first job
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[self._slot() % len(self.gpus)]
        if threading.current_thread() is threading.main_thread():
            handler = StopOnSignal()
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, handler)
        with _printing_into(self.work.book.log(digest)), contextlib.suppress(Stopped):
            self.work(digest)

    def _slot(self) -> int:
        """Take a free slot, once per process: each has a GPU of its own where there are enough."""
        folder = self.work.book.folder / "slots"
        folder.mkdir(parents=True, exist_ok=True)
        while not _slots:
            for number in range(self.slots):
                lock = FileLock(folder / f"{number}.lock")
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=0)
                    _slots.append(lock)
                    break
            else:
                time.sleep(0.1)  # a process that has just ended still holds it
        return int(Path(_slots[0].lock_file).stem)


@contextlib.contextmanager
def _printing_into(file: Path) -> Iterator[None]:
    """Send what this process and its libraries print into a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(number) for number in (1, 2)]
    with file.open("a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
            os.close(old)
