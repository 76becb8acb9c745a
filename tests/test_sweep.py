"""Sweeps of real trainings by the real command: the same result by every launcher, a run of MLflow above its jobs."""

import hashlib
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from omegaconf import OmegaConf

from synthvision import cli
from synthvision.sweep.book import DONE, Book
from synthvision.tracking.config import TrackingConfig

SMALL = (
    "dataset.phantom.images={lesion: 60, normal: 80, other: 0}",
    "dataset.counts={lesion: {train: 10, val: 10, test: 20}, normal: {train: 30, val: 10, test: 20}}",
    "classifier.model={image_size: 16, patch_size: 8, embed_dim: 16, depth: 1, heads: 2, weights: null}",
    "stage=classify",
    "arm=real_only",
    "classifier.schedule=constant",
    "classifier.warmup_epochs=0",
    "tracking.system_metrics=false",
)
GRID = ("-m", *SMALL, "classifier.epochs=2", "classifier.budgets=[1,2]", "classifier.lr=1e-3,1e-4")


@pytest.fixture(scope="module", autouse=True)
def unchanged() -> Iterator[None]:
    """The command sets the process's signals and environment; give them back."""
    signals = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    environment, arguments, folder = dict(os.environ), sys.argv, Path.cwd()
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    for signum, handler in signals.items():
        signal.signal(signum, handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    os.chdir(folder)
    mlflow.set_tracking_uri(None)


def synthvision(folder: Path, *arguments: str) -> int:
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    sys.argv = ["synthvision", *arguments]
    return cli.main()


def sweep_folder(folder: Path) -> Path:
    (found,) = (folder / "studies" / ".sweeps").iterdir()
    return found


def results(folder: Path) -> dict[str, tuple[str, float]]:
    """Return what each job of the only sweep found: its weights' digest and its validation loss."""
    found = {}
    for file in sorted(sweep_folder(folder).glob("jobs/*.json")):
        outcome = Book(sweep_folder(folder)).outcome(file.stem)
        assert outcome is not None
        assert outcome.state == DONE, outcome.error
        (classify,) = [Path(each) for each in outcome.folders if Path(each).parent.name == "classify"]
        weights = (classify / "weights" / "model.safetensors").read_bytes()
        found[json.loads(file.read_text())["name"]] = (
            hashlib.sha256(weights).hexdigest(),
            outcome.metrics["best/val/loss"],
        )
    return found


def runs_of(folder: Path) -> list[Run]:
    client = mlflow.MlflowClient(TrackingConfig(str(folder / "mlruns")).uri)
    experiment = client.get_experiment_by_name("phantom")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "in_process"
    assert synthvision(folder, *GRID) == 0
    return folder


def test_a_sweep_is_a_run_above_its_jobs(in_process: Path) -> None:
    runs = runs_of(in_process)
    (parent,) = [run for run in runs if run.data.tags.get("stage") == "sweep"]
    jobs = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name for run in jobs} == {"lr=0.001", "lr=0.0001"} == set(results(in_process))
    assert {run.data.tags["job"] for run in jobs} == {
        file.stem for file in sweep_folder(in_process).glob("jobs/*.json")
    }
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in jobs:
        assert run.data.metrics["best/val/loss"] == results(in_process)[run.info.run_name][1]
    files = mlflow.MlflowClient(TrackingConfig(str(in_process / "mlruns")).uri).list_artifacts(
        parent.info.run_id, "summary"
    )
    assert "summary/table.csv" in {file.path for file in files}
    config = OmegaConf.load(mlflow.artifacts.download_artifacts(f"{parent.info.artifact_uri}/config.yaml"))
    assert config.classifier.budgets == [1, 2]
    assert config.hydra.sweeper.metric == "best/val/loss"
    assert "classifier.lr=1e-3,1e-4" in config.hydra.overrides.task


def test_its_view_finds_its_results(in_process: Path) -> None:
    client = mlflow.MlflowClient(TrackingConfig(str(in_process / "mlruns")).uri)
    experiment = client.get_experiment_by_name("phantom")
    (view,) = [text for key, text in experiment.tags.items() if key.startswith("mlflow.sharedViewState.")]
    state = json.loads(json.loads(view)["state"])
    shown = client.search_runs([experiment.experiment_id], state["searchFilter"])
    assert {run.info.run_name for run in shown} == {
        f"lr={lr}, epoch {epochs}" for lr in (0.001, 0.0001) for epochs in (1, 2)
    }


