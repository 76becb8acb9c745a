"""The command as users run it: its exit codes, its words when something is wrong, and how it stops.

Stages of minutes would only slow these tests, so a study of two fields and a `run` of a few lines stand in for the
pipeline; everything around them, from Hydra to the tracking store, is real.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from synthvision import cli
from synthvision.tracking.config import TrackingConfig
from synthvision.tracking.store import open_store

STAND_IN = """
    import sys, time
    from dataclasses import dataclass
    from types import SimpleNamespace

    @dataclass(frozen=True)
    class Study:
        study: str
        seed: int

    def run(study, stage, resolved, overrides, tracking, session=None, swept=None):
        from synthvision.tracking.config import PARENT
        from synthvision.tracking.store import open_store
        below = {PARENT: swept["parent"]} if swept else {}
        with open_store(tracking, study.study).pipeline_run(f"seed {study.seed}", {}, "", below):
            print("RUN", stage, study.study, study.seed, overrides, flush=True)
            BODY
        return SimpleNamespace(folders={}, validation={}, waits_for="")

    def nothing(study, stage):
        return ""

    sys.modules["synthvision.study"] = SimpleNamespace(Study=Study)
    sys.modules["synthvision.pipeline"] = SimpleNamespace(
        run=run, Swept=dict, is_work=bool, check=nothing, inputs_digest=nothing
    )
    from synthvision.cli import main
    sys.exit(main())
"""
TRAIN = """
            import torch
            from pytorch_lightning import Trainer
            from pytorch_lightning.demos.boring_classes import BoringModel
            class Slow(BoringModel):
                def training_step(self, batch, index):
                    print("STEP", flush=True)
                    time.sleep(0.05)
                    return super().training_step(batch, index)
            Trainer(max_epochs=10**6, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(Slow())
"""
Process = subprocess.Popen[str]
Start = Callable[..., Process]


@pytest.fixture
def start(tracking_root: Path, tmp_path: Path) -> Start:
    """A function that starts the command with the stand-in, whose `run` executes the lines of `body`."""

    def start(body: str, *arguments: str) -> Process:
        code = textwrap.dedent(STAND_IN.replace("BODY", body.strip()))
        settings = [f"tracking.root={tracking_root}", "tracking.system_metrics=false"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments, *settings],
            stdout=pipe,
            stderr=pipe,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

    return start


def wait_for(process: Process, word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return
    raise AssertionError(f"ended without {word!r}: {process.stderr.read() if process.stderr else ''}")


def runs_of(root: Path) -> list[Run]:
    store = TrackingConfig(str(root))
    return list(mlflow.MlflowClient(store.uri).search_runs([open_store(store, "phantom").experiment_id]))


def statuses(root: Path) -> dict[str, str]:
    """Return each run's status by its name."""
    return {str(run.info.run_name): run.info.status for run in runs_of(root)}


def synthvision(*arguments: str, folder: Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "synthvision", *arguments]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True)


