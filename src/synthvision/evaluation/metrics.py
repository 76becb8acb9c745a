"""What predictions are worth: decisions, the confusion matrix, the measures read off it, and the two curves.

Rows of a confusion matrix are the truth, columns the decision. Every measure takes a matrix of shape (..., C, C) or
weights of shape (..., N), so the same line computes a point estimate and all draws of a bootstrap. A measure that is
not defined (nobody was called positive, so there is no PPV) is NaN, never a silent 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def decide(probability: Floats, positive: int, threshold: float) -> Integers:
    """Return each image's decision, the index of a class.

    Args:
        probability: (N, C), rows sum to 1.
        positive: index of the class that the threshold belongs to.
        threshold: an image is called positive where P(positive) >= threshold; otherwise its likeliest other class.
    """
    others = probability.copy()
    others[:, positive] = -np.inf
    called = probability[:, positive] >= threshold
    return np.where(called, positive, others.argmax(axis=1)).astype(np.int64)


def confusion_matrix(truth: Integers, decided: Integers, classes: int, weights: Floats | None = None) -> Floats:
    """Return the confusion matrix (..., C, C) of `truth` and `decided` (N,) under weights (..., N), by default 1."""
    cell = np.eye(classes * classes)[truth * classes + decided]  # (N, C * C)
    weights = np.ones(len(truth)) if weights is None else weights
    matrix: Floats = (weights @ cell).reshape(*weights.shape[:-1], classes, classes)
    return matrix


def _ratio(part: Floats, whole: Floats) -> Floats:
    part, whole = np.broadcast_arrays(part, whole)
    ratio: Floats = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio


def sensitivity(matrix: Floats, of: int = 0) -> Floats:
    """Return the share of class `of`'s images that were found (recall); (..., C, C) -> (...)."""
    return _ratio(matrix[..., of, of], matrix[..., of, :].sum(-1))


def ppv(matrix: Floats, of: int = 0) -> Floats:
    """Return the share of the images called `of` that are (positive predictive value, precision)."""
    return _ratio(matrix[..., of, of], matrix[..., :, of].sum(-1))


def _true_negatives(matrix: Floats, of: int) -> Floats:
    involved = matrix[..., of, :].sum(-1) + matrix[..., :, of].sum(-1) - matrix[..., of, of]
    rest: Floats = matrix.sum((-2, -1)) - involved
    return rest


def specificity(matrix: Floats, of: int = 0) -> Floats:
    """Return the share of the other classes' images that were not called `of`."""
    return _ratio(_true_negatives(matrix, of), matrix.sum((-2, -1)) - matrix[..., of, :].sum(-1))


def npv(matrix: Floats, of: int = 0) -> Floats:
    """Return the share of the images not called `of` that are not (negative predictive value)."""
    return _ratio(_true_negatives(matrix, of), matrix.sum((-2, -1)) - matrix[..., :, of].sum(-1))


def accuracy(matrix: Floats) -> Floats:
    """Return the share of images whose decision is right."""
    return _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def balanced_accuracy(matrix: Floats) -> Floats:
    """Return the mean of all classes' sensitivities: 1 / C for a classifier that knows nothing."""
    mean: Floats = np.mean([sensitivity(matrix, k) for k in range(matrix.shape[-1])], axis=0)
    return mean


def f1(matrix: Floats, of: int = 0) -> Floats:
    """Return the harmonic mean of class `of`'s precision and recall."""
    return _ratio(2 * matrix[..., of, of], matrix[..., of, :].sum(-1) + matrix[..., :, of].sum(-1))


def macro_f1(matrix: Floats) -> Floats:
    """Return the mean of all classes' F1."""
    mean: Floats = np.mean([f1(matrix, k) for k in range(matrix.shape[-1])], axis=0)
    return mean


def mcc(matrix: Floats) -> Floats:
    """Return Matthews' correlation of truth and decision, for C > 2 in Gorodkin's form; in [-1, 1]."""
    total = matrix.sum((-2, -1))
    truth, called = matrix.sum(-1), matrix.sum(-2)  # (..., C)
    covariance = np.trace(matrix, axis1=-2, axis2=-1) * total - (truth * called).sum(-1)
    spread = (total**2 - (truth**2).sum(-1)) * (total**2 - (called**2).sum(-1))
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))