def test_a_second_start_does_nothing_and_says_the_best(in_process: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = len(runs_of(in_process))
    capfd.readouterr()
    assert synthvision(in_process, *GRID) == 0
    said = capfd.readouterr().err
    best = min(results(in_process), key=lambda name: results(in_process)[name][1])
    assert f"sweep: 2 of 2 done, best/val/loss {results(in_process)[best][1]:.4g} ({best})" in said
    assert len(runs_of(in_process)) == before


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_every_launcher_gives_the_same(launcher: str, in_process: Path, tmp_path: Path) -> None:
    shutil.copytree(in_process, tmp_path / launcher, ignore=shutil.ignore_patterns(".sweeps", "classify"))
    jobs = [] if launcher == "ray" else ["hydra.launcher.jobs=2"]
    assert synthvision(tmp_path / launcher, *GRID, f"hydra/launcher={launcher}", *jobs) == 0
    assert results(tmp_path / launcher) == results(in_process)


def test_a_search_prunes_resumes_and_counts_its_trials(
    in_process: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rates of which one learns and the others do not: what is behind the median after an epoch ends there."""
    folder = tmp_path / "search"
    shutil.copytree(in_process, folder, ignore=shutil.ignore_patterns(".sweeps", "classify"))
    search = (
        "-m", *SMALL, "hydra/sweeper=optuna", "classifier.epochs=3", "classifier.lr=tag(log, interval(1e-9, 1e-2))",
        "hydra.sweeper.startup=2", "hydra.sweeper.warmup=0",
    )  # fmt: skip
    assert synthvision(folder, *search, "hydra.sweeper.trials=3") == 0
    capfd.readouterr()
    assert synthvision(folder, *search, "hydra.sweeper.trials=6") == 0
    said = capfd.readouterr().err
    assert re.findall(r"sweep: (\d) of 6 done", said)[0] == "3"
    import optuna

    (study,) = optuna.get_all_study_names(f"sqlite:///{sweep_folder(folder) / 'optuna.db'}")
    trials = optuna.load_study(study_name=study, storage=f"sqlite:///{sweep_folder(folder) / 'optuna.db'}").trials
    assert len(trials) == 6
    states = [trial.state.name for trial in trials]
    assert set(states) == {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert len(trial.intermediate_values) == 3 if trial.state.name == "COMPLETE" else 1
        if trial.state.name == "COMPLETE":
            assert trial.value == min(trial.intermediate_values.values())
    trained = [each for each in (folder / "studies" / "phantom" / "classify").iterdir() if each.is_dir()]
    assert len(trained) == states.count("COMPLETE")  # a pruned trial leaves no checkpoint
    assert all((each / "stage.json").exists() for each in trained)
    jobs = [run for run in runs_of(folder) if re.match(r"trial \d lr=", run.info.run_name or "")]
    assert sorted(run.info.status for run in jobs) == sorted(
        {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[state] for state in states
    )


def test_a_search_refuses_what_it_cannot_draw_or_judge_by(in_process: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search = ("-m", *SMALL, "hydra/sweeper=optuna")
    for arguments, words in {
        ("seed=3",): "a search needs keys to choose",
        ("classifier.lr=interval(-1.0, 1.0)",): "classifier.lr must be above 0; it is -1.0",
        (
            "classifier.lr=1e-3,1e-4",
            "stage=pipeline",
        ): "stage=pipeline opens the test set, by which a search must not choose",
        ("classifier.lr=1e-3,1e-4", "hydra.sweeper.metric=test/auc"): "hydra.sweeper.metric must be one of validation",
    }.items():
        assert synthvision(in_process, *search, *arguments) == 1
        assert words in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "mistakes"),
    [
        (
            ("classifier.model.weights=null,/nope",),
            ["classifier.model.weights=/nope: no file /nope; put a safetensors file.* (weights=/nope)"],
        ),
        (
            ("classifier.model.architecture=vit_tiny_patch16_224,vit_typo_224",),
            ["classifier.model.architecture must be a model of timm; it is 'vit_typo_224'.* (architecture=vit_typo"],
        ),
        (
            ("stage=dreambooth", "arm=real_only,synthetic_only", "backbone.source=package:tiny,/nope"),
            ["stage=dreambooth has no part in arm=real_only.* (2 jobs, the first: arm=real_only ",
             "backbone 'tiny' cannot be loaded from '/nope'.* set backbone.source=FOLDER (arm=synthetic_only "],
        ),
        (("trainer=cpu,auto",), ["trainer.accelerator must be cpu in all jobs or in none.*launcher=submitit_local"]),
        (
            ("dataset=folders", SMALL[1], "dataset.folder=/nope,/nope2"),
            ["/nope.* (folder=/nope)", "/nope2.* (folder=/nope2)"],
        ),
    ],
)  # fmt: skip
def test_what_would_fail_late_is_listed_before_anything_starts(
    arguments: Sequence[str], mistakes: Sequence[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = "classifier.model={image_size: 16, patch_size: 8, embed_dim: 16, depth: 1, heads: 2}"
    assert synthvision(tmp_path, "-m", "stage=classify", "arm=real_only", model, *arguments) == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    for mistake in mistakes:
        assert re.search(".*".join(map(re.escape, mistake.split(".*"))), said), said
    assert not (tmp_path / "studies").exists()


def test_a_single_run_looks_for_its_weights_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert synthvision(tmp_path, *SMALL, "classifier.model.weights=/nope") == 1
    assert "classifier.model.weights=/nope: no file /nope; put a safetensors file" in capfd.readouterr().err
    assert not (tmp_path / "studies" / "phantom").exists()


def test_a_choice_by_test_results_is_refused_before_anything_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rates = ("-m", *SMALL, "stage=pipeline", "classifier.lr=1e-3,1e-4")
    assert synthvision(tmp_path, *rates) == 1
    said = capfd.readouterr().err
    assert "2 jobs would open the test set as real_only with tiny, seed 0, the first two: lr=0.001 and lr=0.0" in said
    assert "stage=classify" in said
    assert not (tmp_path / "studies").exists()
