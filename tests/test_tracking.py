"""What runs leave in the store, however they end."""

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from conftest import MakeManifest
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel, save_classifier
from synthvision.classification.reference import fit_reference, write_reference
from synthvision.data.images import load_batch
from synthvision.manifest import Manifest
from synthvision.metric_logger import MetricLogger, Row
from synthvision.tracking.config import RegistryConfig, TrackingConfig, flatten
from synthvision.tracking.process import git_commit
from synthvision.tracking.registry import register
from synthvision.tracking.store import Store, open_store

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def store(tracking_root: Path) -> Store:
    return open_store(TrackingConfig(str(tracking_root), system_metrics=False), "phantom")


def status(run_id: str) -> str:
    return str(mlflow.get_run(run_id).info.status)


def test_a_stage_is_a_child_of_its_pipeline(store: Store) -> None:
    with store.pipeline_run("phantom seed 0", {"seed": 0}, "seed: 0\n", {"arm": "real_only"}) as parent:
        with store.stage_run("classify", {"classifier": {"lr": 1e-3}}, "a: 1\n", {"arm": "real_only"}) as child:
            assert status(child.run_id) == "RUNNING"
        assert status(child.run_id) == "FINISHED"
    stage, pipeline = mlflow.get_run(child.run_id), mlflow.get_run(parent.run_id)
    assert pipeline.info.status == "FINISHED"
    assert pipeline.info.run_name == "phantom seed 0"
    assert stage.data.tags["mlflow.parentRunId"] == parent.run_id
    assert {key: stage.data.tags[key] for key in ("study", "stage", "arm")} == {
        "study": "phantom",
        "stage": "classify",
        "arm": "real_only",
    }
    assert pipeline.data.tags["stage"] == "pipeline"
    assert stage.data.tags["git_commit"] == git_commit()
    assert stage.data.params == {"classifier.lr": "0.001"}
    assert mlflow.artifacts.load_text(f"{stage.info.artifact_uri}/config.yaml") == "a: 1\n"


def test_a_stage_runs_alone_too(store: Store) -> None:
    with store.stage_run("prepare", {}, "", {}) as run:
        pass
    assert "mlflow.parentRunId" not in mlflow.get_run(run.run_id).data.tags


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_exception_closes_all_open_runs(store: Store, error: type[BaseException], expected: str) -> None:
    ids = []

    def fail() -> None:
        with store.pipeline_run("p", {}, "", {}) as parent, store.stage_run("s", {}, "", {}) as child:
            ids.extend([parent.run_id, child.run_id])
            raise error

    with pytest.raises(error):
        fail()
    assert [status(run_id) for run_id in ids] == [expected, expected]
    assert mlflow.active_run() is None


def test_a_run_left_by_kill_9_is_closed_by_the_next_start_and_a_living_one_is_not(tracking_root: Path) -> None:
    code = """
        import sys, time
        from synthvision.tracking.config import TrackingConfig
        from synthvision.tracking.store import open_store
        with open_store(TrackingConfig(sys.argv[1], system_metrics=False), "phantom").stage_run("s", {}, "", {}) as run:
            print(run.run_id, flush=True)
            time.sleep(600)
    """
    config = TrackingConfig(str(tracking_root), system_metrics=False)
    command = [sys.executable, "-c", textwrap.dedent(code), str(tracking_root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout is not None
            run_id = process.stdout.readline().strip()
            open_store(config, "phantom")
            assert status(run_id) == "RUNNING"
        finally:
            process.kill()
    open_store(config, "phantom")
    assert status(run_id) == "KILLED"


def test_another_machine_s_run_is_left_alone(store: Store) -> None:
    with store.stage_run("s", {}, "", {}) as run:
        run.set_tags({"process": "elsewhere 1 0"})
        open_store(store.config, "phantom")
        assert status(run.run_id) == "RUNNING"


def test_first_starts_in_parallel(tmp_path: Path) -> None:
    code = "import sys; from synthvision.tracking.store import *; open_store(TrackingConfig(sys.argv[1]), sys.argv[2])"
    root = str(tmp_path / "mlruns")
    command = [sys.executable, "-c", code, root]
    started = [subprocess.Popen([*command, study], env=ENVIRONMENT) for study in ("a", "a", "b")]
    assert [process.wait() for process in started] == [0, 0, 0]


def test_parameters_are_flat_long_and_many(store: Store) -> None:
    few = {"_target_": "a.B", "x": 1, "none": {}}
    values = {"long": "x" * 7_000, "few": few, "many": {str(i): i for i in range(150)}}
    with store.stage_run("s", values, "", {}) as run:
        pass
    params = mlflow.get_run(run.run_id).data.params
    assert params["long"] == "x" * 6_000
    assert params["few.x"] == "1"
    assert params["many.149"] == "149"
    assert len(params) == 1 + 2 + 150


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "_target_": "x"}) == {"a.b.c": 1, "d": [1, 2]}


