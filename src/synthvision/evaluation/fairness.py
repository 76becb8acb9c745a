"""Does it work less well for some? Each subgroup against all others, with an interval, and no false accusations.

Images of one patient resemble each other, so counts are reduced to the number of independent images that would tell as
much (Rao and Scott, Biometrics 48, 1992); of many comparisons some differ by chance, so Holm's correction is applied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from synthvision.evaluation.intervals import LEVEL, Estimate
from synthvision.evaluation.metrics import Flags
from synthvision.evaluation.subgroups import MINIMUM, NOT_STATED

Texts = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Gap:
    """One measure in a subgroup minus the same measure in all other images."""

    column: str
    value: str
    measure: str  # "sensitivity" or "specificity"
    here: float
    elsewhere: float
    difference: Estimate  # with Newcombe's interval; n: images in the subgroup
    p: float
    p_adjusted: float  # by Holm, over all gaps of the study

    @property
    def found(self) -> bool:
        """Whether the gap is more than chance explains."""
        return self.p_adjusted < 1 - LEVEL


def gaps(
    columns: Mapping[str, Sequence[str]],
    truth: Flags,
    called: Flags,
    patients: Sequence[str],
    minimum: int = MINIMUM,
) -> tuple[Gap, ...]:
    """Return the gaps of all subgroups that have enough images on both sides.

    Args:
        columns: name of a column -> its value for each of the N images; empty means that it is not stated.
        truth, called: (N,).
        patients: (N,).
        minimum: the fewest images on either side.
    """
    people = np.asarray(patients)
    found = []
    for measure, among, right in (("sensitivity", truth, called), ("specificity", ~truth, ~called)):
        for column, cells in columns.items():
            values = np.asarray([cell or NOT_STATED for cell in cells])
            for value in sorted(set(values.tolist())):
                inside, outside = among & (values == value), among & (values != value)
                if min(inside.sum(), outside.sum()) >= minimum:
                    found.append(_gap((column, value, measure), right, people, inside, outside))
    if not found:
        return ()
    adjusted = multipletests([gap.p for gap in found], method="holm")[1]
    return tuple(replace(gap, p_adjusted=float(p)) for gap, p in zip(found, adjusted, strict=True))


def _gap(of: tuple[str, str, str], right: Flags, people: Texts, inside: Flags, outside: Flags) -> Gap:
    (a, n), (b, m) = (effective(right[part], people[part]) for part in (inside, outside))
    (low_a, high_a), (low_b, high_b) = (_wilson(share, count) for share, count in ((a, n), (b, m)))
    low = a - b - math.hypot(a - low_a, high_b - b)
    high = a - b + math.hypot(high_a - a, b - low_b)
    pooled = (a * n + b * m) / (n + m)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    p = 2 * float(norm.sf(abs(a - b) / spread)) if spread > 0 else 1.0
    return Gap(*of, a, b, Estimate(a - b, low, high, int(inside.sum()), "Newcombe, by patient"), p, p)


def effective(right: Flags, patients: Texts) -> tuple[float, float]:
    """Return a share and the number of independent images that would tell as much about it.

    Where all agree, nothing is known of how alike a patient's images are: then each patient counts once.
    """
    names, index = np.unique(patients, return_inverse=True)
    n, share = len(right), float(right.mean())
    if len(names) == 1 or share in (0.0, 1.0):
        return share, float(len(names))
    residual = np.bincount(index, right - share)  # (patients,)
    variance = len(names) / (len(names) - 1) * float((residual**2).sum()) / n**2
    return share, n / max(1.0, variance * n / (share * (1 - share)))


def _wilson(share: float, n: float) -> tuple[float, float]:
    low, high = proportion_confint(share * n, n, alpha=1 - LEVEL, method="wilson")
    return min(float(low), share), max(float(high), share)
