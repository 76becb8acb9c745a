"""How far a number can be trusted: Wilson's, DeLong's and the patient bootstrap's 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from statsmodels.stats.proportion import proportion_confint

from synthvision.evaluation.metrics import Flags, Floats

LEVEL = 0.95
DRAWS = 2000
TINY = 1e-9
Z = float(norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval. A value or a limit that cannot be given is NaN."""

    value: float
    low: float
    high: float
    n: int  # what was counted: images for Wilson and DeLong, patients for the bootstrap
    method: str


def wilson(successes: int, n: int) -> Estimate:
    """Return a proportion with Wilson's score interval (JASA 22, 1927), which stays sensible at 0 and at n."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "Wilson")
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    value = successes / n  # rounding may leave it 1e-16 outside of its own limits at 0 and at n
    return Estimate(value, min(float(low), value), max(float(high), value), n, "Wilson")


def delong(truth: Flags, score: Floats) -> Estimate:
    """Return the area under the ROC curve with DeLong's interval (Biometrics 44, 1988), cut at 0 and 1.

    At perfect separation, and where all scores are equal, DeLong's variance is zero, which would claim certainty;
    Newcombe's fifth method (Statistics in Medicine 25, 2006) stands in and is named. With fewer than two positives or
    others there is no interval.

    Args:
        truth: (N,), True for a positive.
        score: (N,), higher means more positive.
    """
    positive, other = score[truth], score[~truth]
    m, n = len(positive), len(other)
    if min(m, n) == 0:
        return Estimate(math.nan, math.nan, math.nan, m + n, "DeLong")
    ranks = rankdata(np.concatenate([positive, other]))  # ties share their mean rank
    above = (ranks[:m] - rankdata(positive)) / n  # (m,) share of others below each positive
    below = 1 - (ranks[m:] - rankdata(other)) / m  # (n,) share of positives above each other
    value = float(above.mean())
    if min(m, n) < 2:
        return Estimate(value, math.nan, math.nan, m + n, "DeLong")
    variance = float(above.var(ddof=1) / m + below.var(ddof=1) / n)
    if variance == 0:
        return _newcombe(value, m, n)
    half = Z * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), m + n, "DeLong")


def _newcombe(value: float, m: int, n: int) -> Estimate:
    spare = (m + n) / 2 - 1

    def gap(area: float) -> float:
        variance = area * (1 - area) * (1 + spare * ((1 - area) / (2 - area) + area / (1 + area))) / (m * n)
        return (value - area) ** 2 - Z**2 * variance

    # `gap` is negative at `value` and positive far from it; its further roots at 0 and 1 are no limits
    low = float(brentq(gap, TINY, min(value, 1 - TINY))) if value > 0 else 0.0
    high = float(brentq(gap, max(value, TINY), 1 - TINY)) if value < 1 else 1.0
    return Estimate(value, low, high, m + n, "Newcombe")


def patient_draws(patients: Sequence[str], draws: int, seed: int) -> Floats:
    """Return how often each image counts in each bootstrap draw of whole patients, (draws, N).

    Several images of one patient resemble each other, so the patient is drawn, never the image.
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    generator = np.random.default_rng([seed, draws])
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return drawn[:, index].astype(np.float64)


def bootstrap(value: float, drawn: Floats, patients: int) -> Estimate:
    """Return a value with the percentile interval of its bootstrap draws (B,).

    Draws in which the measure is not defined are left out. Where all others agree (a perfect score) or most are
    undefined, the bootstrap says nothing and the limits are NaN.
    """
    method = "bootstrap by patient"
    usable = drawn[np.isfinite(drawn)]
    if len(usable) * 2 < len(drawn) or np.ptp(usable) == 0:
        return Estimate(value, math.nan, math.nan, patients, method)
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), patients, method)
