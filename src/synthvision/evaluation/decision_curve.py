"""Is the classifier worth using? Net benefit (Vickers and Elkin, Medical Decision Making 26, 2006) and abstention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synthvision.evaluation.intervals import Estimate, wilson
from synthvision.evaluation.metrics import Flags, Floats

GRID = np.arange(1, 100) / 100
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit over the risk at which one would act, in true positives per image, at the test set's mix."""

    risk: tuple[float, ...]
    classifier: tuple[float, ...]
    low: tuple[float, ...]  # 95% limits by patient
    high: tuple[float, ...]
    act_on_all: tuple[float, ...]  # acting on none is 0


def decision_curve(truth: Flags, score: Floats, weights: Floats) -> DecisionCurve:
    """Return the net benefit of acting where `score` (N,) reaches the risk, for risks of 1% to 99%.

    Args:
        truth: (N,).
        score: (N,), an honest probability of disease.
        weights: (draws, N), of the bootstrap by patient.
    """
    called = score[:, None] >= GRID  # (N, risks)
    gain = called * np.where(truth[:, None], 1.0, -GRID / (1 - GRID))  # a false alarm costs the odds of the risk
    drawn = weights @ gain / weights.sum(1, keepdims=True)  # (draws, risks)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    prevalence = float(truth.mean())
    everyone = prevalence - (1 - prevalence) * GRID / (1 - GRID)
    rows = (GRID, gain.mean(0), low, high, everyone)
    return DecisionCurve(*(tuple(row.tolist()) for row in rows))


@dataclass(frozen=True)
class Abstention:
    """What remains wrong if the classifier answers only where it is surest and a physician sees the rest."""

    coverage: tuple[float, ...]
    risk: tuple[float, ...]  # share of wrong calls, positive or not, among the images answered
    area: float  # mean of `risk` over coverage: smaller is better
    table: tuple[Estimate, ...]  # risk at each of COVERAGES, with Wilson's interval


def abstention(truth: Flags, score: Floats, threshold: float) -> Abstention:
    """Return risk over coverage; an image is surer the further its score's log-odds lie from the threshold's.

    Args:
        truth: (N,).
        score: (N,), the probability of the positive class.
        threshold: an image is called positive at or above it.
    """
    clipped = np.clip([*score, threshold], 1e-9, 1 - 1e-9)
    odds = np.log(clipped / (1 - clipped))
    order = np.argsort(-np.abs(odds[:-1] - odds[-1]), kind="stable")
    wrong = np.cumsum(((score >= threshold) != truth)[order])
    answered = np.arange(1, len(truth) + 1)
    risk = wrong / answered
    at = [max(1, round(coverage * len(truth))) for coverage in COVERAGES]
    table = tuple(wilson(int(wrong[n - 1]), n) for n in at)
    return Abstention(tuple((answered / len(truth)).tolist()), tuple(risk.tolist()), float(risk.mean()), table)
