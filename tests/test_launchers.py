"""Every launcher runs each job once, in its share of the machine, and a job that dies takes no other with it."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import OmegaConf

from synthvision.sweep.book import DONE, FAILED, PRUNED, Book, Job, Outcome
from synthvision.sweep.composed import Pruned, ReportedError
from synthvision.sweep.launchers import InProcess, Joblib, Launcher, Share, Submitit, check_accelerators, check_alone
from synthvision.sweep.worker import Elsewhere, Work

SESSION = "this start"


def task(config: Any, _overrides: Sequence[str], *, digest: str, **_: Any) -> SimpleNamespace:
    """Stands in for a stage: leaves a line per call, with what its process was given; may fail or die."""
    with Path("calls").open("a") as file:
        file.write(f"{digest} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}\n")
    print("printed by", digest)
    if config.does == "fail":
        raise ReportedError from ValueError("classifier.lr must be above 0\nand more")
    if config.does == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.does == "die beside b":  # as often as b runs with it
        until = time.monotonic() + 3
        while sum(call[0] == "b" for call in calls()) < sum(call[0] == digest for call in calls()):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.does == "linger":
        time.sleep(4)
    if config.does == "pool":  # as reading images does
        with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
            pool.submit(os.getpid).result()
    if config.does == "prune":
        raise Pruned("behind")
    return SimpleNamespace(validation={"best/val/loss": config.value}, waits_for="", folders={})


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    book = Book(tmp_path / "sweep")
    book.open_session(SESSION)
    return Work(book, SESSION, "", task, tmp_path, {"debug": False}, {})


def freeze(work: Work, **does: str) -> list[str]:
    for number, (digest, what) in enumerate(does.items()):
        work.book.write(Job(digest, digest, [f"seed={number}"], {"does": what, "value": number / 10}))
    return list(does)


def calls() -> list[list[str]]:
    return [line.split() for line in Path("calls").read_text().splitlines()]


def states(work: Work, jobs: Sequence[str]) -> dict[str, str]:
    return {job: outcome.state for job in jobs if (outcome := work.book.outcome(job))}


@pytest.mark.parametrize(
    "launcher", [InProcess(), Joblib(2, accelerator="cpu"), Submitit("local", 2, accelerator="cpu")], ids=type
)
def test_each_job_runs_once_and_a_failed_one_leaves_the_others(launcher: Launcher, work: Work) -> None:
    jobs = freeze(work, a="work", b="fail", c="prune", d="work")
    launcher.run(jobs, work, lambda: None)
    assert states(work, jobs) == {"a": DONE, "b": FAILED, "c": PRUNED, "d": DONE}
    assert sorted(call[0] for call in calls()) == jobs
    failed, done = work.book.outcome("b"), work.book.outcome("d")
    assert failed is not None
    assert failed.error == "ValueError: classifier.lr must be above 0"
    assert done is not None
    assert done.metrics == {"best/val/loss": 0.3}
    launcher.run(jobs, work, lambda: None)
    assert sorted(call[0] for call in calls()) == ["a", "b", "b", "c", "d"]


@pytest.mark.parametrize("launcher", [Joblib(2, accelerator="cpu"), Submitit("local", 2, accelerator="cpu")], ids=type)
def test_a_killed_process_takes_no_other_job_with_it(launcher: Launcher, work: Work) -> None:
    jobs = freeze(work, a="die", b="work", c="work")
    launcher.run(jobs, work, lambda: None)
    assert states(work, jobs) == {"a": FAILED, "b": DONE, "c": DONE}
    lost = work.book.outcome("a")
    assert lost is not None
    assert "its process ended without a result" in lost.error


def test_a_job_that_only_ever_ran_beside_the_killed_one_is_not_blamed(work: Work) -> None:
    jobs = freeze(work, a="die beside b", b="linger")
    Joblib(2, accelerator="cpu").run(jobs, work, lambda: None)
    assert states(work, jobs) == {"a": FAILED, "b": DONE}


def test_slurm_is_asked_for_what_the_config_says(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for SLURM's commands: sbatch keeps the script and runs it here, as a node would."""
    commands = {
        "sbatch": 'cat "$1" >> scripts; SLURM_JOB_ID=$$ sh "$1" > log 2>&1 & echo "Submitted batch job $$"',
        "srun": f'while [ "$1" != {sys.executable} ]; do shift; done; exec "$@"',
        "sacct": 'echo "JobID|State|NodeList"',
        "scancel": "true",
    }
    for name, lines in commands.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{lines}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    config = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "submitit_slurm.yaml")
    config.accelerator = "cpu"
    launcher: Launcher = instantiate(config, _convert_="all", parameters={"slurm_partition": "gpu"})
    jobs = freeze(work, a="work", b="fail")
    launcher.run(jobs, work, lambda: None)
    assert states(work, jobs) == {"a": DONE, "b": FAILED}
    assert {call[2] for call in calls()} == {"4"}
    script = (tmp_path / "scripts").read_text()
    for asked in ("cpus-per-task=4", "gpus-per-node=1", "mem=32GB", "nodes=1", "partition=gpu", "time=720"):
        assert f"#SBATCH --{asked}\n" in script


