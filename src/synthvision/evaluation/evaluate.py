"""From predictions on the test set to all numbers of the report, in one frozen result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from synthvision.classification.calibration import at_temperature
from synthvision.evaluation import metrics
from synthvision.evaluation.decision_curve import Abstention, DecisionCurve, abstention, decision_curve
from synthvision.evaluation.fairness import Gap, gaps
from synthvision.evaluation.intervals import DRAWS, Estimate, bootstrap, delong, patient_draws, wilson
from synthvision.evaluation.metrics import Curve, Flags, Floats, Integers, ReportRow
from synthvision.evaluation.operating import AtPrevalence, OperatingPoint, at_prevalences, operating_points
from synthvision.evaluation.reliability import Reliability, reliability
from synthvision.evaluation.subgroups import MINIMUM, Subgroup, subgroups
from synthvision.manifest import COLUMNS, Manifest, Record
from synthvision.predictions import Predictions

SUBGROUP_COLUMNS = ("skin_tone", "body_part")
BLOCK = 200  # bootstrap draws at a time: keeps memory flat for large test sets


@dataclass(frozen=True)
class Choices:
    """What was fixed before the test set was opened.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)  # rule -> threshold, from validation
    temperature: float = 1.0  # from validation; makes probabilities honest and changes no decision
    prevalences: Sequence[float] = ()  # shares of diseased people for which predictive values are stated
    subgroups: Sequence[str] = SUBGROUP_COLUMNS  # columns of the manifest
    intersections: bool = True  # also every pair of these columns
    minimum: int = MINIMUM  # images below which nothing is said of a subgroup

    def __post_init__(self) -> None:
        for value in self.prevalences:
            if not 0 < value < 1:
                raise ValueError(f"evaluate.prevalences must lie between 0 and 1, both left out; there is {value!r}")
        unknown = [name for name in self.subgroups if name not in COLUMNS]
        if unknown:
            raise ValueError(f"evaluate.subgroups must be columns of the manifest, {COLUMNS}; these are not: {unknown}")
        if self.minimum < 1:
            raise ValueError(f"evaluate.minimum must be at least 1 image; it is {self.minimum!r}")


DEFAULTS = Choices()


@dataclass(frozen=True)
class ClassResult:
    """One class against all others, by the same decisions."""

    label: str
    images: int
    estimates: dict[str, Estimate]  # sensitivity, specificity, ppv, npv, f1, auc, average_precision


@dataclass(frozen=True)
class Evaluation:
    """All that is said of a classifier on a test set. Measures are of `positive` against all others unless named so."""

    classes: tuple[str, ...]
    positive: str
    threshold: float  # chosen on validation images
    images: int
    patients: int
    prevalence: float  # share of positives in the test set
    confusion: tuple[tuple[int, ...], ...]  # rows: truth; columns: decision
    estimates: dict[str, Estimate]  # name -> Wilson, DeLong or, where no formula holds, bootstrap by patient
    by_patient: dict[str, Estimate]  # the same names, all by patient bootstrap
    per_class: tuple[ClassResult, ...]
    report: tuple[ReportRow, ...]
    roc: Curve
    precision_recall: Curve
    subgroups: tuple[Subgroup, ...]
    subgroup_minimum: int
    gaps: tuple[Gap, ...]
    operating_points: tuple[OperatingPoint, ...]
    at_prevalences: tuple[AtPrevalence, ...]
    macro: dict[str, Estimate]  # means over the classes, each against all others
    reliability: tuple[Reliability, ...]  # as the classifier says it, and at the temperature from validation
    decision_curve: DecisionCurve  # of the calibrated probability
    abstention: Abstention


