"""The Lightning module: one step for training and validation, with every draw keyed by (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from synthvision.classification.augment import augment
from synthvision.classification.batches import Batch
from synthvision.classification.draws import Draw, generator, key
from synthvision.classification.model import as_input, build, load_weights
from synthvision.classification.recipe import OPTIMIZERS, PLATEAU, ClassifierConfig
from synthvision.classification.schedule import class_weights, freeze, mixer, moving_average, optimizer_of
from synthvision.training import lr_factor, warn_if_emulated

__all__ = ["OPTIMIZERS", "Classifier", "ClassifierConfig"]


class Classifier(LightningModule):
    """A network with its loss, metrics and optimizer. Logs `<split>/loss`, `<split>/accuracy` and `<split>/auroc`.

    Args:
        config: the recipe.
        classes: outputs.
        steps_per_epoch: batches.
        seed: of every draw.
        counts: training images of each class; only class weights ask for them.
        start: file of all weights to start from, the output layer's too; None for the model's own start.
    """

    def __init__(
        self,
        config: ClassifierConfig,
        classes: int,
        steps_per_epoch: int,
        seed: int,
        counts: Sequence[int] = (),
        start: Path | None = None,
    ) -> None:
        super().__init__()
        self.config, self.steps_per_epoch, self.seed = config, steps_per_epoch, seed
        with _seeded(key(seed, Draw.INITIAL), self.device):
            self.model: nn.Module = build(config.model, classes)
        if start is not None:
            load_weights(self.model, start)
        if config.frozen_layers:
            freeze(self.model, config.frozen_layers)
        # A module of its own, so that checkpoints hold it.
        self.averaged = moving_average(self.model, config.ema) if config.ema else None
        self.mix = mixer(config, classes)
        self.plateau_factor = 1.0  # the keeper of epochs sets it
        self.register_buffer("class_weights", class_weights(config, counts), persistent=False)
        self.train_metrics = _metrics(classes, "train/")
        self.val_metrics = _metrics(classes, "val/")

    def on_fit_start(self) -> None:
        """Choose the attention that is fast here."""
        warn_if_emulated(self.config.precision, self.device)
        if self.config.precision == "bf16-mixed" and self.device.type == "cpu":
            # On CPU the fused kernel's backward in bf16 takes five times as long as in fp32; plain products do not.
            for layer in self.model.modules():
                if hasattr(layer, "fused_attn"):
                    layer.fused_attn = False  # type: ignore[assignment]  # a plain bool of timm

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the one that is trained, or its moving average."""
        return self.model if self.averaged is None else self.averaged.module

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C) of float images (B, 3, S, S) in [0, 1]."""
        network = self.model if self.training else self.kept
        logits: Tensor = network(as_input(images, network))
        return logits

    def step(self, batch: Batch, split: str) -> Tensor:
        """Return the mean loss of a batch and log it with the split's metrics."""
        images, targets = batch.images.float() / 255, batch.labels  # (B, 3, S, S); (B,), or (B, C) where mixed
        spread: dict[str, Any] = {}
        if split == "train":
            chance = generator(self.seed, Draw.AUGMENT, batch.epoch, batch.step, device=images.device)
            images = augment(images, self.config.augment, chance)
            if self.mix is not None:
                with _seeded(key(self.seed, Draw.MIX, batch.epoch, batch.step), images.device):
                    images, targets = self.mix(images, targets)
            spread = {"label_smoothing": self.config.label_smoothing, "weight": self.class_weights}
        # Dropout draws from the global generator: seed it per step, or a resumed run would draw otherwise.
        with _seeded(key(self.seed, Draw.DROPOUT, batch.epoch, batch.step), images.device):
            logits = self(images).float()  # (B, C)
        loss = F.cross_entropy(logits, targets, **spread)
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

    def on_train_batch_end(self, *_: Any) -> None:
        """Let the moving average follow."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule of its learning rate, stepped once per batch."""
        config = self.config
        optimizer = optimizer_of(self.model, config)
        warmup, total = config.warmup_epochs * self.steps_per_epoch, config.epochs * self.steps_per_epoch
        shape = "constant" if config.schedule == PLATEAU else config.schedule
        # The plateau's factor changes between epochs; the rate of an epoch's first batch was set before that.
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, warmup, total, shape) * self.plateau_factor
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
