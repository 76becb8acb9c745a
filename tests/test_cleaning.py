"""What no run refers to is shown, and removed on demand; everything else stays."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from synthvision import artifact
from synthvision.tracking.cleaning import find, remove
from synthvision.tracking.config import TrackingConfig
from synthvision.tracking.store import Store, open_store


@pytest.fixture
def store(tracking_root: Path) -> Store:
    return open_store(TrackingConfig(str(tracking_root), system_metrics=False), "phantom")


def stage(store: Store, root: Path, name: str, number: int, inputs: dict[str, str] | None = None) -> str:
    """Leave what a stage leaves: a run with an artifact, and a finished folder of 1,000 bytes."""
    fingerprint = f"{number:016x}"
    folder = root / "phantom" / name / fingerprint
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "model.safetensors").write_bytes(bytes(1_000))
    with store.stage_run(name, {}, "", {"fingerprint": fingerprint}) as run:
        run.log_file(folder / "weights" / "model.safetensors")
    record = artifact.StageRecord(name, fingerprint, {}, inputs or {}, f"output {number}", run.run_id, "0", 1.0)
    artifact.finish(folder, record)
    return run.run_id


def test_only_what_no_run_refers_to_goes(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "studies"
    prepared = stage(store, root, "prepare", 1)
    stage(store, root, "classify", 2, {"prepare": "output 1"})
    lost = stage(store, root, "classify", 3, {"prepare": "output 1"})
    unused = stage(store, root, "prepare", 4)
    stage(store, root, "dreambooth", 5)
    for run_id in (prepared, lost, unused):
        mlflow.MlflowClient().delete_run(run_id)
    killed, forgotten = (root / "phantom" / "classify" / f"{number:016x}" for number in (6, 7))
    for folder in (killed, forgotten, root / "phantom" / "classify" / f"{2:016x}"):
        (folder / "work").mkdir(parents=True)
        (folder / "work" / "last.ckpt").write_bytes(bytes(300))
    with store.stage_run("classify", {}, "", {"fingerprint": killed.name}):
        pass
    (root / "phantom" / "ledger").mkdir()
    (root / "phantom" / "ledger" / "test.jsonl").write_text("{}\n")
    (root / "phantom" / "dreambooth" / f"{5:016x}" / ".x.part").write_bytes(bytes(70))

    before = sorted(path for path in root.rglob("*"))
    found = find(store.config, "phantom", root)
    assert sorted(path for path in root.rglob("*")) == before
    studies = {str(each.path.relative_to(root / "phantom")): each for each in found if root in each.path.parents}
    assert {name: each.why for name, each in studies.items()} == {
        f"classify/{3:016x}": "its run is deleted",
        f"prepare/{4:016x}": "its run is deleted",
        f"classify/{7:016x}": "unfinished, and its run is deleted",
        f"classify/{2:016x}/work": "checkpoints of a finished stage",
        f"dreambooth/{5:016x}/.x.part": "half-written file of a finished stage",
    }
    assert studies[f"classify/{2:016x}/work"].size == 300
    assert 1_000 < studies[f"classify/{3:016x}"].size < 2_000
    artifacts = {each.path.name: each for each in found if root not in each.path.parents}
    assert set(artifacts) == {prepared, lost, unused}

    freed, left = remove(found)
    assert left == []
    assert freed == sum(each.size for each in found)
    assert find(store.config, "phantom", root) == []
    weights = sorted(path.relative_to(root / "phantom").as_posix() for path in root.rglob("*.safetensors"))
    assert weights == [f"{name}/{number:016x}/weights/model.safetensors" for name, number in
                       (("classify", 2), ("dreambooth", 5), ("prepare", 1))]  # fmt: skip
    assert (killed / "work" / "last.ckpt").exists()  # its run is there: the same command resumes it
    assert (root / "phantom" / "ledger" / "test.jsonl").exists()


def test_what_is_at_work_is_left(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "studies"
    stage(store, root, "prepare", 1)
    mlflow.MlflowClient().delete_run(stage(store, root, "classify", 2))
    folder = root / "phantom" / "classify" / f"{2:016x}"
    with FileLock(folder.with_suffix(".lock")):
        _, left = remove([each for each in find(store.config, "phantom", root) if root in each.path.parents])
    assert left == [folder]
    assert artifact.finished(folder) is not None


def test_a_store_that_does_not_belong_to_the_folders_cleans_nothing(store: Store, tmp_path: Path) -> None:
    stage(store, tmp_path / "studies", "prepare", 1)
    other = TrackingConfig(str(tmp_path / "other"), system_metrics=False)
    (tmp_path / "other").mkdir()
    shutil.copy(store.config.database, other.database)
    with mlflow.MlflowClient(other.uri)._tracking_client.store.engine.begin() as connection:
        connection.exec_driver_sql("delete from tags")
        connection.exec_driver_sql("update runs set lifecycle_stage = 'deleted'")
    with pytest.raises(ValueError, match=r"has no run of any of the 1 stage folders.*Set tracking\.root"):
        find(other, "phantom", tmp_path / "studies")


def test_a_registered_model_stays(store: Store, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    with store.stage_run("classify", {}, "", {}) as run:
        pass
    models = []
    for name in ("kept", "lost"):
        model = client.create_logged_model(store.experiment_id, name, run.run_id)
        (tmp_path / "file").write_text("x")
        client.log_model_artifact(model.model_id, str(tmp_path / "file"))
        models.append(model.model_id)
    client.create_registered_model("ward")
    client.create_model_version("ward", f"models:/{models[0]}", model_id=models[0])
    client.delete_run(run.run_id)
    found = {each.path.name for each in find(store.config, "phantom", tmp_path / "studies")}
    assert models[0] not in found
    assert models[1] in found


def test_the_command_says_before_it_does(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "studies"
    stage(store, root, "prepare", 1)
    mlflow.MlflowClient().delete_run(stage(store, root, "classify", 2))
    folder = root / "phantom" / "classify" / f"{2:016x}"

    def clean(*arguments: str) -> str:
        command = [sys.executable, "-m", "synthvision", "stage=clean", f"tracking.root={store.config.root}", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    said = clean()
    assert f"0.0 MB  its run is deleted: studies/phantom/classify/{2:016x}" in said
    assert "2 of no run, 0.0 MB; nothing was removed" in said
    assert folder.exists()
    assert "removed 2, 0.0 MB" in clean("stage.remove=true")
    assert not folder.exists()
    assert "has its run" in clean()
