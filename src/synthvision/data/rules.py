"""The rules by which a user's files are checked and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synthvision.data.columns import TELLABLE
from synthvision.data.copies import LABEL_RULES
from synthvision.data.splits import Counts

LEAK_RULES = ("stop", "drop", "move")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How files are checked and split.

    Raises:
        ValueError: a rule is unknown, or a share is none.
    """

    counts: Counts  # label -> "train" / "val" / "test" -> number of images, exactly
    size: int  # side of the written pictures, in pixels
    seed: int  # of the split, and salt of the patients' hashes
    leaks: str = "stop"  # one of LEAK_RULES
    two_labels: str = "stop"  # one of LABEL_RULES
    most_unusable: float = 0.2  # share of the sources' files that may be unusable
    stratify: Sequence[str] = ()  # columns that are spread evenly over the splits
    estimate_tone: bool = False  # fill `skin_tone_ita` where skin_tone is unknown
    workers: int | None = None  # processes that read; null: one per core

    def __post_init__(self) -> None:
        for key, rules in (("leaks", LEAK_RULES), ("two_labels", LABEL_RULES)):
            if getattr(self, key) not in rules:
                raise ValueError(f"dataset.{key} must be one of {rules}; it is {getattr(self, key)!r}")
        if not 0 <= self.most_unusable <= 1:
            raise ValueError(f"dataset.most_unusable must be a share from 0 to 1; it is {self.most_unusable}")
        unknown = sorted(set(self.stratify) - set(TELLABLE))
        if unknown:
            raise ValueError(f"dataset.stratify: columns must be among {TELLABLE}; these are not: {unknown}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"dataset.workers must be at least 1, or null for one per core; it is {self.workers}")
