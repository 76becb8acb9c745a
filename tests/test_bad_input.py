"""What users get wrong: each mistake is an error that names the key or file, the rule and the value."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from test_metrics import HPV, study
from test_prepare import CLASSES as KINDS
from test_prepare import Files

from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel, load_classifier, save_classifier
from synthvision.classification.threshold import balanced_threshold
from synthvision.data.intake import GuideSource, TableSource
from synthvision.data.leakage import LeakError
from synthvision.evaluation.evaluate import Choices, evaluate
from synthvision.manifest import Manifest, Record
from synthvision.predictions import Predictions
from synthvision.study import Arm

CLASSES = ("HPV", "Normal")
CONFIG = ModelConfig("vit_tiny_patch16_224", 16, patch_size=8, embed_dim=16, depth=1, heads=2)


def test_one_class_only_in_the_test_set() -> None:
    predictions, manifest = study(HPV, CLASSES)
    alone = manifest.where(label="HPV")
    kept = [index for index, label in enumerate(predictions.label) if label == "HPV"]
    rows = tuple(predictions.image_id[index] for index in kept)
    made = Predictions(rows, ("HPV",) * len(kept), CLASSES, predictions.probability[kept])
    with pytest.raises(ValueError, match=r"each class needs a test image.*\['Normal'\]"):
        evaluate(made, alone, 0.5, "HPV")


def test_a_class_of_the_weights_that_the_data_lack() -> None:
    predictions, manifest = study(HPV, CLASSES)
    wider = np.concatenate([predictions.probability, np.zeros((len(predictions), 1))], axis=1)
    made = Predictions(predictions.image_id, predictions.label, (*CLASSES, "Other"), wider)
    with pytest.raises(ValueError, match=r"each image a class of the weights; not so for \['Other'\]"):
        evaluate(made, manifest, 0.5, "HPV")


@pytest.mark.parametrize("value", [float("nan"), -0.1, 1.2])
def test_probabilities_that_are_none(value: float) -> None:
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\] with rows that sum to 1.*'i7'"):
        Predictions(("i7",), ("HPV",), CLASSES, np.array([[value, 1 - value]]))


def test_one_class_only_in_validation() -> None:
    with pytest.raises(ValueError, match="a threshold needs positives and negatives; 3 of 3 are positive"):
        balanced_threshold(np.array([0.1, 0.5, 0.9]), np.ones(3, dtype=bool))


def test_an_empty_arm() -> None:
    with pytest.raises(ValueError, match=r"arm\.positives must be one or more of .*; it is \[\]"):
        Arm("nothing", [])


def test_labels_with_trailing_spaces() -> None:
    with pytest.raises(ValueError, match=r"image 'a': label must be not empty, no spaces at its ends; it is 'HPV '"):
        Record("a", "a.png", "0" * 64, "HPV ", "real")


def test_a_folder_s_label_with_a_trailing_space(tmp_path: Path) -> None:
    files = Files(tmp_path)
    guides = GuideSource(str(tmp_path / "guides"), "lesion ")
    with pytest.raises(ValueError, match=r"labels must be among the classes .*; these are not: \['lesion '\]"):
        files.prepare(tmp_path / "study", guides=guides)


def test_a_patient_in_two_splits_of_the_user_s_table(tmp_path: Path) -> None:
    files = Files(tmp_path)
    rows = list(csv.reader((tmp_path / "labels.csv").read_text().splitlines()))
    sides = ["split", *(("train", "test")[number % 2] for number in range(len(rows) - 1))]  # two pictures per patient
    text = "\n".join(",".join([*row, side]) for row, side in zip(rows, sides, strict=True))
    (tmp_path / "labels.csv").write_text(text + "\n")
    labels = dict(zip(KINDS, KINDS, strict=True))
    columns = {"patient": "patient", "split": "split"}
    source = TableSource(str(tmp_path / "labels.csv"), "file", "label", labels, columns=columns)
    with pytest.raises(LeakError, match=r"20 leaks:\npatient: lesion-\w+ \(test\) and lesion-\w+ \(train\)") as error:
        files.prepare(tmp_path / "study", sources=[source])
    assert "dataset.leaks=drop" in str(error.value)
    assert "Jane Doe" not in str(error.value)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_prevalence_of_nobody_or_everybody(value: float) -> None:
    with pytest.raises(ValueError, match=rf"evaluate\.prevalences must lie between 0 and 1.*there is {value}"):
        Choices(prevalences=[value])


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    save_classifier(TrainedModel(build(CONFIG, 2), CONFIG, CLASSES, 0.5, 0), {}, tmp_path)
    file = tmp_path / "model.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"model": {**described["model"], "embed_dim": 32}}))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit this architecture.*of another shape"):
        load_classifier(tmp_path)


def test_images_twice_in_a_manifest() -> None:
    record = Record("a", "a.png", "0" * 64, "HPV", "real")
    with pytest.raises(ValueError, match=r"image_id must be unique in a manifest; these are not: \['a'\]"):
        Manifest((record, record), Path())


def test_only_evaluation_and_its_report_select_the_test_split() -> None:
    """Epoch, threshold, temperature and probes are made by code that cannot name the test split."""
    package = ROOT / "src" / "synthvision"
    files = [*package.glob("classification/*.py"), *package.glob("stages/*.py"), *package.glob("diffusion/*.py")]
    naming = {file.relative_to(package).as_posix() for file in files if 'split="test"' in file.read_text()}
    assert naming == {"stages/evaluate.py", "stages/report.py"}
    loose = {
        file.name for file in package.glob("classification/*.py") if '"test"' in file.read_text().replace("'", '"')
    }
    assert loose == set()
