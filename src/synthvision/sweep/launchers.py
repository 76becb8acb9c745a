"""Where the jobs of a sweep run: `conf/hydra/launcher/*.yaml`.

Each speaks to its engine directly. Hydra's own launcher packages end a whole batch with one killed worker (joblib),
start all jobs at once (submitit), hold cloudpickle below what MLflow wants (ray), and compose each job anew when it
starts. All four here take jobs that are frozen and note themselves what became of them; an engine only has to run them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from synthvision.sweep.book import FAILED, Outcome
from synthvision.sweep.worker import Elsewhere, Work

GRACE = 20.0  # seconds that jobs get to close their runs
POLL = 0.3
KILLED = "its process ended without a result, as when it is killed or the machine has no memory left"
Watch = Callable[[], None]


class Launcher(Protocol):
    """Runs jobs; when it returns, each has an outcome."""

    @property
    def width(self) -> int:
        """Jobs at once."""

    def run(self, jobs: Sequence[str], work: Work, watch: Watch) -> None:
        """Run all jobs and call `watch` whenever something may have changed."""


@dataclass(frozen=True)
class InProcess:
    """One after another, in this process: nothing is imported or loaded twice."""

    width: int = 1

    def run(self, jobs: Sequence[str], work: Work, watch: Watch) -> None:
        for job in jobs:
            work(job)
            watch()


@dataclass(frozen=True)
class Share:
    """How a machine is divided among jobs, so that they do not fight over cores and GPUs.

    Args:
        jobs: at once; None for as many as there are GPUs, or else cores.
        threads: of each job; None for the cores divided by the jobs.
        accelerator: of the sweep's jobs; "cpu" leaves GPUs alone.

    Raises:
        ValueError: a number below 1.
    """

    jobs: int | None
    threads: int | None
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"hydra.launcher.{name} must be at least 1 or null; it is {value!r}")

    @property
    def gpus(self) -> list[str]:
        """What CUDA_VISIBLE_DEVICES is for each GPU that jobs may use."""
        from synthvision.training import gpus

        return [] if self.accelerator == "cpu" else gpus()

    @property
    def width(self) -> int:
        """Jobs at once."""
        return self.jobs or len(self.gpus) or _cores()

    def elsewhere(self, work: Work) -> Elsewhere:
        """Return what a process of this machine runs."""
        width = self.width
        return Elsewhere(work, self.threads or max(1, _cores() // width), self.gpus, width)


@dataclass(frozen=True)
class Joblib:
    """Side by side on this machine. See `Share` for the numbers."""

    jobs: int | None = None
    threads: int | None = None
    accelerator: str = "auto"

    @property
    def share(self) -> Share:
        return Share(self.jobs, self.threads, self.accelerator)

    @property
    def width(self) -> int:
        return self.share.width

    def run(self, jobs: Sequence[str], work: Work, watch: Watch) -> None:
        joblib = _imported("joblib")
        run = self.share.elsewhere(work)
        left = list(jobs)

        def attempt(these: Sequence[str]) -> list[str]:
            """Run jobs; return those without an outcome, which are some where a process was killed."""
            with joblib.parallel_config(backend="loky", inner_max_num_threads=run.threads), suppress(BrokenProcessPool):
                parallel = joblib.Parallel(n_jobs=self.width, batch_size=1, return_as="generator_unordered")
                for _ in parallel(joblib.delayed(run)(job) for job in these):
                    watch()
            return [job for job in these if work.book.outcome(job) is None]

        while left := attempt(left):
            # One was killed, and the others that were running fell with it: by itself each shows whether it is the one.
            for job in [job for job in left if work.book.is_running(job)]:
                for lost in attempt([job]):
                    work.book.end(lost, Outcome(FAILED, 0.0, KILLED))
                watch()
            left = [job for job in left if work.book.outcome(job) is None]


@dataclass(frozen=True)
class Submitit:
    """Through submitit: on a SLURM cluster, or its local executor, each job in a process of its own.

    Args:
        cluster: "slurm" or "local".
        jobs: at once; None: "local" takes the GPUs or cores of this machine, "slurm" what the cluster gives.
        threads: of each job; on SLURM also the cores that it asks for.
        accelerator: see `Share`.
        parameters: of submitit's executor: timeout_min, slurm_partition, gpus_per_node and so on.
    """

    cluster: str
    jobs: int | None = None
    threads: int | None = None
    accelerator: str = "auto"
    parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.cluster not in ("local", "slurm"):
            raise ValueError(f"hydra.launcher.cluster must be local or slurm; it is {self.cluster!r}")

    @property
    def share(self) -> Share:
        return Share(self.jobs, self.threads, self.accelerator)

    @property
    def width(self) -> int:
        return self.share.width if self.cluster == "local" else self.jobs or 1000

    def run(self, jobs: Sequence[str], work: Work, watch: Watch) -> None:
        executor, run = self._executor(work), self._elsewhere(work)
        left, running = list(jobs), dict[str, Any]()
        try:
            while left or running:
                while left and len(running) < self.width:
                    job = left.pop(0)
                    running[job] = executor.submit(run, job)
                time.sleep(POLL)
                for job in [job for job, handle in running.items() if handle.done()]:
                    _note_loss(work, job, running.pop(job).exception)
                watch()
        except BaseException:
            self._cancel(running)
            raise

    def _executor(self, work: Work) -> Any:
        submitit = _imported("submitit")
        executor = submitit.AutoExecutor(folder=work.book.folder / "submitit", cluster=self.cluster)
        given = {"cpus_per_task": self.threads} if self.threads and self.cluster == "slurm" else {}
        # Signals are answered by the job itself; submitit's requeueing would start it a second time.
        executor.update_parameters(name="synthvision", **given, **(self.parameters or {}))
        return executor

    def _elsewhere(self, work: Work) -> Elsewhere:
        return self.share.elsewhere(work) if self.cluster == "local" else Elsewhere(work, self.threads or 1)

    def _cancel(self, running: Mapping[str, Any]) -> None:
        for handle in running.values():
            handle.cancel(check=False)
        until = time.monotonic() + GRACE
        while time.monotonic() < until and not all(handle.done(force_check=True) for handle in running.values()):
            time.sleep(POLL)


@dataclass(frozen=True)
class Ray:
    """On Ray: a cluster, or this machine.

    Args:
        address: of a cluster ("auto", "ray://host:port"); None starts Ray here for as long as the sweep runs.
        threads: cores of each job, which Ray keeps free for it.
        gpus: GPUs of each job; 0.5 lets two jobs share one.
    """

    address: str | None = None
    threads: int = 1
    gpus: float = 0.0

    @property
    def width(self) -> int:
        return max(1, _cores() // self.threads) if self.address is None else 1000

    def run(self, jobs: Sequence[str], work: Work, watch: Watch) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves the machine
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves jobs on a machine that does more
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray on this machine listens on the loopback address only
        ray = _imported("ray")
        here = {"num_cpus": _cores(), "include_dashboard": False} if self.address is None else {}
        ray.init(address=self.address, log_to_driver=False, logging_level="warning", **here)
        try:
            run = ray.remote(num_cpus=self.threads, num_gpus=self.gpus, max_retries=0)(_call)
            asked = {run.remote(Elsewhere(work, self.threads), job): job for job in jobs}
            while asked:
                ended, _ = ray.wait(list(asked), timeout=1.0)
                for each in ended:
                    _note_loss(work, asked.pop(each), partial(_error_of, ray, each))
                watch()
        finally:
            ray.shutdown()


def check_alone(launcher: Launcher, devices: int) -> None:
    """Refuse jobs that are several processes themselves where jobs run side by side.

    Raises:
        ValueError: with the remedy.
    """
    if devices > 1 and not isinstance(launcher, InProcess):
        raise ValueError(
            f"dreambooth.devices={devices} trains by several processes, which would share GPUs and ports with other "
            "jobs: set hydra/launcher=in_process, or dreambooth.devices=1 and let the launcher use the GPUs"
        )


def check_accelerators(launcher: Launcher, of_jobs: Collection[str]) -> None:
    """Refuse jobs that hide the GPUs beside jobs that want them where one process does several jobs.

    Raises:
        ValueError: with the remedy.
    """
    if "cpu" in of_jobs and len(set(of_jobs)) > 1 and not isinstance(launcher, Submitit):
        raise ValueError(
            "trainer.accelerator must be cpu in all jobs or in none, for a process that has hidden its GPUs finds them "
            f"no more; it is {sorted(set(of_jobs))}. Set hydra/launcher=submitit_local, which gives each job a process "
            "of its own, or start a sweep for each"
        )


def _call(run: Elsewhere, job: str) -> None:
    run(job)


def _error_of(ray: Any, reference: Any) -> BaseException | None:
    try:
        ray.get(reference)
    except Exception as error:
        return error
    return None


def _note_loss(work: Work, job: str, error: Callable[[], BaseException | None]) -> None:
    """Give a job an outcome whose process ended without one."""
    if work.book.outcome(job) is None:
        reason = error()
        words = KILLED if reason is None else f"{KILLED}: {str(reason).strip().splitlines()[-1]}"
        work.book.end(job, Outcome(FAILED, 0.0, words))


def _imported(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise ValueError(f"this launcher needs {package}: pip install 'synthvision[{package}]'") from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
