"""How a classifier is trained, as one frozen dataclass of plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from synthvision.classification.augment import AugmentConfig
from synthvision.classification.model import ModelConfig
from synthvision.classification.threshold import ThresholdConfig
from synthvision.training import SCHEDULES

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
}
PRECISIONS = ("32-true", "bf16-mixed")
PLATEAU = "plateau"
BALANCED = "balanced"


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained. All that the papers' recipes do not name is off by default.

    Args:
        model: the network.
        optimizer: one of adam, adamw, rmsprop.
        lr: learning rate after warm-up.
        epochs: passes; the best by validation loss is kept.
        batch_size: images per step.
        augment: what is done to training images.
        threshold: the rule for the operating point, applied to validation images.
        weight_decay: of the optimizer.
        label_smoothing: share of the target spread over all classes, in training only.
        schedule: "constant", "cosine" down to 0 at the last step, or "plateau": the rate falls by `plateau_factor`
            where the validation loss has not improved for more than `plateau_patience` epochs.
        warmup_epochs: epochs over which the learning rate rises linearly.
        samples_per_epoch: None shows each training image once per epoch; a number shows that many, classes equal
            and, within a class, origins (guides, synthetic, real) equal.
        precision: "32-true" or "bf16-mixed".
        plateau_factor, plateau_patience: see `schedule`.
        stop_after: epochs without a better validation loss after which training ends; None for never.
        class_weights: None, "balanced" (each class weighs the same in the loss), or a weight per class.
        mixup: alpha of mixup (Zhang et al., ICLR 2018); 0 turns it off.
        cutmix: alpha of CutMix (Yun et al., ICCV 2019); 0 turns it off. With mixup, each batch gets one of both.
        ema: decay per step of the weights' moving average, which is then what is validated and kept; 0 turns it off.
        layer_decay: factor on the learning rate from each layer to the one below (Bao et al., ICLR 2022); 1: off.
        frozen_layers: so many layers from the input on are not trained: of a ViT first the embedding, then its blocks.
        gradient_clip: greatest norm of a step's gradient; None for any.
        budgets: numbers of epochs, in rising order, at which the run is read off as well. What is read off is, bit for
            bit on a CPU, the run that was trained alone for so many epochs. All budgets of a run lie on one
            trajectory: they are no independent trials.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    model: ModelConfig
    optimizer: str
    lr: float
    epochs: int
    batch_size: int
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # all off
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    schedule: str = "constant"
    warmup_epochs: int = 0
    samples_per_epoch: int | None = None
    precision: str = "32-true"
    plateau_factor: float = 0.1
    plateau_patience: int = 10
    stop_after: int | None = None
    class_weights: str | Sequence[float] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    layer_decay: float = 1.0
    frozen_layers: int = 0
    gradient_clip: float | None = None
    budgets: Sequence[int] = ()

    def __post_init__(self) -> None:
        self._require(self.optimizer in OPTIMIZERS, "optimizer", f"one of {tuple(OPTIMIZERS)}")
        for name in ("lr", "epochs", "batch_size"):
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("weight_decay", "mixup", "cutmix", "frozen_layers", "plateau_patience"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("label_smoothing", "ema"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        for name in ("samples_per_epoch", "stop_after", "gradient_clip"):
            self._require(getattr(self, name) is None or getattr(self, name) > 0, name, "above 0")
        self._require(self.schedule in (*SCHEDULES, PLATEAU), "schedule", f"one of {(*SCHEDULES, PLATEAU)}")
        below = 0 <= self.warmup_epochs < self.epochs
        self._require(below, "warmup_epochs", f"0 or more and below epochs={self.epochs}")
        self._require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")
        self._require(0 < self.plateau_factor < 1, "plateau_factor", "in (0, 1)")
        self._require(0 < self.layer_decay <= 1, "layer_decay", "in (0, 1]")
        self._require_weights()
        self._require_budgets()

    def _require_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        numbers = not isinstance(weights, str) and all(weight > 0 for weight in weights)
        self._require(numbers or weights == BALANCED, "class_weights", "null, balanced or a number above 0 per class")
        self._require(
            self.samples_per_epoch is None, "class_weights", "null where samples_per_epoch already balances the classes"
        )

    def _require_budgets(self) -> None:
        budgets = list(self.budgets)
        if not budgets:
            return
        rising = budgets == sorted(set(budgets)) and budgets[0] > self.warmup_epochs and budgets[-1] <= self.epochs
        within = f"above warmup_epochs={self.warmup_epochs} and at most epochs={self.epochs}"
        self._require(rising, "budgets", f"rising numbers of epochs, {within}")
        # The plateau's rule looks at epochs that are over; the cosine's rate depends on those that are to come.
        reason = "where there are budgets: a cosine comes down to 0 at the last epoch, so that a run to a budget is "
        self._require(self.schedule != "cosine", "schedule", f"constant or plateau {reason}no part of a longer one")
        self._require(
            self.stop_after is None, "stop_after", "null where there are budgets: the run may end before one is reached"
        )

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"classifier.{name} must be {rule}; it is {getattr(self, name)!r}")
