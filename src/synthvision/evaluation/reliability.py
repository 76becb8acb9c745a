"""Whether a probability means what it says: reliability diagram, expected calibration error, Brier score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from synthvision.evaluation.intervals import Estimate, bootstrap, wilson
from synthvision.evaluation.metrics import Flags, Floats

BINS = 10
FEWEST = 10  # images in a bin of the diagram: below that its interval spans most of the axis


@dataclass(frozen=True)
class Bin:
    """Images whose probabilities are near each other: what was said on average, and how often it came true."""

    said: float
    came_true: Estimate


@dataclass(frozen=True)
class Reliability:
    """How honest the probability of the positive class is."""

    temperature: float  # that the probabilities were divided by; 1 as the classifier gives them
    bins: tuple[Bin, ...]  # with about as many images each, by rising probability
    ece: Estimate
    brier: Estimate  # mean squared error of the probability; 0.25 for "one half" said of everything
    excess: Estimate  # mean probability minus share of positives: above 0 where disease is expected too often


def reliability(truth: Flags, score: Floats, temperature: float, weights: Floats, patients: int) -> Reliability:
    """Return the calibration of `score` (N,), the probability that `truth` (N,) holds.

    Args:
        truth: (N,).
        score: (N,) in [0, 1].
        temperature: that gave these scores, for the record.
        weights: (draws, N), of the bootstrap by patient.
        patients: how many there are.
    """

    def estimate(measure: Callable[[Floats], Floats]) -> Estimate:
        return bootstrap(float(measure(np.ones((1, len(truth))))[0]), measure(weights), patients)

    error = (score - truth) ** 2
    return Reliability(
        temperature,
        _bins(truth, score),
        estimate(lambda w: expected_error(truth, score, w)),
        estimate(lambda w: w @ error / w.sum(1)),
        estimate(lambda w: w @ (score - truth) / w.sum(1)),
    )


def expected_error(truth: Flags, score: Floats, weights: Floats) -> Floats:
    """Return the expected calibration error over BINS bins of equal width under each row of weights (draws, N)."""
    place = np.minimum((score * BINS).astype(int), BINS - 1)
    inside = np.eye(BINS)[place]  # (N, BINS)
    gap: Floats = np.abs((weights * (score - truth)) @ inside).sum(1) / weights.sum(1)
    return gap


def _bins(truth: Flags, score: Floats) -> tuple[Bin, ...]:
    order = np.argsort(score, kind="stable")
    parts = np.array_split(order, max(1, min(BINS, len(order) // FEWEST)))
    return tuple(Bin(float(score[part].mean()), wilson(int(truth[part].sum()), len(part))) for part in parts)
