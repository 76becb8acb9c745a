"""Is one arm better than another? Paired by image and patient, over all seeds, corrected for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from synthvision.evaluation.intervals import Estimate, Z, bootstrap, patient_draws
from synthvision.evaluation.metrics import Flags, Floats, roc_auc

POWER = 0.8
FEWEST_DISCORDANT = 6  # all on one side: with fewer no exact McNemar test gives p < 0.05


@dataclass(frozen=True)
class ArmRuns:
    """One arm's calls and scores on the same test images, one row per seed.

    Raises:
        ValueError: the shapes do not agree, or there is no seed.
    """

    called: Flags  # (seeds, N)
    score: Floats  # (seeds, N), of the positive class

    def __post_init__(self) -> None:
        if self.called.ndim != 2 or self.called.shape != self.score.shape or not len(self.called):
            raise ValueError(
                f"an arm's calls and scores must be (seeds, images); they are {self.called.shape} {self.score.shape}"
            )


@dataclass(frozen=True)
class Difference:
    """One arm minus a baseline."""

    arm: str
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate
    p: float  # of the accuracy's difference, by the bootstrap, two-sided
    p_adjusted: float  # by Holm, over all arms compared
    mcnemar: tuple[float, ...]  # exact p of each seed, by image
    delong: tuple[float, ...]  # p of each seed's AUC, by image
    detectable: float  # the smallest difference of accuracy that this test set shows with a probability of POWER


def differences(
    arms: Mapping[str, ArmRuns], baseline: str, truth: Flags, patients: Sequence[str], draws: int, seed: int = 0
) -> tuple[Difference, ...]:
    """Return every arm against `baseline`; patients and seeds are drawn anew together, the same for all arms.

    Raises:
        ValueError: the baseline is not among the arms, or an arm has other images.
    """
    if baseline not in arms:
        raise ValueError(f"the baseline must be one of {sorted(arms)}; it is {baseline!r}")
    for name, runs in arms.items():
        if runs.called.shape[1] != len(truth):
            raise ValueError(f"arm {name} has {runs.called.shape[1]} test images; there are {len(truth)}")
    weights = patient_draws(patients, draws, seed)
    people = len(set(patients))
    drawn = {name: drawn_measures(runs, truth, weights) for name, runs in arms.items()}
    points = {name: drawn_measures(runs, truth, None) for name, runs in arms.items()}
    found = []
    for name in (each for each in arms if each != baseline):
        changes = {m: drawn[name][m] - drawn[baseline][m] for m in drawn[name]}
        estimates = {m: bootstrap(float(points[name][m][0] - points[baseline][m][0]), change, people)
                     for m, change in changes.items()}  # fmt: skip
        found.append(_difference(name, estimates, changes["accuracy"], arms[name], arms[baseline], truth))
    if not found:
        return ()
    adjusted = multipletests([each.p for each in found], method="holm")[1]
    return tuple(replace(each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True))


def _difference(
    name: str, estimates: dict[str, Estimate], change: Floats, runs: ArmRuns, base: ArmRuns, truth: Flags
) -> Difference:
    pairs = list(zip(range(len(runs.called)), range(len(base.called)), strict=False))
    tests = [mcnemar_p(runs.called[i] == truth, base.called[j] == truth) for i, j in pairs]
    areas = [delong_paired(truth, runs.score[i], base.score[j])[1] for i, j in pairs]
    discordant = float(np.mean([(runs.called[i] != base.called[j]).mean() for i, j in pairs]))
    p = bootstrap_p(change)
    return Difference(
        arm=name, **estimates, p=p, p_adjusted=p, mcnemar=tuple(tests), delong=tuple(areas),
        detectable=smallest_difference(len(truth), discordant),
    )  # fmt: skip


def drawn_measures(runs: ArmRuns, truth: Flags, weights: Floats | None) -> dict[str, Floats]:
    """Return accuracy, sensitivity, specificity and AUC, means over seeds, under drawn patients and drawn seeds.

    Args:
        runs: of one arm.
        truth: (N,).
        weights: (draws, N); None for the point estimates, (1,) each.
    """
    draws = 1 if weights is None else len(weights)
    given = np.ones((1, len(truth))) if weights is None else weights
    seeds = len(runs.called)
    # All arms draw their seeds alike: the first seed of one stands beside the first of another.
    chosen = np.random.default_rng(0).integers(seeds, size=(draws, seeds))
    if weights is None:
        chosen = np.arange(seeds)[None]
    right = runs.called == truth
    by_seed = {
        "accuracy": _share(right, given),
        "sensitivity": _share(right[:, truth], given[:, truth]),
        "specificity": _share(right[:, ~truth], given[:, ~truth]),
        "auc": np.stack([roc_auc(truth, score, given) for score in runs.score], axis=1),
    }
    return {name: np.take_along_axis(values, chosen, axis=1).mean(1) for name, values in by_seed.items()}


def _share(right: Flags, weights: Floats) -> Floats:
    share: Floats = weights @ right.T / weights.sum(1, keepdims=True)  # (draws, seeds)
    return share


def bootstrap_p(change: Floats) -> float:
    """Return the two-sided p of no difference: twice the share of draws on the other side of zero, never 0."""
    tail = min(int((change <= 0).sum()), int((change >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(change) + 1))


def mcnemar_p(right: Flags, other: Flags) -> float:
    """Return the exact p that two classifiers are right equally often on the same images (N,)."""
    table = [[int((a & b).sum()) for b in (other, ~other)] for a in (right, ~right)]
    return float(mcnemar(table, exact=True).pvalue)


def delong_paired(truth: Flags, first: Floats, second: Floats) -> tuple[Estimate, float]:
    """Return the difference of two AUCs on the same images with DeLong's interval, and its two-sided p.

    Where both rank alike the variance is zero: then the difference is zero with p 1, or, if it is not, both are NaN.
    """
    above, below = zip(*(_placements(truth, score) for score in (first, second)), strict=True)
    value = float(above[0].mean() - above[1].mean())
    m, n = len(above[0]), len(below[0])
    variance = float((above[0] - above[1]).var(ddof=1) / m + (below[0] - below[1]).var(ddof=1) / n)
    if variance == 0:
        unknown = math.nan if value else 0.0
        return Estimate(value, unknown, unknown, m + n, "DeLong"), math.nan if value else 1.0
    half = math.sqrt(variance)
    interval = Estimate(value, value - Z * half, value + Z * half, m + n, "DeLong")
    return interval, 2 * float(norm.sf(abs(value) / half))


def _placements(truth: Flags, score: Floats) -> tuple[Floats, Floats]:
    """Return the share of others below each positive, and of positives above each other image."""
    positive, other = score[truth], score[~truth]
    m, n = len(positive), len(other)
    ranks = rankdata(np.concatenate([positive, other]))
    return (ranks[:m] - rankdata(positive)) / n, 1 - (ranks[m:] - rankdata(other)) / m


def smallest_difference(n: int, discordant: float, power: float = POWER) -> float:
    """Return the smallest difference of accuracy that McNemar's test on n images shows with this probability.

    Connor's formula (Biometrics 43, 1987), solved for the difference; at least what six discordant images make.

    Args:
        n: images, both classifiers on each.
        discordant: share of images on which the two differ.
        power: probability of showing it.
    """
    least = FEWEST_DISCORDANT / n
    share = max(discordant, least)
    z_power = float(norm.ppf(power))

    def short(difference: float) -> float:
        needed = Z * math.sqrt(share) + z_power * math.sqrt(share - difference**2)
        return difference * math.sqrt(n) - needed

    top = min(share, math.sqrt(share))
    if short(top) < 0:  # not even all discordant images on one side would do
        return top
    return max(least, float(brentq(short, 1e-12, top)))
