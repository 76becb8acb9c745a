"""Training end to end on a toy question, and resuming it after every kind of interruption."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file

from synthvision.classification import module as module_file
from synthvision.classification.augment import AugmentConfig
from synthvision.classification.model import ModelConfig
from synthvision.classification.module import ClassifierConfig
from synthvision.classification.predict import load_classifier, predict
from synthvision.classification.threshold import RULES
from synthvision.classification.train import Trained, train
from synthvision.manifest import Manifest, Record

CLASSES = ("lesion", "normal")
SIDE = 16
MODEL = ModelConfig("vit_tiny_patch16_224", SIDE, 8, 16, 2, 2, attention_dropout=0.1, drop_path=0.1)
AUGMENT = AugmentConfig(flips=True, rotation=15, shift=0.06, brightness=0.1, blur=0.006, noise=0.02)
CONFIG = ClassifierConfig(MODEL, "adam", 3e-3, 4, 8, AUGMENT, label_smoothing=0.05, schedule="cosine", warmup_epochs=1)


def draw_manifest(root: Path, counts: dict[str, int], seed: int) -> Manifest:
    """Write images whose class is plain to see: a lesion is redder than a normal one."""
    rng, records = np.random.default_rng(seed), []
    for label, count in counts.items():
        for number in range(count):
            image = rng.integers(60, 130, (SIDE, SIDE, 3))
            image[..., 0] += 60 * (label == "lesion")
            name = f"{label}-{seed}-{number}"
            Image.fromarray(image.astype(np.uint8)).save(root / f"{name}.png")
            digest = hashlib.sha256((root / f"{name}.png").read_bytes()).hexdigest()
            records.append(Record(name, f"{name}.png", digest, label, "real"))
    return Manifest(tuple(records), root)


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> tuple[Manifest, Manifest]:
    root = tmp_path_factory.mktemp("images")
    return draw_manifest(root, {"lesion": 12, "normal": 14}, 0), draw_manifest(root, {"lesion": 6, "normal": 5}, 1)


def run(splits, folder: Path, config: ClassifierConfig = CONFIG, **options) -> Trained:
    return train(*splits, CLASSES, config, folder / "out", folder / "out/work", seed=3, **options)


@pytest.fixture(scope="module")
def undisturbed(splits, tmp_path_factory) -> Trained:
    return run(splits, tmp_path_factory.mktemp("undisturbed"))


def assert_same(first: Trained, second: Trained) -> None:
    for name in ("model.safetensors", "model.json"):
        assert (first.weights / name).read_bytes() == (second.weights / name).read_bytes()
    assert first.history == second.history
    assert first.val_predictions.text() == second.val_predictions.text()
    assert (first.best_epoch, first.threshold) == (second.best_epoch, second.threshold)


class InterruptionError(Exception):
    """What a test raises in the middle of training."""


def interrupt_at(monkeypatch, moment: tuple[int, int], kind: type[BaseException]) -> None:
    original = module_file.Classifier.training_step

    def training_step(self, batch):
        if (batch.epoch, batch.step) == moment:
            raise kind
        return original(self, batch)

    monkeypatch.setattr(module_file.Classifier, "training_step", training_step)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(splits, undisturbed, tmp_path):
    torch.manual_seed(99)  # the state of the global generator is of no account
    assert_same(run(splits, tmp_path), undisturbed)
    other = train(*splits, CLASSES, CONFIG, tmp_path / "other", tmp_path / "other/work", seed=4)
    assert other.history != undisturbed.history


def test_a_second_training_starts_from_all_weights_of_the_first(splits, undisturbed, tmp_path):
    start = undisturbed.weights / "model.safetensors"
    still = replace(CONFIG, lr=1e-12, epochs=2, schedule="constant")
    kept = run(splits, tmp_path / "a", still, start=start)
    np.testing.assert_allclose(
        kept.val_predictions.probability, undisturbed.val_predictions.probability, atol=1e-6
    )  # the output layer too
    averaged = run(splits, tmp_path / "b", replace(still, ema=0.9), start=start)
    np.testing.assert_allclose(averaged.val_predictions.probability, kept.val_predictions.probability, atol=1e-6)
    fresh = run(splits, tmp_path / "c", still)
    assert abs(fresh.val_predictions.probability - kept.val_predictions.probability).max() > 1e-3
    with pytest.raises(ValueError, match=r"does not fit this architecture"):
        run(splits, tmp_path / "d", replace(CONFIG, model=replace(MODEL, embed_dim=32)), start=start)


@pytest.mark.parametrize("moment", [(0, 1), (1, 0), (2, 2), (3, 3)])
def test_a_run_stopped_in_an_epoch_goes_on_bit_for_bit(splits, undisturbed, tmp_path, monkeypatch, moment):
    with monkeypatch.context() as patch:
        interrupt_at(patch, moment, InterruptionError)
        with pytest.raises(InterruptionError):
            run(splits, tmp_path)
    assert_same(run(splits, tmp_path), undisturbed)


def test_a_run_stopped_twice_goes_on_bit_for_bit(splits, undisturbed, tmp_path, monkeypatch):
    for moment in ((1, 2), (2, 1)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, moment, InterruptionError)
            with pytest.raises(InterruptionError):
                run(splits, tmp_path)
    assert_same(run(splits, tmp_path), undisturbed)


def test_a_run_killed_between_best_weights_and_checkpoint_goes_on_bit_for_bit(
    splits, undisturbed, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise InterruptionError

    with monkeypatch.context() as patch:
        interrupt_at(patch, (2, 0), InterruptionError)
        with pytest.raises(InterruptionError):
            run(splits, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pytorch_lightning.Trainer.save_checkpoint", stop)
        with pytest.raises(InterruptionError):
            run(splits, tmp_path)
    assert_same(run(splits, tmp_path), undisturbed)


def test_a_finished_run_trains_nothing_more(splits, undisturbed, tmp_path, monkeypatch):
    run(splits, tmp_path)
    for epoch in range(CONFIG.epochs):
        interrupt_at(monkeypatch, (epoch, 0), InterruptionError)
    assert_same(run(splits, tmp_path), undisturbed)


def test_it_learns_a_plain_question_and_says_how(splits, tmp_path):
    result = run(splits, tmp_path, replace(CONFIG, epochs=12, lr=1e-2))
    assert [row["epoch"] for row in result.history] == list(range(12))
    names = {"epoch", *(f"{split}/{name}" for split in ("train", "val") for name in ("loss", "accuracy", "auroc"))}
    assert all(set(row) == names for row in result.history)
    losses = [row["val/loss"] for row in result.history]
    assert result.best_epoch == losses.index(min(losses))
    predictions = result.val_predictions
    said = predictions.of("lesion") >= result.threshold
    assert (said == (np.array(predictions.label) == "lesion")).all()
    truth = [CLASSES.index(label) for label in predictions.label]
    loss = -np.log(predictions.probability[range(len(truth)), truth]).mean()
    assert loss == pytest.approx(min(losses), rel=1e-4)  # the weights kept are those of the best epoch


def test_the_folder_predicts_what_training_saw(splits, undisturbed):
    again = predict(undisturbed.weights, splits[1], CONFIG.batch_size)
    assert again.text() == undisturbed.val_predictions.text()
    one_by_one = predict(undisturbed.weights, splits[1], 1)
    np.testing.assert_allclose(one_by_one.probability, again.probability, atol=1e-6)
    assert again.image_id == tuple(splits[1].column("image_id"))


def test_the_folder_describes_itself(undisturbed):
    described = json.loads((undisturbed.weights / "model.json").read_text())
    assert described["classes"] == list(CLASSES)
    assert described["positive"] == "lesion"
    assert described["threshold"] == undisturbed.threshold
    assert described["training"]["seed"] == 3
    loaded = load_classifier(undisturbed.weights)
    assert (loaded.classes, loaded.threshold, loaded.epoch) == (CLASSES, undisturbed.threshold, undisturbed.best_epoch)
    assert not loaded.network.training
    assert sorted(path.name for path in undisturbed.weights.iterdir()) == [
        "model.json",
        "model.safetensors",
        "reference.safetensors",
    ]


def test_reading_a_classifier_leaves_the_global_generator_alone(undisturbed):
    before = torch.get_rng_state()
    load_classifier(undisturbed.weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_few_guides_are_repeated_against_many_normals(splits, tmp_path):
    few = splits[0].where(lambda r: r.label == "normal" or r.image_id in ("lesion-0-0", "lesion-0-1"))
    config = replace(CONFIG, augment=AUGMENT, samples_per_epoch=24, epochs=2)
    result = train(few, splits[1], CLASSES, config, tmp_path, tmp_path / "work", seed=0)
    assert len(result.history) == 2


def test_bf16_resumes_bit_for_bit_and_is_close_to_fp32(splits, undisturbed, tmp_path, monkeypatch):
    config = replace(CONFIG, precision="bf16-mixed")
    whole = run(splits, tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        interrupt_at(patch, (2, 1), InterruptionError)
        with pytest.raises(InterruptionError):
            run(splits, tmp_path / "stopped", config)
    assert_same(run(splits, tmp_path / "stopped", config), whole)
    for row, exact in zip(whole.history, undisturbed.history, strict=True):
        assert row["val/loss"] == pytest.approx(exact["val/loss"], abs=0.05)
    assert {value.dtype for value in load_file(whole.weights / "model.safetensors").values()} == {torch.float32}


def test_three_classes_and_another_optimizer(tmp_path):
    counts = {"lesion": 5, "normal": 5, "other": 5}
    data, val = draw_manifest(tmp_path, counts, 0), draw_manifest(tmp_path, counts, 1)
    config = replace(CONFIG, optimizer="rmsprop", lr=1e-4, epochs=2)
    result = train(data, val, tuple(counts), config, tmp_path, tmp_path / "work", seed=0)
    assert result.val_predictions.probability.shape == (15, 3)


def test_the_logger_gets_each_epochs_metrics(splits, tmp_path):
    logger = CSVLogger(tmp_path / "logs", name="", version="")
    result = run(splits, tmp_path, replace(CONFIG, epochs=2), logger=logger)
    lines = (tmp_path / "logs/metrics.csv").read_text()
    assert all(f"{row['val/loss']:.6f}"[:6] in lines for row in result.history)


def test_a_class_missing_from_a_split_is_named(splits, tmp_path):
    data, val = splits
    with pytest.raises(ValueError, match=r"val split must hold every class.*\['lesion'\]"):
        train(data, val.where(label="normal"), CLASSES, CONFIG, tmp_path, tmp_path, seed=0)
    with pytest.raises(ValueError, match=r"train split.*0 images"):
        train(data.where(label="mole"), val, CLASSES, CONFIG, tmp_path, tmp_path, seed=0)
    stray = val.with_values(lambda r: {"label": "mole" if r.image_id == "normal-1-0" else r.label})
    with pytest.raises(ValueError, match=r"\['mole'\]"):
        train(data, stray, CLASSES, CONFIG, tmp_path, tmp_path, seed=0)
    with pytest.raises(ValueError, match="samples_per_epoch must be 2 or more"):
        train(data, val, CLASSES, replace(CONFIG, samples_per_epoch=1), tmp_path, tmp_path, seed=0)


def test_a_loss_that_is_no_number_stops_the_run(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(module_file.Classifier, "forward", lambda self, x: self.model(x) * math.nan)
    with pytest.raises(ValueError, match="val/loss must be finite; it is nan in epoch 0"):
        run(splits, tmp_path)


def test_a_folder_without_a_classifier_is_named(splits, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model\.json; run stage=classify"):
        predict(tmp_path, splits[1], 4)


def test_an_empty_manifest_is_refused(splits, undisturbed):
    with pytest.raises(ValueError, match="nothing to predict"):
        predict(undisturbed.weights, splits[1].where(label="mole"), 4)


FULL = replace(
    CONFIG, schedule="plateau", warmup_epochs=0, plateau_patience=0, plateau_factor=0.5, mixup=0.4, cutmix=0.4, ema=0.8,
    layer_decay=0.7, frozen_layers=1, gradient_clip=1.0, class_weights="balanced", lr=1e-2,
)  # fmt: skip


def test_with_every_option_on_a_stopped_run_goes_on_bit_for_bit(splits, tmp_path, monkeypatch):
    whole = run(splits, tmp_path / "whole", FULL)
    with monkeypatch.context() as patch:
        interrupt_at(patch, (2, 1), InterruptionError)
        with pytest.raises(InterruptionError):
            run(splits, tmp_path / "stopped", FULL)
    assert_same(run(splits, tmp_path / "stopped", FULL), whole)


def test_training_ends_early_and_once_ended_trains_no_more(splits, tmp_path, monkeypatch):
    config = replace(CONFIG, schedule="constant", warmup_epochs=0, lr=0.3, epochs=40, stop_after=2)
    first = run(splits, tmp_path, config)
    assert len(first.history) - 1 - first.best_epoch == 2
    assert len(first.history) < 40
    monkeypatch.setattr(module_file.Classifier, "training_step", lambda *_: pytest.fail("it trained again"))
    assert_same(run(splits, tmp_path, config), first)


def test_a_folder_of_another_network_is_refused_by_name(splits, undisturbed, tmp_path):
    shutil.copytree(undisturbed.weights, tmp_path / "weights")
    described = json.loads((tmp_path / "weights/model.json").read_text())
    described["model"]["depth"] = 3
    (tmp_path / "weights/model.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit this architecture: missing \['blocks\.2"):
        predict(tmp_path / "weights", splits[1], 4)


def test_the_folder_holds_every_rules_threshold_and_the_temperature(undisturbed):
    loaded = load_classifier(undisturbed.weights)
    assert loaded.thresholds["logistic"] == loaded.threshold
    assert set(loaded.thresholds) == set(RULES)
    assert loaded.temperature > 0


CONSTANT = replace(CONFIG, schedule="constant", warmup_epochs=0, ema=0.9)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_budget_is_bit_for_bit_the_run_trained_alone_so_long(splits, tmp_path, schedule, optimizer):
    config = replace(CONSTANT, schedule=schedule, optimizer=optimizer, plateau_patience=0)
    whole = run(splits, tmp_path / "whole", replace(config, budgets=(1, 2, 4)))
    assert list(whole.budgets) == [1, 2, 4]
    for epochs, read_off in whole.budgets.items():
        assert_same(read_off, run(splits, tmp_path / f"{epochs}", replace(config, epochs=epochs)))
    assert_same(whole, whole.budgets[4])
    assert whole.budgets[1].history != whole.history


def test_budgets_survive_an_interruption(splits, tmp_path, monkeypatch):
    config = replace(CONSTANT, budgets=(1, 3))
    undisturbed = run(splits, tmp_path / "whole", config)
    for moment in ((1, 0), (3, 1)):
        with monkeypatch.context() as patch:
            interrupt_at(patch, moment, InterruptionError)
            with pytest.raises(InterruptionError):
                run(splits, tmp_path / "stopped", config)
    resumed = run(splits, tmp_path / "stopped", config)
    for epochs in (1, 3):
        assert_same(resumed.budgets[epochs], undisturbed.budgets[epochs])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosine"}, r"classifier.schedule must be constant or plateau .*no part of a longer.*'cosine'"),
        ({"stop_after": 3}, r"classifier.stop_after must be null .*may end before.*3"),
        ({"budgets": (2, 1)}, r"classifier.budgets must be rising numbers of epochs.*\(2, 1\)"),
        ({"budgets": (1, 5)}, r"classifier.budgets .*at most epochs=4.*\(1, 5\)"),
        ({"warmup_epochs": 1}, r"classifier.budgets .*above warmup_epochs=1"),
    ],
)
def test_budgets_that_would_not_hold_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(CONSTANT, **{"budgets": (1, 2), **changes})
