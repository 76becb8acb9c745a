"""The command as users run it: its exit codes, its words when something is wrong, and how it stops.

Stages of minutes would only slow these tests, so a study of two fields and a `run` of a few lines stand in for the
pipeline; everything around them, from Hydra to the tracking store, is real.
"""

import os
import re
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

    def run(study, stage, resolved, overrides, tracking):
        from synthvision.tracking.store import open_store
        with open_store(tracking, study.study).pipeline_run(f"seed {study.seed}", {}, "", {}):
            print("RUN", stage, study.study, study.seed, overrides, flush=True)
            BODY

    sys.modules["synthvision.study"] = SimpleNamespace(Study=Study)
    sys.modules["synthvision.pipeline"] = SimpleNamespace(run=run)
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


def statuses(root: Path) -> dict[str, str]:
    """Return each run's status by its name."""
    store = TrackingConfig(str(root))
    runs = mlflow.MlflowClient(store.uri).search_runs([open_store(store, "phantom").experiment_id])
    return {str(run.info.run_name): run.info.status for run in runs}


def synthvision(*arguments: str, folder: Path, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "synthvision", *arguments]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True)


def test_help_names_every_group_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = synthvision("--help", folder=tmp_path, options=("-X", "importtime"))
    assert done.returncode == 0, done.stderr
    for group in (folder.name for folder in (cli.ROOT / "conf").iterdir() if folder.is_dir()):
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
    assert statuses(tracking_root) == {"seed 0": "FINISHED", "seed 1": "FAILED", "seed 2": "FINISHED"}


@pytest.mark.parametrize("body", ["sys.exit(0)", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_stopped_sweep_is_no_success(body: str, start: Start, tracking_root: Path) -> None:
    process = start(body, "-m", "seed=0,1")
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert statuses(tracking_root) == {"seed 0": "KILLED"}


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
