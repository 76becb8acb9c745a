"""What each rule's threshold gives on the test set, and what a call is worth at a stated prevalence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synthvision.evaluation.intervals import Estimate, wilson
from synthvision.evaluation.metrics import Flags, Floats


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold, chosen by its rule on validation images, and what it gives on the test set."""

    rule: str
    threshold: float
    used: bool  # the one that all other results are of
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate


@dataclass(frozen=True)
class AtPrevalence:
    """Predictive values where this share of people has the disease."""

    prevalence: float
    ppv: Estimate
    npv: Estimate


def operating_points(
    truth: Flags, score: Floats, thresholds: Mapping[str, float], used: float
) -> tuple[OperatingPoint, ...]:
    """Return one row per rule, in the order given.

    Args:
        truth: (N,), True for a positive.
        score: (N,), probability of the positive class.
        thresholds: rule -> threshold, all from validation.
        used: the threshold that the study decided by.
    """
    rows = []
    for rule, threshold in thresholds.items():
        called = score >= threshold
        tp, tn = int((truth & called).sum()), int((~truth & ~called).sum())
        counts = ((tp, truth.sum()), (tn, (~truth).sum()), (tp, called.sum()), (tn, (~called).sum()))
        rows.append(OperatingPoint(rule, threshold, threshold == used, *(wilson(part, int(n)) for part, n in counts)))
    return tuple(rows)


def at_prevalences(
    sensitivity: Estimate, specificity: Estimate, prevalences: Sequence[float]
) -> tuple[AtPrevalence, ...]:
    """Return PPV and NPV at stated prevalences, from Wilson estimates of sensitivity and specificity.

    Raises:
        ValueError: a prevalence is not between 0 and 1.
    """
    for value in prevalences:
        if not 0 < value < 1:
            raise ValueError(f"evaluate.prevalences must lie between 0 and 1, both left out; there is {value!r}")
    missed, alarmed = _complement(sensitivity), _complement(specificity)
    return tuple(
        AtPrevalence(p, _predictive(sensitivity, alarmed, p), _predictive(specificity, missed, 1 - p))
        for p in prevalences
    )


def _complement(share: Estimate) -> Estimate:
    return Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.n, share.method)


def _predictive(right: Estimate, wrong: Estimate, prior: float) -> Estimate:
    """Return the share of calls that are right: Bayes' rule on the ratio of two independent shares.

    The ratio's interval is Donner and Zou's (Statistical Methods in Medical Research 21, 2012) on Wilson's limits;
    unlike one on the logarithm it holds where a share is 0 or 1. The predictive value rises with the ratio.
    """
    method, n = "Donner-Zou", right.n + wrong.n
    a, b = right.value, wrong.value
    if not (a + b > 0):  # nobody is called so; NaN comes here too
        return Estimate(math.nan, math.nan, math.nan, n, method)
    product, odds = a * b, prior / (1 - prior)
    low = right.low * (2 * a - right.low)
    inside = product**2 - low * wrong.high * (2 * b - wrong.high)
    lowest = low / (product + math.sqrt(max(inside, 0.0))) if low > 0 else 0.0
    high = wrong.low * (2 * b - wrong.low)
    inside = product**2 - high * right.high * (2 * a - right.high)
    highest = (product + math.sqrt(max(inside, 0.0))) / high if high > 0 else math.inf
    value = _share(odds * a / b if b > 0 else math.inf)
    return Estimate(value, min(_share(odds * lowest), value), max(_share(odds * highest), value), n, method)


def _share(odds: float) -> float:
    return 1.0 if math.isinf(odds) else odds / (1 + odds)