def test_metrics_keep_their_axis(store: Store) -> None:
    values = [1 / (epoch + 1) for epoch in range(1_500)]
    with store.stage_run("s", {}, "", {}) as run:
        run.write([("val/loss", value, 0, epoch) for epoch, value in enumerate(values)])
        run.log_metrics({"test/auc": 0.5})
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.run_id, "val/loss")
    assert [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)] == [
        *enumerate(values)
    ]
    assert mlflow.get_run(run.run_id).data.metrics["test/auc"] == 0.5


def test_a_data_set_is_known_by_its_digest_and_not_by_its_rows(store: Store, make_manifest: MakeManifest) -> None:
    manifest = make_manifest(patient="anonymous-7")
    with store.stage_run("s", {}, "", {}) as run:
        run.log_manifest(manifest, "phantom-train", "training")
    inputs = mlflow.get_run(run.run_id).inputs.dataset_inputs
    assert [(i.dataset.name, i.tags[0].value) for i in inputs] == [("phantom-train", "training")]
    assert manifest.digest().startswith(inputs[0].dataset.digest)
    assert "anonymous-7" not in str(inputs[0].dataset.to_dictionary())
    found = mlflow.search_runs(experiment_names=["phantom"], filter_string="datasets.name = 'phantom-train'")
    assert list(found["run_id"]) == [run.run_id]


def test_files_and_notes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "a.txt").write_text("a")
    with store.stage_run("s", {}, "", {}) as run:
        run.log_file(tmp_path / "grids")
        run.log_file(tmp_path / "grids" / "a.txt", "notes")
        run.note("**made** by `synthvision`")
    listed = {
        item.path
        for folder in ("grids", "notes")
        for item in mlflow.artifacts.list_artifacts(run_id=run.run_id, artifact_path=folder)
    }
    assert listed == {"grids/a.txt", "notes/a.txt"}
    assert mlflow.get_run(run.run_id).data.tags["mlflow.note.content"] == "**made** by `synthvision`"


class Line(LightningModule):
    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fail_at = fail_at

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if index == self.fail_at:
            raise ValueError("failed as asked")
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(logger: MetricLogger, fail_at: int, folder: Path) -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Line(fail_at), DataLoader(torch.ones(8, 1)))


def test_lightning_logs_into_the_run_and_leaves_its_status(store: Store, tmp_path: Path) -> None:
    with store.stage_run("classify", {}, "", {}) as run:
        fit(run.lightning_logger(), fail_at=-1, folder=tmp_path)
        assert status(run.run_id) == "RUNNING"
    history = mlflow.MlflowClient().get_metric_history(run.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(8))
    assert set(mlflow.get_run(run.run_id).data.metrics) == {"train/loss"}


def test_metrics_before_a_failure_are_kept(store: Store, tmp_path: Path) -> None:
    ids = []

    def fail() -> None:
        with store.stage_run("classify", {}, "", {}) as run:
            ids.append(run.run_id)
            fit(run.lightning_logger(), fail_at=5, folder=tmp_path)

    with pytest.raises(ValueError, match="as asked"):
        fail()
    assert status(ids[0]) == "FAILED"
    assert len(mlflow.MlflowClient().get_metric_history(ids[0], "train/loss")) == 5


def test_the_logger_holds_nothing_back() -> None:
    written: list[Row] = []
    logger = MetricLogger("run", written.extend)
    logger.log_metrics({"loss": 1.0, "epoch": 0}, 3)
    assert [(name, value, step) for name, value, _, step in written] == [("loss", 1.0, 3)]


@pytest.fixture
def weights(tmp_path: Path, make_manifest: MakeManifest) -> Path:
    torch.manual_seed(0)
    config = ModelConfig("vit_tiny_patch16_224", 16, patch_size=8, embed_dim=32, depth=1, heads=2)
    trained = TrainedModel(build(config, 2).eval(), config, ("lesion", "normal"), 0.5, 0)
    save_classifier(trained, {}, tmp_path / "weights")
    known = make_manifest(n=8)
    write_reference(fit_reference(trained, load_batch(known, 16), load_batch(known, 16)), tmp_path / "weights")
    return tmp_path / "weights"


def classify(store: Store, weights: Path, val: Manifest, loss: float, arm: str = "a", fails: bool = False) -> str:
    """Leave a run as `stage=classify` does, and return its id."""
    with suppress(RuntimeError), store.stage_run("classify", {}, "", {"arm": arm, "seed": 0}) as run:
        run.log_metrics({"best/val/loss": loss, "best/val/auroc": 1 - loss, "threshold": loss})
        run.log_manifest(val, "phantom validation", "validation")
        run.log_classifier(weights, ("lesion", "normal"), np.zeros((1, 16, 16, 3), np.uint8))
        if fails:
            raise RuntimeError
    return run.run_id


