"""The operating point, chosen on validation images only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def youden_threshold(probability: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the threshold with the largest sensitivity + specificity - 1; an image is positive at or above it.

    Thresholds are tried halfway between neighbouring probabilities, where they are farthest from any image; among
    equally good ones the middle one is taken.

    Args:
        probability: float64 (N,) of the positive class.
        positive: bool (N,), the truth.

    Raises:
        ValueError: there are no positives or no negatives.
    """
    if positive.all() or not positive.any():
        raise ValueError(
            f"a threshold needs positives and negatives; {int(positive.sum())} of {len(positive)} are positive"
        )
    values = np.unique(probability)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2, [(values[-1] + 1) / 2]])
    above = probability[None, :] >= cuts[:, None]  # (cuts, N)
    sensitivity = (above & positive).sum(1) / positive.sum()
    specificity = (~above & ~positive).sum(1) / (~positive).sum()
    index = sensitivity + specificity
    best = np.flatnonzero(np.isclose(index, index.max(), rtol=0, atol=1e-12))
    return float(cuts[best[(len(best) - 1) // 2]])
