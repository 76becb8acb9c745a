"""What is taught, in words, and how: the two configs of DreamBooth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from synthvision.training import SCHEDULES

PRECISIONS = ("32-true", "bf16-mixed")  # the trained weights are float32 in both: in bf16 small steps would be lost
METHODS = ("full", "lora")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor")
LESION_VIEWS = ("whole", "both", "crop")
STRATEGIES = ("ddp", "fsdp")
CHOICES = {
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "method": METHODS,
    "optimizer": OPTIMIZERS,
    "lesion_view": LESION_VIEWS,
    "strategy": STRATEGIES,
}


@dataclass(frozen=True)
class DreamBoothConfig:
    """How a backbone is personalised. No steps at all is the control: the base itself.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    unet_steps: int
    unet_lr: float
    text_steps: int  # after these the text encoder is frozen for good
    text_lr: float
    batch_size: int  # guides per step; as many class images come on top
    prior_weight: float  # 0: no prior preservation
    class_images: int
    checkpoint_every: int  # steps; what a killed run resumes from
    sample_every: int  # steps; grids, and the loss of held-out guides
    warmup_steps: int
    schedule: str  # after the warm-up: "constant", or "cosine" down to 0 at each part's last step
    min_snr_gamma: float | None  # None: all timesteps weigh the same
    augment: bool  # the 8 flips and rotations of each guide, and class images mirrored
    weight_decay: float
    precision: str  # one of PRECISIONS
    guidance: float  # of class images and sample grids
    sample_steps: int  # of class images and sample grids
    method: str = "full"  # of METHODS: all weights, or low-rank adapters beside the attention's
    lora_rank: int = 16
    optimizer: str = "adamw"  # of OPTIMIZERS
    gradient_checkpointing: bool = False  # less memory for activations, a third slower
    compile: bool = False  # the UNet, by torch.compile
    ema_decay: float | None = None  # None: the last weights are kept, not their average
    offset_noise: float = 0.0  # share of noise that is one value per picture and channel
    zero_terminal_snr: bool = False  # v-prediction only: the last timestep is pure noise
    lesion_weight: float = 0.0  # 0: all of the picture weighs the same; 1: the loss is that of the masked lesion alone
    lesion_view: str = "whole"  # of LESION_VIEWS: what is seen of guides with a mask
    holdout: int = 0  # guides that are not trained on, for a validation loss
    export_every: int | None = None  # steps; a pipeline folder in `checkpoints`. None: only the last
    devices: int = 1  # processes, each with its share of `batch_size`
    strategy: str = "ddp"  # of STRATEGIES, with more than one device

    def __post_init__(self) -> None:
        zero = ("unet_steps", "text_steps", "warmup_steps", "class_images", "prior_weight", "weight_decay", "holdout")
        for key in (*zero, "offset_noise"):
            self._require(getattr(self, key) >= 0, key, "at least 0")
        one = ("batch_size", "checkpoint_every", "sample_every", "sample_steps", "guidance", "lora_rank", "devices")
        for key in one:
            self._require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("unet_lr", "text_lr"):
            self._require(getattr(self, key) > 0, key, "above 0")
        for key, choices in CHOICES.items():
            self._require(getattr(self, key) in choices, key, f"one of {choices}")
        self._require(0 <= self.lesion_weight <= 1, "lesion_weight", "between 0 and 1")
        self._require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "null or between 0 and 1")
        self._require(self.export_every is None or self.export_every >= 1, "export_every", "null or at least 1")
        whole = self.batch_size % self.devices == 0
        self._require(whole, "batch_size", f"a multiple of dreambooth.devices={self.devices}")
        if self.devices > 1 and self.strategy == "fsdp":
            self._require(self.method == "full", "method", "'full' with strategy 'fsdp'; adapters fit with 'ddp'")
            self._require(self.ema_decay is None, "ema_decay", "null with strategy 'fsdp'")
            self._require(self.optimizer == "adamw", "optimizer", "'adamw' with strategy 'fsdp'")
        self._require(self.text_steps <= self.unet_steps, "text_steps", f"at most unet_steps={self.unet_steps}")
        self._require(self.min_snr_gamma is None or self.min_snr_gamma > 0, "min_snr_gamma", "null or above 0")
        self._require(self.class_images > 0 or not self.prior_weight, "class_images", "above 0, or prior_weight 0")

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"dreambooth.{key} must be {rule}; it is {getattr(self, key)!r}")


@dataclass(frozen=True)
class Subject:
    """What is taught, in words.

    Raises:
        ValueError: the prompts break a rule; the message names key, rule and value.
    """

    identifier: str  # a word the backbone attaches no meaning to, e.g. "sks"
    instance_prompt: str
    class_prompt: str

    def __post_init__(self) -> None:
        if not self.identifier.strip():
            raise ValueError("subject.identifier must be a rare word such as 'sks'; it is empty")
        if not self.names(self.instance_prompt):
            raise ValueError(
                f"subject.instance_prompt must contain the identifier {self.identifier!r}; "
                f"it is {self.instance_prompt!r}"
            )
        self.check_class_prompt(self.class_prompt)

    def names(self, text: str) -> bool:
        """Tell whether the identifier is one of a text's words."""
        return re.search(rf"(?<!\w){re.escape(self.identifier)}(?!\w)", text, re.IGNORECASE) is not None

    def check_class_prompt(self, prompt: str) -> None:
        """Refuse a class prompt that is empty or speaks of the subject itself."""
        if not prompt.strip() or self.names(prompt):
            raise ValueError(
                f"a class prompt must describe the class without the identifier {self.identifier!r}; it is {prompt!r}"
            )

    def caption(self, text: str) -> str:
        """Return a guide's caption with the subject named: as it is, or after the instance prompt."""
        return text if self.names(text) else f"{self.instance_prompt}, {text}"
