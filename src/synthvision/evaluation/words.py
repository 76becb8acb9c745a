"""The report's numbers as people read them, and its sentences: what came out, how sure it is, what to be wary of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from synthvision.evaluation.evaluate import Evaluation
from synthvision.evaluation.intervals import Estimate
from synthvision.evaluation.ledger import Opening
from synthvision.evaluation.probes import NEGLIGIBLE, Probe
from synthvision.manifest import EXTERNAL, Manifest

UNKNOWN = "\N{EN DASH}"
PHANTOM = "phantom"  # the reference standard of drawn images
PERCENTAGES = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy")
MEASURES = {  # name -> title, meaning; in the order of the table
    "sensitivity": ("Sensitivity", "share of the {positive} images that were found"),
    "specificity": ("Specificity", "share of the other images that were cleared"),
    "ppv": ("PPV", "share of the images called {positive} that are, at this test set's mix"),
    "npv": ("NPV", "share of the images cleared that are free of it, at this test set's mix"),
    "accuracy": ("Accuracy", "share of all images called rightly"),
    "balanced_accuracy": ("Balanced accuracy", "mean of the classes' sensitivities"),
    "auc": ("AUC", "how often a {positive} image scores above another, at any threshold"),
    "average_precision": ("Average precision", "area under the precision-recall curve; {prevalence} by chance"),
    "f1": ("F1", "harmonic mean of sensitivity and PPV"),
    "macro_f1": ("Macro F1", "mean of the classes' F1"),
    "mcc": ("MCC", "correlation of truth and decision; 0 by chance"),
}


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal; 100 and 0 only where they are exact."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    return f"{min(max(100 * value, 0.1), 99.9):.1f}%"


def decimal(value: float | None, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{100 * value:+.1f}"


def show(name: str, value: float | None) -> str:
    """Return a measure's value in its own unit: shares in percent, areas and correlations as decimals."""
    return percent(value) if name in PERCENTAGES else decimal(value)


def between(name: str, estimate: Estimate) -> str:
    """Return an estimate's interval in the unit of its measure, as "86.2% to 97.8%"."""
    if not math.isfinite(estimate.low):
        return UNKNOWN
    return f"{show(name, estimate.low)} to {show(name, estimate.high)}"


RULES = {  # of thresholds -> what they look for on validation images
    "logistic": "both classes equally likely, counted as equally frequent",
    "youden": "greatest sensitivity + specificity",
    "sensitivity": "highest threshold that keeps the wanted sensitivity",
    "specificity": "lowest threshold that keeps the wanted specificity",
    "cost": "least expected cost, a miss weighing more than a false alarm",
}


def fairness(evaluation: Evaluation) -> str:
    """Return in one sentence whether some are served worse than others."""
    if not evaluation.gaps:
        return "There are too few images in every subgroup to say whether some are served worse than others."
    named = [
        f"{gap.measure} for {gap.value} ({gap.column.replace('_', ' ')}) is {signed(gap.difference.value)} points "
        f"({signed(gap.difference.low)} to {signed(gap.difference.high)}) from that of all others"
        for gap in evaluation.gaps
        if gap.found
    ]
    count = len(evaluation.gaps)
    if named:
        return (
            f"Of {count} comparisons of subgroups, after Holm's correction, a difference is shown: {'; '.join(named)}."
        )
    widest = max(evaluation.gaps, key=lambda gap: gap.difference.high - gap.difference.low)
    return (
        f"Of {count} comparisons of subgroups none shows a difference after Holm's correction. That is no proof of "
        f"equality: the widest interval runs from {signed(widest.difference.low)} to {signed(widest.difference.high)} "
        "points."
    )


@dataclass(frozen=True)
class Remark:
    """A sentence on how far to trust the result. `grave` ones are set apart on the first screen."""

    grave: bool
    text: str


def answer(evaluation: Evaluation, test_of: str = "real images held out from training") -> list[str]:
    """Return the result and its uncertainty in plain words, the one-line answer first."""
    found, cleared = evaluation.estimates["sensitivity"], evaluation.estimates["specificity"]
    hits, clears = round(found.value * found.n), round(cleared.value * cleared.n)
    name = evaluation.positive
    return [
        f"On {evaluation.images} {test_of}, the classifier found {hits} of {found.n} {name} images and wrongly flagged "
        f"{cleared.n - clears} of {cleared.n} others.",
        f"With this many images, the true sensitivity may plausibly lie anywhere from {between('sensitivity', found)} "
        f"and the true specificity from {between('specificity', cleared)} (95% intervals). "
        f"The decision threshold, P({name}) ≥ {evaluation.threshold:.3f}, was fixed on validation images before.",
    ]


def banners(real: Manifest, candidates: Manifest) -> list[str]:
    """Return what must stand above everything else: a phantom's data, and that no physician reviewed."""
    found = []
    if len(real) and all(record.reference_standard == PHANTOM for record in real):
        found.append(
            "Phantom study. Every “real” image here was drawn by a program to test the method. "
            "The results say nothing about any patient or disease."
        )
    reviewers = {record.reviewer for record in candidates if record.decision}
    if "unattended" in reviewers:
        which = "these" if reviewers == {"unattended"} else "some of the"
        found.append(
            f"No physician reviewed {which} generated images. "
            "An unattended policy accepted what passed automatic checks."
        )
    return found


