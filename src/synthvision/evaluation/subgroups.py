"""The same measures within each subgroup, and "too few to say" where there are not enough images for a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthvision.evaluation.intervals import Estimate, delong, wilson
from synthvision.evaluation.metrics import Flags, Floats

MINIMUM = 10  # below ten images Wilson's interval spans more than 0.3 even at a perfect score
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Subgroup:
    """Results on the images that share one value of one column; None where they are too few to say."""

    column: str
    value: str
    positives: int
    others: int
    sensitivity: Estimate | None
    specificity: Estimate | None
    auc: Estimate | None


def worth_showing(groups: Sequence[Subgroup]) -> tuple[Subgroup, ...]:
    """Return them without those combinations of two columns of which nothing can be said: there are many."""
    return tuple(each for each in groups if " and " not in each.column or each.sensitivity or each.specificity)


def subgroups(
    columns: Mapping[str, Sequence[str]], truth: Flags, called: Flags, score: Floats, minimum: int = MINIMUM
) -> tuple[Subgroup, ...]:
    """Return the results in every subgroup, in the order of the columns and of their values.

    Args:
        columns: name of a column -> its value for each of the N images; empty means that it is not stated.
        truth: (N,), True for an image of the positive class.
        called: (N,), True for an image that was called positive.
        score: (N,), the probability of the positive class.
        minimum: the fewest images of a kind (positives for sensitivity, others for specificity) that give a number.
    """
    found = []
    for column, cells in columns.items():
        values = np.asarray([cell or NOT_STATED for cell in cells])
        for value in sorted(set(values.tolist())):
            inside = values == value
            found.append(_subgroup(column, value, truth[inside], called[inside], score[inside], minimum))
    return tuple(found)


def _subgroup(column: str, value: str, truth: Flags, called: Flags, score: Floats, minimum: int) -> Subgroup:
    positives, others = int(truth.sum()), int((~truth).sum())
    hits, clears = int((truth & called).sum()), int((~truth & ~called).sum())
    return Subgroup(
        column=column,
        value=value,
        positives=positives,
        others=others,
        sensitivity=wilson(hits, positives) if positives >= minimum else None,
        specificity=wilson(clears, others) if others >= minimum else None,
        auc=delong(truth, score) if min(positives, others) >= minimum else None,
    )
