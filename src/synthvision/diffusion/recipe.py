"""What is taught, in words, and how: the two configs of DreamBooth."""

from __future__ import annotations

import re
from dataclasses import dataclass

from synthvision.training import SCHEDULES

PRECISIONS = ("32-true", "bf16-mixed")


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
    checkpoint_every: int
    sample_every: int
    warmup_steps: int
    schedule: str  # after the warm-up: "constant", or "cosine" down to 0 at each part's last step
    min_snr_gamma: float | None  # None: all timesteps weigh the same
    augment: bool  # the 8 flips and rotations of each guide, and class images mirrored
    weight_decay: float
    precision: str  # one of PRECISIONS
    guidance: float  # of class images and sample grids
    sample_steps: int  # of class images and sample grids

    def __post_init__(self) -> None:
        for key in ("unet_steps", "text_steps", "warmup_steps", "class_images", "prior_weight", "weight_decay"):
            self._require(getattr(self, key) >= 0, key, "at least 0")
        for key in ("batch_size", "checkpoint_every", "sample_every", "sample_steps", "guidance"):
            self._require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("unet_lr", "text_lr"):
            self._require(getattr(self, key) > 0, key, "above 0")
        self._require(self.text_steps <= self.unet_steps, "text_steps", f"at most unet_steps={self.unet_steps}")
        self._require(self.min_snr_gamma is None or self.min_snr_gamma > 0, "min_snr_gamma", "null or above 0")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        self._require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")
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