def test_help_names_every_group_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = synthvision("--help", folder=tmp_path, options=("-X", "importtime"))
    assert done.returncode == 0, done.stderr
    groups = {folder.name for folder in (cli.ROOT / "conf").iterdir() if folder.is_dir()}
    for group in groups - {"hydra"}:  # its own help lists its groups
        assert re.search(rf"^{group}: ", done.stdout, re.MULTILINE)
    assert "phantom_arms" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert not imported & {"torch", "diffusers", "transformers", "mlflow", "pandas", "pytorch_lightning", "timm"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["backbone=nope"], ["backbone/nope", "tiny", "sdxl"]),
        (["tracking.wrong=1"], ["tracking.wrong"]),
        (["stage=ui", "tracking.root=''"], ["tracking.root must name a folder", "tracking.root=mlruns"]),
        (["stage=ui", "tracking.root=empty"], ["no runs in", "run synthvision first"]),
        (["seed"], ["seed"]),
    ],
)
def test_a_mistake_gets_one_clear_message(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    done = synthvision(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = synthvision("stage=ui", "tracking.root=empty", "debug=true", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "no runs in" in done.stderr


def test_a_user_s_folder_of_options(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "experiment").mkdir(parents=True)
    lines = ["# @package _global_", "defaults:", "  - override /backbone: sd15", "study: cells"]
    (mine / "experiment" / "cells.yaml").write_text("\n".join(lines) + "\n")
    done = synthvision("--config-dir", str(mine), "experiment=cells", "--cfg", "job", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "study: cells" in done.stdout
    assert "name: sd15" in done.stdout


def test_a_run_gets_stage_overrides_and_finishes(start: Start, tracking_root: Path) -> None:
    out, error = (process := start("pass", "stage=classify", "seed=3")).communicate()
    assert process.returncode == 0, error
    assert "RUN classify phantom 3" in out
    assert "['stage=classify', 'seed=3', 'tracking.root=" in out
    assert statuses(tracking_root) == {"seed 3": "FINISHED"}


def test_our_own_errors_come_without_a_traceback_and_a_library_s_with(start: Start, tracking_root: Path) -> None:
    ours = "from synthvision.manifest import Record; Record('a', '/x', '0', 'l', 'real')"
    _, error = (process := start(ours)).communicate()
    assert process.returncode == 1
    assert error.startswith("synthvision: image 'a': path must be relative")
    assert "Traceback" not in error
    _, error = (process := start("import json; json.loads('{')", "seed=1")).communicate()
    assert process.returncode == 1
    assert "Traceback" in error
    assert set(statuses(tracking_root).values()) == {"FAILED"}


@pytest.mark.parametrize(
    ("number", "body", "word"),
    [
        pytest.param(signal.SIGTERM, "time.sleep(600)", "RUN", id="plain"),
        pytest.param(signal.SIGTERM, TRAIN, "STEP", id="lightning"),  # it has handlers of its own
        pytest.param(signal.SIGINT, TRAIN, "STEP", id="lightning-interrupt"),
    ],
)
def test_a_signal_kills_the_run_and_leaves_a_code(
    number: signal.Signals, body: str, word: str, start: Start, tracking_root: Path
) -> None:
    with start(body) as process:
        wait_for(process, word)
        process.send_signal(number)
        _, error = process.communicate()
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}" in error
    assert "Traceback" not in error
    assert statuses(tracking_root) == {"seed 0": "KILLED"}


def test_in_a_sweep_one_failure_leaves_the_others(start: Start, tracking_root: Path) -> None:
    body = "from synthvision.tracking.config import TrackingConfig; study.seed == 1 and TrackingConfig('')"
    _, error = (process := start(body, "-m", "seed=0,1,2")).communicate()
    assert process.returncode == 1
    assert "tracking.root must name a folder" in error
    assert "synthvision seed=1" in error
    assert "logs:" not in error  # all was printed here
    jobs = {"seed 0": "FINISHED", "seed 1": "FAILED", "seed 2": "FINISHED"}
    assert statuses(tracking_root) == {**jobs, "seed": "FAILED"}


@pytest.mark.parametrize("body", ["sys.exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_stopped_sweep_is_no_success(body: str, start: Start, tracking_root: Path) -> None:
    process = start(body, "-m", "seed=0,1")
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert statuses(tracking_root) == {"seed 0": "KILLED", "seed": "KILLED"}


@pytest.mark.parametrize("harm", ["TrackingConfig('')", "os.kill(os.getpid(), 9)"], ids=["failed", "killed"])
def test_a_sweep_goes_on_with_what_is_missing(harm: str, start: Start, tracking_root: Path, tmp_path: Path) -> None:
    body = f"""import os; from synthvision.tracking.config import TrackingConfig
            if study.seed == 1 and not os.path.exists("mended"):
                {harm}"""
    _, error = (process := start(body, "-m", "seed=0,1,2")).communicate()
    assert process.returncode == (1 if "Tracking" in harm else -signal.SIGKILL), error
    (tmp_path / "mended").touch()
    out, error = (process := start(body, "-m", "seed=0,1,2")).communicate()
    assert process.returncode == 0, error
    left = [1] if "Tracking" in harm else [1, 2]
    assert re.findall(r"RUN pipeline phantom (\d)", out) == [str(seed) for seed in left]
    assert "sweep: 3 of 3 done" in error
    runs = runs_of(tracking_root)
    (sweep,) = [run for run in runs if run.data.tags.get("stage") == "sweep"]
    jobs = sorted((run.info.run_name, run.info.status) for run in runs if run is not sweep)
    ended = "FAILED" if "Tracking" in harm else "KILLED"
    done = [(f"seed {seed}", "FINISHED") for seed in (0, 1, 2)]
    assert jobs == sorted([*done, ("seed 1", ended)])
    assert {run.data.tags["mlflow.parentRunId"] for run in runs if run is not sweep} == {sweep.info.run_id}
    assert sweep.info.status == "FINISHED"


def test_mistakes_in_late_jobs_are_all_found_before_the_first_starts(start: Start) -> None:
    swept = ["backbone=tiny,nope", "tracking.system_metrics_interval=5,-1"]
    out, error = (process := start("pass", "-m", *swept)).communicate()
    assert process.returncode == 1
    assert "RUN" not in out
    assert "of 4 jobs some cannot run" in error
    assert "backbone/nope" in error
    assert "(2 jobs, the first: backbone=nope system_metrics_interval=5)" in error
    assert "tracking.system_metrics_interval must be above 0 seconds; it is -1 (backbone=tiny" in error


def test_editing_a_file_changes_no_job_of_a_sweep_that_runs(start: Start, tmp_path: Path) -> None:
    """The first job itself breaks the file that all were composed from."""
    file = tmp_path / "mine" / "experiment" / "x.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nstudy: phantom\ngenerate:\n  candidates: 901\n")
    body = f"""print("VALUE", resolved["generate"]["candidates"])
            open({str(file)!r}, "w").write("no: such: yaml")"""
    out, error = (process := start(body, "--config-dir", "mine", "-m", "seed=0,1", "experiment=x")).communicate()
    assert process.returncode == 0, error
    assert re.findall(r"VALUE (\d+)", out) == ["901", "901"]
    assert "'--config-dir=mine', 'seed=1'" in out


def test_a_running_sweep_is_not_started_twice(start: Start, tmp_path: Path) -> None:
    body = "import os; os.path.exists('second') or (print('ASLEEP', flush=True), time.sleep(600))"
    with start(body, "-m", "seed=0,1") as process:
        wait_for(process, "ASLEEP")
        (tmp_path / "second").touch()
        _, error = (other := start(body, "-m", "seed=0,1")).communicate()
        process.terminate()
    assert other.returncode == 1
    assert "this sweep is running in another process" in error


def test_a_sweep_of_a_file_is_rerun_job_by_job(start: Start) -> None:
    """The command that is printed for a failed job runs that job, and no sweep."""
    body = "import synthvision.tracking.config as t; resolved['classifier']['lr'] == 1e-4 and t.TrackingConfig('')"
    _, error = (process := start(body, "+sweeps=phantom_grid", "optimizer=adam")).communicate()
    assert process.returncode == 1
    (command,) = re.findall(r"rerun: synthvision (.*)", error)
    out, _ = start(body, *shlex.split(command)).communicate()
    assert len(re.findall("RUN classify phantom 0", out)) == 1


def test_the_ui_answers(tracking_root: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "synthvision", "stage=ui", f"stage.port={port}", f"tracking.root={tracking_root}"]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=tmp_path, stdout=null, stderr=null) as process:
        try:
            assert answers(f"http://127.0.0.1:{port}/health", process)
        finally:
            process.terminate()


def answers(address: str, process: subprocess.Popen[bytes]) -> bool:
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            time.sleep(0.2)
    return False