def evaluate(
    predictions: Predictions,
    manifest: Manifest,
    threshold: float,
    positive: str,
    seed: int = 0,
    draws: int = DRAWS,
    choices: Choices = DEFAULTS,
) -> Evaluation:
    """Return all results of `predictions` on the images of `manifest`.

    Args:
        predictions: one row per image of the manifest, in any order.
        manifest: the test split: real images only.
        threshold: an image is called positive where P(positive) reaches it; it must come from validation.
        positive: the class that is looked for.
        seed: of the bootstrap.
        draws: of the bootstrap.
        choices: what else was fixed before.

    Raises:
        ValueError: predictions and manifest do not describe the same real images, a class has no image, or the
            threshold lies outside [0, 1].
    """
    records = _matched(predictions, manifest)
    _check(predictions, records, threshold, positive)
    classes = tuple(predictions.classes)
    k = classes.index(positive)
    truth = np.array([classes.index(label) for label in predictions.label], dtype=np.int64)
    decided = metrics.decide(predictions.probability, k, threshold)
    patients = [record.patient or record.image_id for record in records]
    matrix = metrics.confusion_matrix(truth, decided, len(classes))
    weights = patient_draws(patients, draws, seed)
    estimates, by_patient = _overall(truth, decided, predictions.probability, k, weights, len(set(patients)))
    is_positive, score = truth == k, predictions.probability[:, k]
    honest = at_temperature(predictions.probability, choices.temperature)[:, k]
    groups = _groups(records, choices)
    people = len(set(patients))
    per_class = _per_class(classes, truth, decided, predictions.probability, weights, people)
    return Evaluation(
        classes=classes,
        positive=positive,
        threshold=float(threshold),
        images=len(records),
        patients=len(set(patients)),
        prevalence=float(is_positive.mean()),
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
        estimates=estimates,
        by_patient=by_patient,
        per_class=per_class,
        report=metrics.classification_report(matrix, classes),
        roc=metrics.roc_curve(is_positive, score),
        precision_recall=metrics.precision_recall_curve(is_positive, score),
        subgroups=subgroups(groups, is_positive, decided == k, score, choices.minimum),
        subgroup_minimum=choices.minimum,
        gaps=gaps(groups, is_positive, decided == k, patients, choices.minimum),
        operating_points=operating_points(is_positive, score, choices.thresholds, threshold),
        at_prevalences=at_prevalences(estimates["sensitivity"], estimates["specificity"], choices.prevalences),
        macro=_macro(classes, truth, decided, predictions.probability, weights, people),
        reliability=tuple(
            reliability(is_positive, said, temperature, weights, people)
            for said, temperature in ((score, 1.0), (honest, choices.temperature))
        ),
        decision_curve=decision_curve(is_positive, honest, weights),
        abstention=abstention(is_positive, score, threshold),
    )


def _groups(records: list[Record], choices: Choices) -> dict[str, list[str]]:
    """Return each subgroup column's cells, and those of each pair of columns."""
    single = {name: [str(getattr(record, name)) for record in records] for name in choices.subgroups}
    known = {name: cells for name, cells in single.items() if any(cells)}
    pairs = combinations(known, 2) if choices.intersections else ()
    joined = {f"{a} and {b}": [f"{x}, {y}" if x and y else "" for x, y in zip(known[a], known[b], strict=True)]
              for a, b in pairs}  # fmt: skip
    return {**single, **joined}


def _matched(predictions: Predictions, manifest: Manifest) -> list[Record]:
    known = {record.image_id: record for record in manifest}
    if set(known) != set(predictions.image_id) or len(known) != len(predictions.image_id):
        wrong = sorted(set(known) ^ set(predictions.image_id))[:5]
        raise ValueError(f"predictions must hold each test image once; missing, unknown or repeated: {wrong}")
    records = [known[name] for name in predictions.image_id]
    synthetic = [record.image_id for record in records if record.origin != "real"]
    if synthetic:
        raise ValueError(f"a test set must hold real images only; synthetic: {synthetic[:5]}")
    differ = [r.image_id for r, label in zip(records, predictions.label, strict=True) if r.label != label]
    if differ:
        raise ValueError(f"labels of predictions and manifest must agree; they differ for {differ[:5]}")
    return records