def remarks(
    evaluation: Evaluation,
    real: Manifest,
    training: Manifest,
    probes: Sequence[Probe],
    openings: Sequence[Opening],
    leaks: int,
) -> list[Remark]:
    """Return what strengthens and what weakens the result, the grave ones first."""
    found = [
        _openings(openings),
        _patients(evaluation, real),
        *_patients_of_guides(real),
        _leaks(leaks, real, training),
        *_confounded(training),
        Remark(any(gap.found for gap in evaluation.gaps), fairness(evaluation)),
        *_strongest(probes),
        *_unknown(real),
    ]
    return sorted(found, key=lambda remark: not remark.grave)


def _openings(openings: Sequence[Opening]) -> Remark:
    if not openings:
        return Remark(True, "No opening of the test set is on record: its result cannot be trusted.")
    if len(openings) == 1:
        return Remark(False, "The test set was opened once, after everything else was fixed.")
    return Remark(
        True,
        f"The test set has been opened {len(openings)} times. What was learnt from earlier looks may have shaped this "
        "result; the ledger below gives the reasons.",
    )


def _patients(evaluation: Evaluation, real: Manifest) -> Remark:
    unknown = real.where(split="test").column("patient").count("")
    if unknown:
        return Remark(
            True,
            f"The patients of {unknown} of the {evaluation.images} test images are not known: each image counts as a "
            "patient of its own, so intervals may be too narrow, and a patient may be in more than one split.",
        )
    if evaluation.patients == evaluation.images:
        return Remark(False, f"The {evaluation.images} test images come from as many patients.")
    wide = between("sensitivity", evaluation.by_patient["sensitivity"])
    text = f"The {evaluation.images} test images come from {evaluation.patients} patients, so they are not independent."
    return Remark(False, text + (f" Drawn by patient, sensitivity spans {wide}." if wide != UNKNOWN else ""))


def _patients_of_guides(real: Manifest) -> list[Remark]:
    unknown = real.where(split="guide").where(lambda r: not r.patient and r.reference_standard != PHANTOM)
    if not len(unknown):
        return []
    text = (
        f"The patients of {len(unknown)} guide images are not known: other pictures of theirs may be in the test set."
    )
    return [Remark(True, text)]


def _leaks(leaks: int, real: Manifest, training: Manifest) -> Remark:
    splits: dict[str, set[str]] = {}
    for record in real:
        if record.patient and record.split:
            splits.setdefault(record.patient, set()).add(record.split)
    crossing = sum(len(of) > 1 for of in splits.values())
    held_out = {record.image_id for record in real if record.split in ("val", "test", EXTERNAL)}
    painted = sum(record.painted_on in held_out or record.image_id in held_out for record in training)
    if crossing or painted:
        return Remark(
            True,
            f"Patients in more than one of guides, training, validation and test: {crossing}. Training images that "
            f"come from held-out ones: {painted}. The result is too good by an unknown amount.",
        )
    if leaks:
        return Remark(True, f"{leaks} leaks between guides, training, validation and test were found and removed.")
    return Remark(
        False, "No image, near-copy or known patient is in more than one of guides, training, validation, test."
    )


def _confounded(training: Manifest) -> list[Remark]:
    origins: dict[str, set[str]] = {}
    for record in training:
        origins.setdefault(record.label, set()).add(record.origin)
    single = {next(iter(kinds)) for kinds in origins.values() if len(kinds) == 1}
    if len(single) < 2:
        return []
    only = ", ".join(sorted(label for label, kinds in origins.items() if kinds == {"synthetic"}))
    return [
        Remark(
            True,
            f"In training every {only} image is synthetic and other classes are all real: the classifier could have "
            "learned to see the generator instead of the disease. The test is on real images only, so what it scores "
            "there is not won that way; the probes below show how strong the temptation is.",
        )
    ]


def _strongest(probes: Sequence[Probe]) -> list[Remark]:
    if not probes:
        return [Remark(True, "No probe was run: nothing is known of shortcuts in these images.")]
    best = {probe.name: max(probe.models.values(), key=lambda e: e.value) for probe in probes}
    worst = max(probes, key=lambda probe: best[probe.name].low)
    return [Remark(best[worst.name].low > NEGLIGIBLE, worst.sentence)]


def _unknown(real: Manifest) -> list[Remark]:
    found = []
    for column, what in (
        ("reference_standard", "how the diagnosis was made"),
        ("consent", "whether consent was given"),
    ):
        missing = Counter(record.split or "no split" for record in real if not getattr(record, column))
        if missing:
            where = ", ".join(f"{count} in {split}" for split, count in sorted(missing.items()))
            found.append(Remark(True, f"It is not stated {what} for {missing.total()} images ({where})."))
    return found
