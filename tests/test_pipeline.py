"""The whole study through the real command with the shipped tiny weights, small enough for a minute."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run

from synthvision import artifact
from synthvision.data.images import load_batch
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions
from synthvision.stages.table import STAGES
from synthvision.tracking.config import TrackingConfig

SMALL = (
    "dataset.phantom.images={lesion: 60, normal: 80, other: 0}",
    "dataset.counts={lesion: {train: 10, val: 10, test: 20}, normal: {train: 30, val: 10, test: 20}}",
    "dreambooth.unet_steps=6",
    "dreambooth.text_steps=4",
    "dreambooth.class_images=4",
    "dreambooth.checkpoint_every=2",
    "dreambooth.sample_every=3",
    "generate.candidates=24",
    "generate.steps=4",
    "generate.batch_size=4",
    "review.accept=12",
    "review.min_change=0",
    "classifier.epochs=3",
    "tracking.system_metrics=false",
)
MADE = [name for name in STAGES if name != "report"]  # a report names runs, whose ids are new each time


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "synthvision", *SMALL, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder: Path, *overrides: str) -> str:
    process = start(folder, *overrides)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def finished(folder: Path) -> dict[str, artifact.StageRecord]:
    """Return the newest finished record of each stage."""
    files = sorted((folder / "studies" / "phantom").glob("*/*/stage.json"), key=lambda file: file.stat().st_mtime)
    records = [artifact.finished(file.parent) for file in files]
    return {record.stage: record for record in records if record}


def folder_of(folder: Path, stage: str) -> Path:
    return folder / "studies" / "phantom" / stage / finished(folder)[stage].fingerprint


def runs_of(folder: Path) -> list[Run]:
    client = mlflow.MlflowClient(TrackingConfig(str(folder / "mlruns")).uri)
    experiment = client.get_experiment_by_name("phantom")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    output = run(folder)
    assert "report.html" in output
    assert "95% interval" in output
    return folder


def test_every_stage_is_finished_and_tracked_below_one_parent(study: Path) -> None:
    assert set(finished(study)) == set(STAGES)
    runs = runs_of(study)
    parent = runs[0]
    children = [each for each in runs if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [each.data.tags["stage"] for each in children] == list(STAGES)
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert {record.run_id for record in finished(study).values()} == {each.info.run_id for each in children}
    assert {name: parent.data.tags[f"run/{name}"] for name in STAGES} == {
        name: record.run_id for name, record in finished(study).items()
    }
    assert 0 <= parent.data.metrics["test/accuracy"] <= 1
    assert parent.data.metrics["test/accuracy"] == next(
        each.data.metrics["test/accuracy"] for each in children if each.data.tags["stage"] == "evaluate"
    )
    client = mlflow.MlflowClient(TrackingConfig(str(study / "mlruns")).uri)
    logged = {each.path for each in client.list_artifacts(finished(study)["prepare"].run_id)}
    assert logged >= {"audit.html", "audit.json"}


def test_a_budget_is_a_run_of_its_own_below_the_training_it_is_read_off(tmp_path: Path) -> None:
    """As real training to that budget alone would be: same parameters, same metrics, same weights."""
    constant = ("stage=classify", "arm=real_only", "classifier.schedule=constant", "classifier.warmup_epochs=0")
    run(tmp_path, *constant, "classifier.budgets=[1,2]")
    run(tmp_path, *constant, "classifier.epochs=1")
    budgets = [each for each in runs_of(tmp_path) if each.data.tags["stage"] == "budget"]
    trained = [each for each in runs_of(tmp_path) if each.data.tags["stage"] == "classify"]
    assert [each.info.run_name.rpartition(", ")[2] for each in budgets] == ["epoch 1", "epoch 2"]
    assert {each.data.tags["mlflow.parentRunId"] for each in budgets} == {trained[-2].info.run_id}
    read_off, alone = budgets[0].data, trained[-1].data
    assert read_off.params == alone.params
    assert {name: alone.metrics[name] for name in read_off.metrics} == read_off.metrics
    assert "best/val/loss" in read_off.metrics
    assert read_off.tags["budget"] == "1"
    assert budgets[0].outputs.model_outputs
    root = tmp_path / "studies" / "phantom" / "classify"
    long, short = (root / each.data.tags["fingerprint"] for each in trained)
    for name in ("weights/model.safetensors", "weights/model.json", "history.csv", "validation.csv"):
        assert (long / "budgets" / "0001" / name).read_bytes() == (short / name).read_bytes()


def test_the_report_shows_what_generate_measured(study: Path) -> None:
    report = json.loads((folder_of(study, "report") / "report.json").read_text())
    measured = json.loads((folder_of(study, "generate") / "fidelity.json").read_text())
    assert report["fidelity"] == measured
    assert all("n" in figures and "n_real" in figures for figures in measured.values())


def test_classifier_in_the_store_predicts_what_evaluate_saw(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study)
    mlflow.set_tracking_uri(TrackingConfig(str(study / "mlruns")).uri)
    run_id = finished(study)["classify"].run_id
    client = mlflow.MlflowClient()
    outputs = client.get_run(run_id).outputs.model_outputs
    model = mlflow.pyfunc.load_model(f"models:/{outputs[0].model_id}")
    predictions = Predictions.read(folder_of(study, "evaluate") / "predictions.csv")
    manifest = Manifest.read(folder_of(study, "prepare") / "manifest.csv", study / "studies" / "phantom")
    images = load_batch(manifest.where(split="test"), 64)
    served = model.predict(images)[list(predictions.classes)].to_numpy()
    np.testing.assert_allclose(served, predictions.probability, atol=1e-5)  # another batch size, other last bits


def test_registering_the_best_run_is_one_stage(study: Path) -> None:
    output = run(study, "stage=register", "stage.model=ward")
    assert f"models:/ward@best is version 1, run {finished(study)['classify'].run_id}: best/val/loss" in output
    assert "mlflow models serve --model-uri models:/ward@best --env-manager local" in output


def test_second_start_repeats_nothing_and_does_not_open_the_test_set_again(study: Path) -> None:
    before = {name: record.run_id for name, record in finished(study).items()}
    output = run(study)
    assert output.count("reused") == len(STAGES)
    assert {name: record.run_id for name, record in finished(study).items()} == before
    (ledger,) = (study / "studies" / "phantom" / "ledger").glob("*.jsonl")
    assert len(ledger.read_text().splitlines()) == 1


def test_killed_at_any_stage_ends_with_the_files_of_an_undisturbed_run(study: Path, tmp_path: Path) -> None:
    """SIGKILL while each stage is at work, then one run to the end."""
    for stage, sign in KILL_WHEN.items():
        process = start(tmp_path)
        deadline = time.monotonic() + 300
        while not list((tmp_path / "studies" / "phantom" / stage).glob(sign)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{stage} left no {sign}"
            time.sleep(0.05)
        process.kill()
        process.communicate()
        assert stage not in finished(tmp_path)
    run(tmp_path)
    mine, theirs = finished(tmp_path), finished(study)
    assert {name: mine[name].output for name in MADE} == {name: theirs[name].output for name in MADE}
    assert {name: mine[name].fingerprint for name in MADE} == {name: theirs[name].fingerprint for name in MADE}
    statuses = {each.info.status for each in runs_of(tmp_path)}
    assert statuses == {"FINISHED", "KILLED"}


KILL_WHEN: Mapping[str, str] = {
    "prepare": "*/images/*.png",
    "dreambooth": f"*/{artifact.WORK}/last.ckpt",
    "generate": "*/images/*.png",
    "classify": f"*/{artifact.WORK}/last.ckpt",
}


def test_ctrl_c_leaves_a_killed_run_and_a_nonzero_exit_code(tmp_path: Path) -> None:
    process = start(tmp_path, "stage=prepare", "dataset.phantom.images={lesion: 60, normal: 3000, other: 0}")
    deadline = time.monotonic() + 120
    while not (tmp_path / "studies" / "phantom" / "phantom" / "0" / "images").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "run the same command to resume" in output


def test_opening_the_test_set_again_needs_a_reason_that_the_report_shows(study: Path) -> None:
    second = ("seed=1", "dataset.phantom.seed=0", "arm=real_only")  # another seed of training, the same test images
    trained = set((study / "studies" / "phantom" / "classify").glob("*/weights"))
    process = start(study, *second)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "evaluate.reopen" in output
    assert "Traceback" not in output
    assert set((study / "studies" / "phantom" / "classify").glob("*/weights")) == trained  # refused before the work
    run(study, *second, "evaluate.reopen=a second arm is compared")
    report = json.loads((folder_of(study, "report") / "report.json").read_text())
    assert [opening["reason"] for opening in report["openings"]] == ["", "a second arm is compared"]
    assert report["fidelity"] == {}  # nothing was generated for this arm
    prepared = list((study / "studies" / "phantom" / "prepare").glob("*/stage.json"))
    assert len(prepared) == 1  # shared by both arms


def test_an_arm_without_synthetic_images_has_no_such_stage(tmp_path: Path) -> None:
    process = start(tmp_path, "stage=generate", "arm=guides_only")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "arm=guides_only" in output