def test_jobs_side_by_side_share_the_cores_and_print_into_their_logs(work: Work) -> None:
    jobs = freeze(work, a="work", b="pool")
    Joblib(2, threads=3, accelerator="cpu").run(jobs, work, lambda: None)
    assert states(work, jobs) == {"a": DONE, "b": DONE}
    assert {call[2] for call in calls()} == {"3"}
    assert {call[1] for call in calls()} & {str(os.getpid())} == set()
    assert work.book.log("b").read_text() == "printed by b\n"


def test_a_machine_is_divided() -> None:
    cores = len(os.sched_getaffinity(0))
    assert Share(None, None, "cpu").width == cores
    assert Share(4, None, "cpu").width == 4
    with pytest.raises(ValueError, match=r"hydra\.launcher\.jobs must be at least 1 or null; it is 0"):
        Share(0, None)


def test_each_process_takes_a_gpu_of_its_own(work: Work) -> None:
    folder = work.book.folder / "slots"
    folder.mkdir(parents=True)
    with FileLock(folder / "0.lock"):  # held by another process of the sweep
        assert Elsewhere(work, 1, ["GPU-a", "GPU-b"], 2)._slot() == 1


def test_a_worker_of_an_earlier_start_begins_no_job(work: Work) -> None:
    jobs = freeze(work, a="work")
    work.book.open_session("a later start")
    InProcess().run(jobs, work, lambda: None)
    assert states(work, jobs) == {}
    assert not Path("calls").exists()


def test_a_job_whose_result_was_deleted_runs_again(work: Work) -> None:
    jobs = freeze(work, a="work")
    work.book.end("a", Outcome(DONE, 1.0, folders=[str(work.book.folder / "deleted")]))
    InProcess().run(jobs, work, lambda: None)
    assert [call[0] for call in calls()] == ["a"]


def test_a_training_by_several_processes_keeps_to_itself() -> None:
    check_alone(InProcess(), 2)
    check_alone(Joblib(), 1)
    with pytest.raises(ValueError, match=r"dreambooth\.devices=2 .* set hydra/launcher=in_process"):
        check_alone(Joblib(), 2)


def test_jobs_that_hide_the_gpus_keep_apart_from_those_that_want_them() -> None:
    for launcher in (InProcess(), Joblib()):
        check_accelerators(launcher, ["cpu", "cpu"])
        check_accelerators(launcher, ["auto", "gpu"])
        with pytest.raises(ValueError, match=r"trainer\.accelerator must be cpu in all .* it is \['auto', 'cpu'\]"):
            check_accelerators(launcher, ["cpu", "auto"])
    check_accelerators(Submitit("local"), ["cpu", "auto"])


def test_a_stopped_job_was_not_run(work: Work) -> None:
    """SIGTERM while a job works: no outcome, so that the next start runs it."""
    (job,) = freeze(work, a="work")
    sleeper = Work(work.book, SESSION, "", sleep, work.cwd, {}, {})
    process = multiprocessing.get_context("spawn").Process(target=Elsewhere(sleeper, 1), args=(job,))
    process.start()
    while not Path("asleep").exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.terminate()
    process.join()
    assert process.exitcode == 0
    assert work.book.outcome(job) is None


def sleep(*_: Any, **__: Any) -> None:
    Path("asleep").touch()
    time.sleep(600)
