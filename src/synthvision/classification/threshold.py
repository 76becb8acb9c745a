"""The operating point, chosen on validation images only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

CERTAIN = 1e-6  # probabilities are read no closer to 0 and 1 than this
NEUTRAL = 0.5
RULES = ("logistic", "youden", "sensitivity", "specificity", "cost")
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ThresholdConfig:
    """By which rule an image is called positive.

    Args:
        rule: "logistic": where both classes, counted as equally frequent, are equally likely; "youden": greatest
            sensitivity + specificity; "sensitivity" or "specificity": the best threshold that keeps at least that much
            of it; "cost": least expected cost.
        sensitivity: the least that the rule of this name keeps.
        specificity: the least that the rule of this name keeps.
        miss_cost: what a missed disease costs, in false alarms.
        prevalence: share of diseased people where the classifier is to be used, for the rule "cost".

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    rule: str = "logistic"
    sensitivity: float = 0.95
    specificity: float = 0.95
    miss_cost: float = 10.0
    prevalence: float = 0.1

    def __post_init__(self) -> None:
        self._require(self.rule in RULES, "rule", f"one of {RULES}")
        for name in ("sensitivity", "specificity"):
            self._require(0 < getattr(self, name) <= 1, name, "in (0, 1]")
        self._require(self.miss_cost > 0, "miss_cost", "above 0")
        self._require(0 < self.prevalence < 1, "prevalence", "in (0, 1)")

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"classifier.threshold.{name} must be {rule}; it is {getattr(self, name)!r}")


def thresholds_by_rule(probability: Floats, positive: Flags, config: ThresholdConfig) -> dict[str, float]:
    """Return the threshold of every rule; `config.rule` names the one to use.

    Args:
        probability: float64 (N,) of the positive class, of validation images.
        positive: bool (N,), the truth.
        config: the rules' numbers.

    Returns:
        rule -> threshold in [0, 1]; an image is positive at or above it.

    Raises:
        ValueError: there are no positives or no negatives.
    """
    logistic = balanced_threshold(probability, positive)
    cuts, found, cleared = _candidates(probability, positive)
    missed, alarmed = config.prevalence * (1 - found), (1 - config.prevalence) * (1 - cleared)
    return {
        "logistic": logistic,
        "youden": _middle_of_best(cuts, found + cleared),
        # cuts rise, so sensitivity falls and specificity rises: the last and the first that keep enough
        "sensitivity": float(cuts[found >= config.sensitivity].max()),
        "specificity": float(min(cuts[cleared >= config.specificity], default=1.0)),
        "cost": _middle_of_best(cuts, -(config.miss_cost * missed + alarmed)),
    }


def balanced_threshold(probability: Floats, positive: Flags) -> float:
    """Return the probability at which both classes, counted as equally frequent, are equally likely.

    A logistic regression of the truth on the probability's logit says so. It looks for the same point as Youden's
    index, but uses every image, where the index rests on the few nearest to the cut: on 50 + 50 images it is steadier.

    Args:
        probability: float64 (N,) of the positive class.
        positive: bool (N,), the truth.

    Returns:
        The threshold in (0, 1); an image is positive at or above it. 0.5 where a higher probability does not mean more
        disease: then no threshold is of use.

    Raises:
        ValueError: there are no positives or no negatives.
    """
    if positive.all() or not positive.any():
        raise ValueError(
            f"a threshold needs positives and negatives; {int(positive.sum())} of {len(positive)} are positive"
        )
    score = logit(np.clip(probability, CERTAIN, 1 - CERTAIN))[:, None]  # (N, 1)
    fitted = LogisticRegression(class_weight="balanced").fit(score, positive)
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return float(expit(-offset / slope)) if slope > 0 else NEUTRAL


def _candidates(probability: Floats, positive: Flags) -> tuple[Floats, Floats, Floats]:
    """Return every cut that decides otherwise than the one before, rising, with its sensitivity and specificity."""
    values = np.unique(probability)
    # Halfway between two neighbours: on unseen images the cut is as far from either as it can be.
    cuts = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [np.nextafter(values[-1], 2.0)]])
    called = probability[None, :] >= cuts[:, None]  # (cuts, N)
    found, cleared = called[:, positive].mean(1), (~called[:, ~positive]).mean(1)
    inside = cuts <= 1  # a probability of 1 cannot be cut off from above
    return cuts[inside], found[inside], cleared[inside]


def _middle_of_best(cuts: Floats, gain: Floats) -> float:
    """Return the middle one of the cuts whose gain is greatest."""
    best = cuts[gain >= gain.max() - 1e-12]
    return float(best[(len(best) - 1) // 2])
