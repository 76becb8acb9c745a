"""How physicians decide: how many read each image, what they are shown, and whose word counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULES = ("any", "all", "majority", "adjudicated")
ROUNDS = ("alike", "this")


@dataclass(frozen=True)
class PhysicianPolicy:
    """What readers are shown and which of their decisions make an image part of the data set.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    accept: int  # how many images are wanted at most; where readers accept fewer, fewer are used
    per_set: Sequence[int] | None  # fewest and most wanted of each set; null: `accept` shared evenly among the sets
    reads: int  # independent decisions wanted of each image
    readers: Sequence[str]  # who may read; empty: whoever gives a name
    rule: str  # one of RULES
    rounds: str  # one of ROUNDS: whether images accepted in other rounds of generation count too
    salt: float  # real images put among the candidates unmarked, as a share of them
    repeats: float  # candidates shown to a reader twice, as a share of them
    seed: int  # of each reader's order, of salt and repeats, and of the choice where more are accepted than wanted
    max_similarity: float  # automatic finding, shown after a reader's decision: more similar to a guide is a copy
    min_change: float  # likewise: what differs less from a blank or from what it was painted on shows nothing

    def __post_init__(self) -> None:
        _require(self.accept >= 1, "accept", "at least 1", self.accept)
        if self.per_set is not None:
            good = len(self.per_set) == 2 and 0 <= self.per_set[0] <= self.per_set[-1] >= 1
            _require(good, "per_set", "null or two numbers, the fewest and the most of each set", list(self.per_set))
        _require(self.reads >= 1, "reads", "at least 1", self.reads)
        _require(len(set(self.readers)) == len(self.readers), "readers", "different names", list(self.readers))
        enough = not self.readers or len(self.readers) >= self.reads
        _require(enough, "readers", f"empty or at least review.reads={self.reads} names", list(self.readers))
        _require(self.rule in RULES, "rule", f"one of {RULES}", self.rule)
        _require(self.rounds in ROUNDS, "rounds", f"one of {ROUNDS}", self.rounds)
        for key in ("salt", "repeats"):
            _require(0 <= getattr(self, key) <= 1, key, "a share from 0 to 1", getattr(self, key))
        _require(0 < self.max_similarity <= 1, "max_similarity", "above 0 and at most 1", self.max_similarity)
        _require(0 <= self.min_change < 1, "min_change", "at least 0 and below 1", self.min_change)


def _require(holds: bool, key: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"review.{key} must be {rule}; it is {value!r}")
