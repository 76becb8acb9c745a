"""Training a classifier on a manifest, resumable after any interruption with the same result bit for bit on CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger

from synthvision.classification.batches import EvalBatches, TrainBatches
from synthvision.classification.calibration import fit_temperature
from synthvision.classification.module import Classifier
from synthvision.classification.predict import TrainedModel, predict, read_network, save_classifier
from synthvision.classification.recipe import ClassifierConfig
from synthvision.classification.reference import fit_reference, write_reference
from synthvision.classification.resume import EpochKeeper, OnEpoch, best_epoch, best_weights
from synthvision.classification.threshold import thresholds_by_rule
from synthvision.data.cache import ImageCache
from synthvision.data.images import read_rgb
from synthvision.data.torch_data import ImageTensors
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions
from synthvision.training import best_device

BUDGETS = "budgets"
__all__ = ["ClassifierConfig", "Trained", "predict", "train"]


@dataclass(frozen=True)
class Trained:
    """What training gives: the weights folder, and how they were chosen on validation images."""

    weights: Path  # folder with model.safetensors and model.json
    history: list[dict[str, float]]  # one per epoch: epoch, train/loss, train/accuracy, train/auroc, val/...
    best_epoch: int  # counted from 0
    threshold: float  # on the probability of the first class
    val_predictions: Predictions
    budgets: Mapping[int, Trained] = field(default_factory=dict)  # what each of classifier.budgets gave


def train(
    train: Manifest,
    val: Manifest,
    classes: Sequence[str],
    config: ClassifierConfig,
    out: Path,
    work: Path,
    seed: int,
    logger: Logger | None = None,
    start: Path | None = None,
    cache: ImageCache | None = None,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """Train on `train`, choose epoch and threshold on `val`, and write the classifier to `out/weights`.

    The classifier of a budget of 20 epochs goes to `out/budgets/0020/weights`.

    Args:
        train, val: images with labels; both must hold every class.
        classes: names in the order of the outputs; the first is the positive one.
        config: how to train.
        out: the stage's folder.
        work: resumable state; a second call with the same arguments goes on after the last finished epoch.
        seed: of every draw; the same seed gives the same bytes on the same CPU.
        logger: receives the metrics of each epoch.
        start: all weights of a network of this kind, its output layer too; None starts as `config.model` says.
        cache: of decoded images at the network's size; None decodes all.
        on_epoch: told of each finished epoch and its metrics; what it raises ends the training, which can be resumed.

    Raises:
        ValueError: a class is missing from a split, a label is not a class, or the loss is no longer a number.
    """
    _check(train, val, classes, config)
    size = config.model.image_size
    train_data, val_data = (ImageTensors.from_manifest(part, classes, size, cache) for part in (train, val))
    batches = TrainBatches(train_data, config.batch_size, config.samples_per_epoch, seed)
    val_batches = EvalBatches(val_data, config.batch_size)
    counts = np.bincount(train_data.labels.numpy(), minlength=len(classes)).tolist()
    module = Classifier(config, len(classes), len(batches), seed, counts, start)
    history = _fit(module, batches, val_batches, work, logger, on_epoch).history

    def finish(epochs: int, weights: Path, folder: Path) -> Trained:
        """Write the classifier of the first `epochs` epochs as if no more had been asked for."""
        alone = replace(config, epochs=epochs, budgets=())
        return _finish(alone, history[:epochs], weights, folder, classes, val, train_data, val_data, seed)

    budgets = {
        budget: finish(budget, best_weights(work, budget), out / BUDGETS / f"{budget:04}") for budget in config.budgets
    }
    return replace(finish(config.epochs, best_weights(work), out), budgets=budgets)


def _finish(
    config: ClassifierConfig,
    history: list[dict[str, float]],
    weights: Path,
    out: Path,
    classes: Sequence[str],
    val: Manifest,
    train_data: ImageTensors,
    val_data: ImageTensors,
    seed: int,
) -> Trained:
    """Choose threshold and temperature on validation images, and write the classifier."""
    best = best_epoch(history)
    network = read_network(config.model, len(classes), weights)
    model = TrainedModel(network, config.model, tuple(classes), threshold=0.5, epoch=best)
    predictions = model.predict(val, config.batch_size)
    truth = np.array([list(classes).index(label) for label in predictions.label])
    thresholds = thresholds_by_rule(predictions.of(classes[0]), truth == 0, config.threshold)
    threshold = thresholds[config.threshold.rule]
    temperature = fit_temperature(predictions.probability, truth)
    prepared = len(read_rgb(val.file(val.records[0])))
    chosen = replace(model, threshold=threshold, thresholds=thresholds, temperature=temperature, prepared=prepared)
    save_classifier(chosen, {**asdict(config), "seed": seed}, out / "weights")
    write_reference(fit_reference(chosen, train_data.pixels(), val_data.pixels()), out / "weights")
    return Trained(out / "weights", history, best, threshold, predictions)


def _check(train: Manifest, val: Manifest, classes: Sequence[str], config: ClassifierConfig) -> None:
    for split, manifest in (("train", train), ("val", val)):
        missing = [name for name in classes if name not in set(manifest.column("label"))]
        if missing:
            raise ValueError(
                f"the {split} split must hold every class of {list(classes)}; of its {len(manifest)} images none "
                f"is {missing}; check the arm and dataset.counts"
            )
    samples = config.samples_per_epoch
    if samples is not None and samples < len(classes):
        raise ValueError(f"classifier.samples_per_epoch must be {len(classes)} or more, one per class; it is {samples}")


def _fit(
    module: Classifier,
    train_batches: TrainBatches,
    val_batches: EvalBatches,
    work: Path,
    logger: Logger | None,
    on_epoch: OnEpoch | None,
) -> EpochKeeper:
    work.mkdir(parents=True, exist_ok=True)
    keeper = EpochKeeper(work, on_epoch)
    keeper.restore()
    if keeper.is_over(module.config.stop_after):
        return keeper
    trainer = Trainer(
        accelerator=best_device().type,
        devices=1,
        max_epochs=module.config.epochs,
        gradient_clip_val=module.config.gradient_clip,
        precision=module.config.precision,  # type: ignore[arg-type]  # checked by the config
        callbacks=[keeper, TQDMProgressBar(refresh_rate=10)],
        logger=logger or False,
        enable_checkpointing=False,  # EpochKeeper does it, atomically
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=work,
    )
    trainer.fit(module, train_batches, val_batches, ckpt_path=keeper.checkpoint, weights_only=True)
    return keeper
