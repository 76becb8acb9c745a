"""Is one arm better than another? Paired by seed and patient, corrected for many comparisons.

Several seeds: an arm's difference varies from seed to seed, by training and, where each seed has test patients of its
own, by these; Student's t over the seeds has both in it. Where seeds share their test patients, these are the same
draw in every seed, and what the bootstrap of patients says of the mean is added (Satterthwaite's degrees of freedom).
One seed: the bootstrap of patients alone, which says nothing of another training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm, rankdata
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from synthvision.evaluation.intervals import LEVEL, Estimate, Z, bootstrap, patient_draws
from synthvision.evaluation.metrics import Flags, Floats, roc_auc

POWER = 0.8
FEWEST_DISCORDANT = 6  # all on one side: with fewer no exact McNemar test gives p < 0.05


@dataclass(frozen=True)
class Truth:
    """The test images of one seed. Seeds may share theirs, or each have its own."""

    positive: Flags  # (N,)
    patients: tuple[str, ...]  # of each image

    def __post_init__(self) -> None:
        if self.positive.shape != (len(self.patients),):
            raise ValueError(f"each image needs a patient; {self.positive.shape} images have {len(self.patients)}")


@dataclass(frozen=True)
class ArmRuns:
    """One arm's calls and scores, one array (N,) per seed.

    Raises:
        ValueError: the shapes do not agree, or there is no seed.
    """

    called: Sequence[Flags]
    score: Sequence[Floats]  # of the positive class

    def __post_init__(self) -> None:
        shapes = [[each.shape for each in part] for part in (self.called, self.score)]
        if not len(self.called) or shapes[0] != shapes[1] or any(len(shape) != 1 for shape in shapes[0]):
            raise ValueError(f"an arm's calls and scores must be (images,) each, one per seed; they are {shapes}")


@dataclass(frozen=True)
class Difference:
    """One arm minus a baseline."""

    arm: str
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate
    p: float  # of the accuracy's difference, two-sided, by what its interval is by
    p_adjusted: float  # by Holm, over all arms compared
    mcnemar: tuple[float, ...]  # exact p of each seed, by image
    delong: tuple[float, ...]  # p of each seed's AUC, by image
    detectable: float  # the smallest difference of accuracy that so many images show with a probability of POWER


BySeed = Mapping[str, Floats]  # measure -> (draws, seeds)


@dataclass(frozen=True)
class Measured:
    """Accuracy, sensitivity, specificity and AUC of one arm by seed."""

    found: BySeed  # on the test images as they are, one row
    drawn: BySeed  # on patients drawn anew, the same in all arms


def measure(arms: Mapping[str, ArmRuns], truths: Sequence[Truth], draws: int, seed: int = 0) -> Mapping[str, Measured]:
    """Measure every arm.

    Args:
        arms: each with one run per seed, in the order of `truths`.
        truths: of each seed. Where two seeds have the same patients, these are drawn alike for both.
        draws: of the bootstrap.
        seed: of the draws.

    Raises:
        ValueError: an arm has other seeds or images.
    """
    images = [len(truth.positive) for truth in truths]
    for name, runs in arms.items():
        if [len(called) for called in runs.called] != images:
            has = [len(called) for called in runs.called]
            raise ValueError(f"arm {name} has {has} test images, by seed; there are {images}")
    weights = _draw_patients(truths, draws, seed)
    return {name: Measured(_by_seed(runs, truths, None), _by_seed(runs, truths, weights))
            for name, runs in arms.items()}  # fmt: skip


def differences(
    arms: Mapping[str, ArmRuns], baseline: str, truths: Sequence[Truth], measured: Mapping[str, Measured]
) -> tuple[Difference, ...]:
    """Return every arm against `baseline`.

    Args:
        arms: as given to `measure`.
        baseline: one of them.
        truths: as given to `measure`.
        measured: what that returned.

    Raises:
        ValueError: the baseline is not among the arms.
    """
    if baseline not in arms:
        raise ValueError(f"the baseline must be one of {sorted(arms)}; it is {baseline!r}")
    base = measured[baseline]
    found = [
        _difference(name, _minus(measured[name].found, base.found), _minus(measured[name].drawn, base.drawn),
                    arms[name], arms[baseline], truths)
        for name in arms if name != baseline
    ]  # fmt: skip
    if not found:
        return ()
    adjusted = multipletests([each.p for each in found], method="holm")[1]
    return tuple(replace(each, p_adjusted=float(p)) for each, p in zip(found, adjusted, strict=True))


def _minus(one: BySeed, other: BySeed) -> BySeed:
    return {measure: values - other[measure] for measure, values in one.items()}


def _draw_patients(truths: Sequence[Truth], draws: int, seed: int) -> list[Floats]:
    """Return for each seed how often each image counts in each draw, (draws, N); see `patient_draws`."""
    sets = list(dict.fromkeys(truth.patients for truth in truths))
    return [patient_draws(truth.patients, draws, seed + sets.index(truth.patients)) for truth in truths]


def people(truths: Sequence[Truth]) -> int:
    """Return the number of patients in all test sets together."""
    return sum(len(set(patients)) for patients in {truth.patients for truth in truths})


def _difference(
    name: str, points: BySeed, drawn: BySeed, runs: ArmRuns, base: ArmRuns, truths: Sequence[Truth]
) -> Difference:
    tested = {measure: mean_over_seeds(points[measure][0], drawn[measure], truths) for measure in points}
    tests, areas, discordant = [], [], []
    for seed, truth in enumerate(truths):
        one, other = runs.called[seed], base.called[seed]
        tests.append(mcnemar_p(one == truth.positive, other == truth.positive))
        areas.append(delong_paired(truth.positive, runs.score[seed], base.score[seed])[1])
        discordant.append(float((one != other).mean()))
    images = sum(len(patients) for patients in {truth.patients for truth in truths})
    p = tested["accuracy"][1]
    return Difference(
        arm=name, **{measure: estimate for measure, (estimate, _) in tested.items()}, p=p, p_adjusted=p,
        mcnemar=tuple(tests), delong=tuple(areas), detectable=smallest_difference(images, float(np.mean(discordant))),
    )  # fmt: skip


def mean_over_seeds(change: Floats, drawn: Floats, truths: Sequence[Truth]) -> tuple[Estimate, float]:
    """Return the mean of a difference over seeds with its interval, and the two-sided p of none.

    Args:
        change: of each seed, (seeds,).
        drawn: the same with patients drawn anew, (draws, seeds).
        truths: of each seed.
    """
    value, seeds, patients = float(change.mean()), len(change), people(truths)
    training = float(change.var(ddof=1)) / seeds if seeds > 1 else 0.0
    of_patients = drawn.mean(1)
    shared = len({truth.patients for truth in truths}) < seeds
    common = float(np.nanvar(of_patients)) if shared else 0.0
    variance = training + common
    if seeds == 1 or variance == 0 or not math.isfinite(variance):
        return bootstrap(value, of_patients, patients), bootstrap_p(of_patients)
    freedom = variance**2 / (training**2 / (seeds - 1) + common**2 / max(1, patients - 1))
    error = math.sqrt(variance)
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * error
    interval = Estimate(value, value - half, value + half, patients, f"Student's t over {seeds} seeds")
    return interval, 2 * float(student.sf(abs(value) / error, freedom))


def _by_seed(runs: ArmRuns, truths: Sequence[Truth], weights: Sequence[Floats] | None) -> BySeed:
    """Return accuracy, sensitivity, specificity and AUC of each seed under drawn patients.

    Args:
        runs: of one arm.
        truths: of each seed.
        weights: of each seed, (draws, N); None for the point estimates, one row.
    """
    given = [np.ones((1, len(truth.positive))) for truth in truths] if weights is None else weights
    each_seed = [_measures(*each) for each in zip(runs.called, runs.score, truths, given, strict=True)]
    return {name: np.stack([each[name] for each in each_seed], axis=1) for name in each_seed[0]}


def draw_seeds(drawn: Floats) -> Floats:
    """Return means over seeds that are drawn anew in each draw, alike for all arms: (draws, seeds) -> (draws,)."""
    draws, seeds = drawn.shape
    chosen = np.random.default_rng(0).integers(seeds, size=(draws, seeds))
    mean: Floats = np.take_along_axis(drawn, chosen, axis=1).mean(1)
    return mean


def _measures(called: Flags, score: Floats, truth: Truth, weights: Floats) -> dict[str, Floats]:
    """Return each measure of one run in each draw, (draws,)."""
    positive = truth.positive
    right = called == positive
    return {
        "accuracy": _share(right, weights),
        "sensitivity": _share(right[positive], weights[:, positive]),
        "specificity": _share(right[~positive], weights[:, ~positive]),
        "auc": np.asarray(roc_auc(positive, score, weights)),
    }


def _share(right: Flags, weights: Floats) -> Floats:
    share: Floats = weights @ right / weights.sum(1)  # (draws,)
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