def _check(predictions: Predictions, records: list[Record], threshold: float, positive: str) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1]; it is {threshold}")
    if positive not in predictions.classes:
        raise ValueError(f"positive must be one of the classes {predictions.classes}; it is {positive!r}")
    labels = {record.label for record in records}
    if labels != set(predictions.classes):
        wrong = sorted(labels ^ set(predictions.classes))
        raise ValueError(f"each class needs a test image and each image a class of the weights; not so for {wrong}")


def _overall(
    truth: Integers, decided: Integers, probability: Floats, k: int, weights: Floats, patients: int
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    size = probability.shape[1]

    def measures(w: Floats) -> dict[str, Floats]:
        matrix = metrics.confusion_matrix(truth, decided, size, w)
        return {
            **_against_rest(matrix, truth == k, probability[:, k], k, w),
            "accuracy": metrics.accuracy(matrix),
            "balanced_accuracy": metrics.balanced_accuracy(matrix),
            "macro_f1": metrics.macro_f1(matrix),
            "mcc": metrics.mcc(matrix),
        }

    by_patient = _bootstrapped(measures, weights, patients)
    right = int((truth == decided).sum())
    exact = {**_exact(truth == k, decided == k, probability[:, k]), "accuracy": wilson(right, len(truth))}
    return {**by_patient, **exact}, by_patient


def _macro(
    classes: tuple[str, ...], truth: Integers, decided: Integers, probability: Floats, weights: Floats, patients: int
) -> dict[str, Estimate]:
    def measures(w: Floats) -> dict[str, Floats]:
        matrix = metrics.confusion_matrix(truth, decided, len(classes), w)
        each = [_against_rest(matrix, truth == k, probability[:, k], k, w) for k in range(len(classes))]
        return {name: np.mean([row[name] for row in each], axis=0) for name in each[0]}

    return _bootstrapped(measures, weights, patients)


def _per_class(
    classes: tuple[str, ...], truth: Integers, decided: Integers, probability: Floats, weights: Floats, patients: int
) -> tuple[ClassResult, ...]:
    results = []
    for k, label in enumerate(classes):

        def measures(w: Floats, k: int = k) -> dict[str, Floats]:
            matrix = metrics.confusion_matrix(truth, decided, len(classes), w)
            return _against_rest(matrix, truth == k, probability[:, k], k, w)

        estimates = _bootstrapped(measures, weights, patients) | _exact(truth == k, decided == k, probability[:, k])
        results.append(ClassResult(label, int((truth == k).sum()), estimates))
    return tuple(results)


def _against_rest(matrix: Floats, truth: Flags, score: Floats, k: int, weights: Floats) -> dict[str, Floats]:
    return {
        "sensitivity": metrics.sensitivity(matrix, k),
        "specificity": metrics.specificity(matrix, k),
        "ppv": metrics.ppv(matrix, k),
        "npv": metrics.npv(matrix, k),
        "auc": metrics.roc_auc(truth, score, weights),
        "average_precision": metrics.average_precision(truth, score, weights),
        "f1": metrics.f1(matrix, k),
    }


def _exact(truth: Flags, called: Flags, score: Floats) -> dict[str, Estimate]:
    tp, tn = int((truth & called).sum()), int((~truth & ~called).sum())
    return {
        "sensitivity": wilson(tp, int(truth.sum())),
        "specificity": wilson(tn, int((~truth).sum())),
        "ppv": wilson(tp, int(called.sum())),
        "npv": wilson(tn, int((~called).sum())),
        "auc": delong(truth, score),
    }


def _bootstrapped(
    measures: Callable[[Floats], dict[str, Floats]], weights: Floats, patients: int
) -> dict[str, Estimate]:
    point = measures(np.ones(weights.shape[1]))
    blocks = [measures(weights[start : start + BLOCK]) for start in range(0, len(weights), BLOCK)]
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in point}
    return {name: bootstrap(float(value), drawn[name], patients) for name, value in point.items()}
