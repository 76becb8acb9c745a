"""How true to real images, and how varied, a set of candidates is: KID, precision, recall, density, coverage, Vendi.

All on our own features (`data.features.look`), brought to the real images' mean and spread: figures are comparable
between sets and runs of a study, not with those that others take from an Inception network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthvision.data.features import SIDE, look
from synthvision.data.images import load_batch
from synthvision.manifest import Manifest

Floats = NDArray[np.float64]
MIN_IMAGES = 50  # of either kind for KID, precision, recall, density and coverage
MIN_VARIED = 10  # of candidates for the Vendi score
NEIGHBOURS = 5  # as Naeem et al. (2020) choose
NORMAL = 1.96  # of a 95% interval


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def measure(candidates: Manifest, references: Manifest) -> dict[str, dict[str, float | str]]:
    """Return for each set of candidates its figures with the n they rest on, or why there are none.

    Args:
        candidates: those that are rejected as copies count too: they are what the model makes.
        references: real images of the disease, none of the test set.
    """
    real = look(load_batch(references, SIDE)) if len(references) else np.empty((0, 0))
    found = {}
    for name in dict.fromkeys(candidates.column("set")):
        made = look(load_batch(candidates.where(set=name), SIDE))
        found[name] = _figures(real, made)
    return found


def _figures(real: Floats, made: Floats) -> dict[str, float | str]:
    figures: dict[str, float | str] = {"n": len(made), "n_real": len(real)}
    if len(made) < MIN_VARIED:
        figures["no_vendi"] = f"{len(made)} candidates; {MIN_VARIED} are needed"
    else:
        figures["vendi"] = round(vendi(_standard(made, real if len(real) > 1 else made)), 4)
    if min(len(real), len(made)) < MIN_IMAGES:
        figures["no_fidelity"] = f"{len(made)} candidates and {len(real)} real images; {MIN_IMAGES} of each are needed"
        return figures
    x, y = _standard(real, real), _standard(made, real)
    distance = kid(x, y)
    figures |= {"kid": distance.value, "kid_low": distance.low, "kid_high": distance.high}
    figures |= prdc(x, y)
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in figures.items()}


def _standard(values: Floats, reference: Floats) -> Floats:
    scaled: Floats = (values - reference.mean(axis=0)) / np.maximum(reference.std(axis=0), 1e-6)
    return scaled


def kid(real: Floats, made: Floats) -> Estimate:
    """Return the kernel distance (unbiased MMD² with the kernel (x·y / d + 1)³) and its jackknife interval.

    Args:
        real: (n, d), n > 2.
        made: (m, d), m > 2.
    """
    n, m, width = len(real), len(made), real.shape[1]
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((real, real), (made, made), (real, made)))
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    sx, sy, sxy = xx.sum(), yy.sum(), xy.sum()
    value = sx / (n * (n - 1)) + sy / (m * (m - 1)) - 2 * sxy / (n * m)
    # The same without one real image, or without one candidate.
    no_x = (sx - 2 * xx.sum(1)) / ((n - 1) * (n - 2)) + sy / (m * (m - 1)) - 2 * (sxy - xy.sum(1)) / ((n - 1) * m)
    no_y = sx / (n * (n - 1)) + (sy - 2 * yy.sum(1)) / ((m - 1) * (m - 2)) - 2 * (sxy - xy.sum(0)) / (n * (m - 1))
    variance = (n - 1) * no_x.var() + (m - 1) * no_y.var()
    half = NORMAL * float(np.sqrt(variance))
    return Estimate(float(value), float(value) - half, float(value) + half)


def prdc(real: Floats, made: Floats, neighbours: int = NEIGHBOURS) -> Mapping[str, float]:
    """Return precision, recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Args:
        real: (n, d), n > neighbours.
        made: (m, d), m > neighbours.
        neighbours: whose distance is the radius around each image.
    """
    across = _distances(real, made)  # (n, m)
    around_real = np.sort(_distances(real, real), axis=1)[:, neighbours]  # the first is the image itself
    around_made = np.sort(_distances(made, made), axis=1)[:, neighbours]
    inside = across < around_real[:, None]
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((across < around_made[None]).any(axis=1).mean()),
        "density": float(inside.sum(axis=0).mean() / neighbours),
        "coverage": float((across.min(axis=1) < around_real).mean()),
    }


def _distances(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distances: Floats = np.sqrt(np.maximum(squares, 0))
    return distances


def vendi(features: Floats) -> float:
    """Return the Vendi score (Friedman and Dieng 2023) with cosine similarity: how many different images there are.

    Args:
        features: (n, d).

    Returns:
        1 where all are the same, n where each is unlike all others.
    """
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    weights = np.linalg.eigvalsh(unit @ unit.T / len(unit)).clip(min=0)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))