def _by_score(truth: Flags, score: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Return the weight of positives and of others at each distinct score, from the highest down; both (..., U)."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    weights = (np.ones(len(score)) if weights is None else weights)[..., order]
    positive: Floats = np.add.reduceat(weights * truth[order], starts, axis=-1)
    return positive, np.add.reduceat(weights * ~truth[order], starts, axis=-1)


def roc_auc(truth: Flags, score: Floats, weights: Floats | None = None) -> Floats:
    """Return the area under the ROC curve: how often a positive outscores another image, ties counting half."""
    positive, other = _by_score(truth, score, weights)
    lower = other.sum(-1, keepdims=True) - np.cumsum(other, axis=-1)
    return _ratio((positive * (lower + other / 2)).sum(-1), positive.sum(-1) * other.sum(-1))


def average_precision(truth: Flags, score: Floats, weights: Floats | None = None) -> Floats:
    """Return the mean precision over the recall gained at each distinct score; equals the prevalence by chance."""
    positive, other = _by_score(truth, score, weights)
    found, called = np.cumsum(positive, axis=-1), np.cumsum(positive + other, axis=-1)
    gained = np.where(positive > 0, positive * found / np.maximum(called, 1e-300), 0.0)
    return _ratio(gained.sum(-1), positive.sum(-1))


@dataclass(frozen=True)
class Curve:
    """Points of a curve, one per distinct score from the highest down, after a point before any image is called."""

    x: tuple[float, ...]
    y: tuple[float, ...]


def roc_curve(truth: Flags, score: Floats) -> Curve:
    """Return x = 1 - specificity and y = sensitivity at every threshold, from (0, 0) to (1, 1)."""
    positive, other = _by_score(truth, score, None)
    x, y = (np.r_[0.0, np.cumsum(part) / part.sum()] for part in (other, positive))
    return Curve(tuple(x.tolist()), tuple(y.tolist()))


def precision_recall_curve(truth: Flags, score: Floats) -> Curve:
    """Return x = recall and y = precision at every threshold; at recall 0 the first precision is repeated."""
    positive, other = _by_score(truth, score, None)
    found = np.cumsum(positive)
    precision = found / (found + np.cumsum(other))
    return Curve(tuple(np.r_[0.0, found / found[-1]].tolist()), tuple(np.r_[precision[0], precision].tolist()))


@dataclass(frozen=True)
class ReportRow:
    """One line of a classification report; the accuracy's line has its value in `f1`, as both papers print it."""

    name: str
    precision: float | None
    recall: float | None
    f1: float
    support: int


def classification_report(matrix: Floats, classes: Sequence[str]) -> tuple[ReportRow, ...]:
    """Return the papers' table: each class, then accuracy, macro average and average weighted by support."""
    support = matrix.sum(1)
    precision, recall, both = ([float(of(matrix, k)) for k in range(len(classes))] for of in (ppv, sensitivity, f1))
    n = int(support.sum())
    rows = [ReportRow(*row) for row in zip(classes, precision, recall, both, support.astype(int).tolist(), strict=True)]
    rows.append(ReportRow("accuracy", None, None, float(accuracy(matrix)), n))
    for name, weights in (("macro avg", None), ("weighted avg", support)):
        mean = [float(np.average(values, weights=weights)) for values in (precision, recall, both)]
        rows.append(ReportRow(name, mean[0], mean[1], mean[2], n))
    return tuple(rows)


def report_text(rows: Sequence[ReportRow], digits: int = 2) -> str:
    """Return a classification report as the papers print it, in the layout of scikit-learn."""
    width = max(len("weighted avg"), *(len(row.name) for row in rows))
    lines = [f"{'':>{width}} " + "".join(f" {name:>9}" for name in ("precision", "recall", "f1-score", "support")), ""]
    for row in rows:
        if row.name == "accuracy":
            lines.append("")
        cells = (f" {'' if v is None else format(v, f'.{digits}f'):>9}" for v in (row.precision, row.recall, row.f1))
        lines.append(f"{row.name:>{width}} " + "".join(cells) + f" {row.support:>9}")
    return "\n".join(lines) + "\n"