def test_the_best_by_validation_gets_the_alias_and_a_better_one_takes_it(
    store: Store, weights: Path, make_manifest: MakeManifest
) -> None:
    val, other = make_manifest(n=2), make_manifest(n=3)
    classify(store, weights, other, 0.01)  # validated on other images: says nothing beside the rest
    worse, best = (classify(store, weights, val, loss) for loss in (0.4, 0.2))
    control = classify(store, weights, val, 0.3, arm="control")
    classify(store, weights, val, 0.1, fails=True)
    asked = RegistryConfig("phantom")
    done = register(store, asked)
    assert (done.run_id, done.value, done.among, done.uri) == (best, 0.2, 3, "models:/phantom@best")
    assert register(store, asked) == done  # no second version of the same run
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("phantom", "best")
    assert (version.run_id, version.tags["chosen_by"], version.tags["arm"]) == (best, "best/val/loss", "a")
    assert len(mlflow.pyfunc.load_model(done.uri).predict(np.zeros((1, 16, 16, 3), np.uint8))) == 1
    assert register(store, RegistryConfig("phantom", "control", arm="control")).run_id == control
    assert register(store, RegistryConfig("phantom", metric="best/val/auroc", greatest=True)).run_id == best
    assert register(store, RegistryConfig("phantom", "worst", greatest=True)).run_id == worse
    newest = classify(store, weights, val, 0.1)
    assert register(store, asked).run_id == newest
    assert client.get_model_version_by_alias("phantom", "best").version == 4


def test_what_cannot_be_registered_is_named(store: Store, weights: Path, make_manifest: MakeManifest) -> None:
    with pytest.raises(ValueError, match=r"study phantom has no finished classifier of arm x.*stage=classify first"):
        register(store, RegistryConfig("phantom", arm="x"))
    classify(store, weights, make_manifest(n=2), 0.4)
    with pytest.raises(ValueError, match=r"stage\.metric must be one of \['best/val/auroc', 'best/val/loss'\]"):
        register(store, RegistryConfig("phantom", metric="best/val/nothing"))
    for metric in ("test/accuracy", "best/train/loss", ""):
        with pytest.raises(ValueError, match=r"stage\.metric must be one of validation.*it is '" + metric):
            RegistryConfig("phantom", metric=metric)
    for key, value in (("model", "a/b"), ("alias", "latest"), ("alias", "v2")):
        with pytest.raises(ValueError, match=rf"stage\.{key} must begin with a letter.*it is '{value}'"):
            RegistryConfig(**{"model": "phantom", key: value})


def test_the_logged_classifier_predicts_as_the_trained_one(
    store: Store, tmp_path: Path, make_manifest: MakeManifest
) -> None:
    torch.manual_seed(0)
    config = ModelConfig("vit_tiny_patch16_224", 16, patch_size=8, embed_dim=32, depth=1, heads=2)
    trained = TrainedModel(build(config, 2).eval(), config, ("lesion", "normal"), 0.5, 0)
    save_classifier(trained, {}, tmp_path / "weights")
    known = make_manifest(n=8)
    write_reference(fit_reference(trained, load_batch(known, 16), load_batch(known, 16)), tmp_path / "weights")
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    with store.stage_run("classify", {}, "", {}) as run:
        run.log_metrics({"best/val/loss": 0.25, "threshold": 0.5})
        run.log_classifier(tmp_path / "weights", trained.classes, images)
    (output,) = mlflow.get_run(run.run_id).outputs.model_outputs
    uri = f"models:/{output.model_id}"
    shown = mlflow.get_logged_model(output.model_id)
    assert (shown.name, shown.status.value) == ("classifier", "READY")
    assert {metric.key: metric.value for metric in shown.metrics} == {"best/val/loss": 0.25}
    for address in (uri, f"runs:/{run.run_id}/classifier"):
        model = mlflow.pyfunc.load_model(address)
        answer = model.predict(images)
        assert list(answer.columns) == ["lesion", "normal", "decision", "calibrated", "foreign", "quality"]
        assert set(answer["decision"]) <= {"lesion", "normal"}
        np.testing.assert_allclose(answer[["lesion", "normal"]].to_numpy(), trained.probabilities(images), atol=1e-6)
    assert model.metadata.signature.inputs.inputs[0].type == np.uint8
    np.testing.assert_array_equal(model.input_example, images)
    stored = Path(mlflow.artifacts.download_artifacts(uri))
    assert not [file.name for file in stored.rglob("*") if file.suffix in (".pkl", ".pickle", ".pt", ".bin")]


def test_system_metrics_are_sampled(tracking_root: Path) -> None:
    config = TrackingConfig(str(tracking_root), system_metrics_interval=0.05)
    with open_store(config, "phantom").stage_run("s", {}, "", {}) as run:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)"], check=True)
    assert any(name.startswith("system/") for name in mlflow.get_run(run.run_id).data.metrics)


def test_nothing_phones_home() -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_config_names_key_and_remedy() -> None:
    with pytest.raises(ValueError, match=r"tracking\.root=mlruns"):
        TrackingConfig("")
    with pytest.raises(ValueError, match=r"tracking\.ui must begin with http:// or https://.*it is 'localhost'"):
        TrackingConfig(ui="localhost")
    with pytest.raises(ValueError, match=r"tracking\.system_metrics_interval"):
        TrackingConfig(system_metrics_interval=0)


def test_the_ui_opens_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = TrackingConfig("runs").ui_command(port=5001)
    assert f"sqlite:///{tmp_path}/runs/mlflow.db" in command
    assert "5001" in command
