"""An arm of two phases: what it leaves, and that a run stopped in either phase ends with the same files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, MakeManifest
from hydra import compose, initialize_config_dir

from synthvision.classification import module
from synthvision.cli import study_of
from synthvision.manifest import EXTERNAL, Manifest, Record
from synthvision.stages.classify import FIRST, run_classify
from synthvision.stages.context import Context
from synthvision.study import Arm, Phase, Study

SMALL = [
    "classifier.model.image_size=16",
    "classifier.model.embed_dim=16",
    "classifier.model.depth=1",
    "classifier.model.heads=2",
    "classifier.model.weights=null",
    "classifier.epochs=2",
    "classifier.batch_size=4",
]
ARM = Arm("x", ["guides"], before=Phase(["synthetic"], epochs=3, lr=2e-3))


@pytest.fixture
def given(tmp_path: Path, make_manifest: MakeManifest) -> Context:
    """Folders of `prepare` and `review` with images that exist."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        study: Study = study_of(compose("config", [f"root={tmp_path}", "study=.", *SMALL]))
    splits = ["guide", "guide", "train", "train", "val", "val", "", ""]
    images = make_manifest(n=len(splits))
    rows = [replace(record, split=splits[number % len(splits)]) for number, record in enumerate(images)]
    real = [row for row in rows if row.split and not (row.split == "guide" and row.label == "normal")]
    made = [replace(r, origin="synthetic", decision="accept") for r in rows if not r.split and r.label == "lesion"]
    before = {"prepare": tmp_path / "prepare", "review": tmp_path / "review"}
    for name, records in (("prepare", real), ("review", made)):
        Manifest(tuple(records), study.folder).write(before[name] / "manifest.csv")
    return Context(replace(study, arm=ARM), tmp_path / "classify", before, None, "")


def files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and "work" not in file.relative_to(folder).parts
    }


def test_the_second_phase_goes_on_from_the_first_and_both_are_kept(given: Context) -> None:
    result = run_classify(given)
    assert set(result.metrics) >= {"best/val/loss", "first/val/loss", "threshold"}
    assert min(result.metrics).startswith("best/val/")  # what MLflow's compare page draws at once
    assert len((given.out / "history.csv").read_text().splitlines()) == 1 + 2
    assert len((given.out / FIRST / "history.csv").read_text().splitlines()) == 1 + 3
    seen = Manifest.read(given.out / "training.csv", given.study.folder)
    assert sorted((r.label, r.origin, r.split) for r in seen) == [
        ("lesion", "real", "guide"), ("lesion", "real", "guide"), ("lesion", "synthetic", "train"),
        ("lesion", "synthetic", "train"), ("normal", "real", "train"), ("normal", "real", "train"),
    ]  # fmt: skip
    first, last = (json.loads((given.out / p / "weights/model.json").read_text()) for p in (FIRST, "."))
    assert (first["training"]["epochs"], first["training"]["lr"]) == (3, 2e-3)
    assert (last["training"]["epochs"], last["training"]["lr"]) == (2, given.study.classifier.lr)


def test_labels_and_pictures_of_test_sets_change_nothing_that_is_chosen(given: Context, tmp_path: Path) -> None:
    """Weights, epoch, threshold, temperature and the metrics that runs are compared by: the same without test sets.

    The test images do not even exist, so that reading one fails.
    """
    run_classify(given)
    real = given.manifest("prepare")
    for number, labels in enumerate((("lesion", "normal"), ("normal", "lesion"))):
        records = [
            Record(f"{split}-{index}", "none.png", "0" * 64, label, "real", split, "elsewhere", "a patient")
            for split in ("test", EXTERNAL)
            for index, label in enumerate(labels)
        ]
        before = {**given.before, "prepare": tmp_path / f"prepare {number}"}
        (real + Manifest(tuple(records), real.root)).write(before["prepare"] / "manifest.csv")
        poisoned = replace(given, out=tmp_path / f"poisoned {number}", before=before)
        run_classify(poisoned)
        assert files(poisoned.out) == files(given.out)


@pytest.mark.parametrize(("lr", "epoch"), [(2e-3, 1), (5e-4, 0), (5e-4, 1)])
def test_stopped_in_either_phase_it_ends_with_the_files_of_an_undisturbed_run(
    lr: float, epoch: int, given: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_classify(given)
    stopped = replace(given, out=tmp_path / "stopped")
    whole = module.Classifier.training_step

    def fail(self: module.Classifier, batch: module.Batch) -> object:
        if (self.config.lr, batch.epoch) == (lr, epoch):
            raise KeyError("stopped")
        return whole(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module.Classifier, "training_step", fail)
        with pytest.raises(KeyError, match="stopped"):
            run_classify(stopped)
    steps: list[tuple[float, int]] = []

    def count(self: module.Classifier, batch: module.Batch) -> object:
        steps.append((self.config.lr, batch.epoch))
        return whole(self, batch)

    monkeypatch.setattr(module.Classifier, "training_step", count)
    run_classify(stopped)
    assert min(steps) == (lr, epoch) if lr == 5e-4 else steps[0] == (lr, epoch)  # nothing finished is done again
    assert files(stopped.out) == files(given.out)
