"""A sweep from its start to its end: check all jobs, freeze them, run what is missing, say what failed."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from synthvision import artifact
from synthvision.sweep.book import FAILED, WAITING, Book, Job
from synthvision.sweep.composed import ReportedError, make, shared_folder, text_of
from synthvision.sweep.composer import Composer
from synthvision.sweep.launchers import InProcess, Launcher, check_accelerators, check_alone
from synthvision.sweep.plan import ASIDE, PlanError, plan, resolved
from synthvision.sweep.progress import Goal, Progress
from synthvision.sweep.worker import Work

if TYPE_CHECKING:
    from synthvision.tracking.store import Store

OPENING = ("pipeline", "evaluate", "external", "report")  # stages that open a test set
LAUNCHERS = "synthvision.sweep.launchers."


@dataclass
class Started:
    """A sweep that has begun: its jobs so far, and what runs them."""

    book: Book
    launcher: Launcher
    work: Work
    jobs: dict[str, Job]
    progress: Progress

    def run(self, jobs: Sequence[Job]) -> None:
        """Freeze these jobs and run what is missing of them."""
        self.jobs |= {job.digest: job for job in jobs}
        for job in jobs:
            self.book.write(job)
        missing = [job.digest for job in jobs if not self._holds(job)]
        self.progress.earlier += len(jobs) - len(missing)
        self.progress.update()
        self.launcher.run(missing, self.work, self.progress.update)

    def _holds(self, job: Job) -> bool:
        """Tell whether a job is done; forget what is known of one that must run again."""
        outcome = self.book.outcome(job.digest)
        if outcome and outcome.holds:
            return True
        self.book.forget(job.digest)
        return False


class GridSweeper(Sweeper):
    """Every combination of the values that `hydra.sweeper.params` and the command line give.

    Args:
        metric: of validation; what "best so far" is judged by.
        greatest: whether more of it is better.
        params: key -> values with commas between them.
        tables: several grids in one sweep, each as `params`, which all of them share. One plan in the ledger has all
            their openings of a test set, so it is older than the first of them.
    """

    def __init__(
        self,
        metric: str,
        greatest: bool,
        params: Mapping[str, str] | None = None,
        tables: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        self.goal = Goal(metric, greatest)
        self.params, self.tables = dict(params or {}), list(tables or [{}])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has for every sweeper."""
        self._context, self._task, self._config = hydra_context, task_function, config
        self.compose = Composer(hydra_context.config_loader, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep, or what an earlier start has left of it.

        Raises:
            ReportedError: jobs could not be run, or failed; what and why is printed.
            Stopped: a signal came; what is done counts, and the same command goes on.
        """
        try:
            self._sweep(arguments)
        except (PlanError, ValueError, OSError) as error:
            print(f"synthvision: {text_of(error)}", file=sys.stderr)
            raise ReportedError from error

    def _sweep(self, arguments: list[str]) -> None:
        jobs = self.plan([job for table in self.tables for job in self._grid({**self.params, **table}, arguments)])
        digest = artifact.digest_of(sorted(job.digest for job in jobs))[:16]
        register_openings(jobs)
        with self.start(arguments, digest, jobs[0].config["study"], len(jobs)) as started:
            started.run(jobs)

    def _grid(self, params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
        """Return the overrides of each job of a grid; the command line narrows it."""
        given = [*(f"{key}={value}" for key, value in params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(given)
        return [list(job) for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]

    def plan(self, of_each: Sequence[Sequence[str]], names: Sequence[str] | None = None) -> list[Job]:
        """Compose and make jobs; see `plan`."""
        alone = ["hydra.mode=RUN"] if self._file(of_each[0]) else []  # a file in sweeps/ would start a sweep
        jobs = plan(of_each, self.compose, [*shared_folder(self._config.hydra), *alone], names)
        for job in jobs:
            check_alone(self.engine, _processes(job))
        check_accelerators(self.engine, [job.config["trainer"]["accelerator"] for job in jobs])
        return jobs

    @property
    def engine(self) -> Launcher:
        """The launcher that `hydra/launcher=` names.

        Raises:
            ValueError: one of Hydra's own packages was named, or a number breaks its rule.
        """
        target = str(self._config.hydra.launcher.get("_target_", ""))
        if not target.startswith(LAUNCHERS):
            raise ValueError(
                f"hydra/launcher must be in_process, joblib, submitit_local, submitit_slurm or ray; it is {target}"
            )
        launcher: Launcher = instantiate(self._config.hydra.launcher, _convert_="all")
        return launcher

    @contextmanager
    def start(self, arguments: Sequence[str], digest: str, study: str, total: int) -> Iterator[Started]:
        """Open the sweep's folder and run, and afterwards close them and say what failed.

        Args:
            arguments: of the command line.
            digest: the sweep's identity.
            study: of all jobs.
            total: number of jobs.

        Raises:
            ValueError: another process runs this sweep.
            ReportedError: jobs failed.
        """
        from synthvision.tracking.store import open_store

        name, command, session = self.name(arguments), self.command(arguments), uuid.uuid4().hex
        book = Book(Path(self._config.hydra.sweep.dir, digest).absolute())
        with _alone(book.folder):
            store = open_store(make(self._config, "tracking"), study)
            address, runs = store.config.uri, book.runs
            with store.sweep_run(name, digest, {"jobs": total}, runs.get(address)) as (run, before):
                book.describe(name, command, {**runs, address: run.run_id})
                if not before:  # its runs were deleted or are in another store: all jobs are due, from reused stages
                    book.forget_all()
                run.note(f"{total} jobs. Run it, or go on with it:\n\n```\n{command}\n```\n")
                run.log_config(self._text(arguments))
                aside = {key: resolved(self._config, key) for key in ASIDE}
                work = Work(book, session, run.run_id, self._task, Path.cwd(), aside, {})
                jobs: dict[str, Job] = {}
                live = not isinstance(self.engine, InProcess)  # there the jobs print themselves
                book.open_session(session)
                try:
                    with Progress(book, jobs, total, self.goal, live) as progress:
                        yield Started(book, self.engine, work, jobs, progress)
                finally:
                    book.open_session("")
                    store.close_dead_runs()  # of jobs whose process was killed
                _sum_up(store, run.run_id)
                _tell(book, jobs, command)

    def _text(self, arguments: Sequence[str]) -> str:
        """Return what the jobs share, and what varies, as YAML."""
        from synthvision.tracking.config import without_passwords

        shared = {str(key): value for key, value in self._config.items() if key != "hydra"}
        hydra_part = {"sweeper": self._config.hydra.sweeper, "overrides": {"task": list(arguments)}}
        # Not resolved: what refers to a key that varies has no one value.
        values = OmegaConf.to_container(OmegaConf.create({**shared, "hydra": hydra_part}))
        return OmegaConf.to_yaml(OmegaConf.create(without_passwords(values)))

    def name(self, arguments: Sequence[str]) -> str:
        """Return the sweep's name: its file's, or the keys that vary."""
        parts = OverridesParser.create().parse_overrides(list(arguments))
        varied = [str(part.key_or_group).rsplit(".", 1)[-1] for part in parts if part.is_sweep_override()]
        return self._file(arguments) or " x ".join(varied) or "sweep"

    def command(self, arguments: Sequence[str]) -> str:
        """Return the command that runs the sweep, or goes on with it."""
        many = [] if self._file(arguments) else ["-m"]
        hydra = [each for each in self._config.hydra.overrides.hydra if not each.startswith("hydra.mode=")]
        return shlex.join(["synthvision", *shared_folder(self._config.hydra), *many, *arguments, *hydra])

    @staticmethod
    def _file(arguments: Sequence[str]) -> str:
        return next((each.partition("=")[2] for each in arguments if each.startswith(("+sweeps=", "sweeps="))), "")


def opens_test_set(job: Job) -> bool:
    """Tell whether a job asks for what a test set says."""
    return job.config["stage"]["name"] in OPENING


def register_openings(jobs: Sequence[Job]) -> None:
    """Write into the ledger which runs will open test sets, before the first of them does.

    Raises:
        PlanError: two would open the same as the same run, which a choice by test results looks like.
    """
    from synthvision.evaluation.ledger import Ledger
    from synthvision.stages.evaluate import LEDGER, planned_run

    named: dict[str, list[Job]] = {}
    for job in jobs:
        config = job.config
        if opens_test_set(job):
            run = planned_run(config["arm"]["name"], config["backbone"]["name"], config["seed"])
            named.setdefault(run, []).append(job)
    for run, same in named.items():
        if len(same) > 1 and not same[1].config["evaluate"]["reopen"]:
            raise PlanError(
                f"nothing was started: {len(same)} jobs would open the test set as {run}, the first two: "
                f"{same[0].name} and {same[1].name}. Choose among them by validation, with stage=classify, or set "
                'evaluate.reopen="the reason"'
            )
    if named:
        config = jobs[0].config
        Ledger(Path(config["root"], config["study"], LEDGER)).register(named)


def _processes(job: Job) -> int:
    """Return how many processes a job trains by."""
    return 1 if job.config["stage"]["name"] == "prepare" else int(job.config["dreambooth"]["devices"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"this sweep is running in another process (its folder is {folder}); wait for it") from error
    try:
        yield
    finally:
        lock.release()


def _sum_up(store: Store, run_id: str) -> None:
    """Log table and figures on the sweep's run; a store that is away, or an odd table, is no reason to fail a sweep."""
    from synthvision.tracking.summary import log_sweep_summary

    try:
        log_sweep_summary(store, run_id)
    except Exception as error:
        print(f"synthvision: the sweep's run has no table: {text_of(error)}", file=sys.stderr)


def _tell(book: Book, jobs: Mapping[str, Job], command: str) -> None:
    """Print what is not done, with the command that runs it alone.

    Raises:
        ReportedError: jobs failed.
    """
    ended = [(job, outcome) for digest, job in jobs.items() if (outcome := book.outcome(digest))]
    for state, words in ((WAITING, "wait for readers"), (FAILED, "failed")):
        these = [(job, outcome) for job, outcome in ended if outcome.state == state]
        if these:
            print(f"{len(these)} of {len(jobs)} jobs {words}:", file=sys.stderr)
        for job, outcome in these:
            print(f"- {job.name}: {outcome.error}\n  rerun: {job.command}", file=sys.stderr)
    if any(outcome.state == FAILED for _, outcome in ended):
        print(f"all that is missing: {command}", file=sys.stderr)
        if book.logs.exists():  # of jobs in processes of their own; others print here
            print(f"logs: {os.path.relpath(book.logs)}", file=sys.stderr)
        raise ReportedError
