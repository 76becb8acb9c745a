"""The Lightning module: one step for training and validation, with every draw keyed by (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from synthvision.classification.augment import AugmentConfig, augment
from synthvision.classification.batches import Batch
from synthvision.classification.draws import Draw, generator, key
from synthvision.classification.model import ModelConfig, as_input, build
from synthvision.training import SCHEDULES, lr_factor

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained.

    Args:
        model: the network.
        optimizer: one of adam, adamw, rmsprop.
        lr: learning rate after warm-up.
        epochs: passes; the best by validation loss is kept.
        batch_size: images per step.
        augment: what is done to training images.
        weight_decay: of the optimizer.
        label_smoothing: share of the target spread over all classes, in training only.
        schedule: "constant", or "cosine" down to 0 at the last step.
        warmup_epochs: epochs over which the learning rate rises linearly.
        samples_per_epoch: None shows each training image once per epoch; a number shows that many, classes equal
            and, within a class, origins (guides, synthetic, real) equal.
        precision: "32-true" or "bf16-mixed".

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    model: ModelConfig
    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # all off
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "constant"
    warmup_epochs: int = 0
    samples_per_epoch: int | None = None
    precision: str = "32-true"

    def __post_init__(self) -> None:
        self._require(self.optimizer in OPTIMIZERS, "optimizer", f"one of {tuple(OPTIMIZERS)}")
        self._require(self.lr > 0, "lr", "above 0")
        self._require(self.epochs > 0, "epochs", "above 0")
        self._require(self.batch_size > 0, "batch_size", "above 0")
        self._require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self._require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        below = 0 <= self.warmup_epochs < self.epochs
        self._require(below, "warmup_epochs", f"0 or more and below epochs={self.epochs}")
        enough = self.samples_per_epoch is None or self.samples_per_epoch > 0
        self._require(enough, "samples_per_epoch", "above 0")
        self._require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"classifier.{name} must be {rule}; it is {getattr(self, name)!r}")


class Classifier(LightningModule):
    """A network with its loss, metrics and optimizer. Logs `<split>/loss`, `<split>/accuracy` and `<split>/auroc`."""

    def __init__(self, config: ClassifierConfig, classes: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__()
        self.config, self.steps_per_epoch, self.seed = config, steps_per_epoch, seed
        with _seeded(key(seed, Draw.INITIAL), self.device):
            self.model: nn.Module = build(config.model, classes)
        self.train_metrics = _metrics(classes, "train/")
        self.val_metrics = _metrics(classes, "val/")

    def on_fit_start(self) -> None:
        """Choose the attention that is fast here."""
        if self.config.precision == "bf16-mixed" and self.device.type == "cpu":
            # On CPU the fused kernel's backward in bf16 takes five times as long as in fp32; plain products do not.
            for layer in self.model.modules():
                if hasattr(layer, "fused_attn"):
                    layer.fused_attn = False  # type: ignore[assignment]  # a plain bool of timm

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of float images (B, 3, S, S) in [0, 1]."""
        logits: Tensor = self.model(as_input(images))
        return logits

    def step(self, batch: Batch, split: str) -> Tensor:
        """Return the mean loss of a batch and log it with the split's metrics."""
        images = batch.images.float() / 255  # (B, 3, S, S)
        smoothing = 0.0
        if split == "train":
            chance = generator(self.seed, Draw.AUGMENT, batch.epoch, batch.step, device=images.device)
            images = augment(images, self.config.augment, chance)
            smoothing = self.config.label_smoothing
        # Dropout draws from the global generator: seed it per step, or a resumed run would draw otherwise.
        with _seeded(key(self.seed, Draw.DROPOUT, batch.epoch, batch.step), images.device):
            logits = self(images).float()  # (B, C)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        metrics = self.train_metrics if split == "train" else self.val_metrics
        metrics.update(logits.detach().softmax(1), batch.labels)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(batch.labels)}
        self.log(f"{split}/loss", loss, prog_bar=True, **options)
        self.log(
            "step", float(batch.epoch), **options
        )  # Lightning's name for the x-axis: arms differ in steps per epoch
        self.log_dict(metrics, **options)
        return loss

    def training_step(self, batch: Batch) -> Tensor:
        """Return the loss to minimise."""
        return self.step(batch, "train")

    def validation_step(self, batch: Batch) -> None:
        """Log the validation loss and metrics."""
        self.step(batch, "val")

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule of its learning rate, stepped once per batch."""
        config = self.config
        optimizer = OPTIMIZERS[config.optimizer](
            self.model.parameters(),
            lr=config.lr,
            weight_decay=config.weight_decay,  # type: ignore[call-arg]  # all of OPTIMIZERS take it
        )
        warmup, total = config.warmup_epochs * self.steps_per_epoch, config.epochs * self.steps_per_epoch
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, warmup, total, config.schedule)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _metrics(classes: int, prefix: str) -> MetricCollection:
    return MetricCollection(
        {"accuracy": MulticlassAccuracy(classes, average="micro"), "auroc": MulticlassAUROC(classes)}, prefix=prefix
    )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
