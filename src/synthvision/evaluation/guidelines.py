"""What three reporting guidelines ask for, and what this study knows of it: CLAIM, TRIPOD+AI and STARD-AI.

An item is "answered" where the study knows the answer and "missing" where only its authors do.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from synthvision.evaluation import words
from synthvision.evaluation.report_input import ReportInput

ITEMS: dict[str, list[tuple[str, str, str]]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
NONE = "none"


def checklists(given: ReportInput) -> dict[str, list[dict[str, str]]]:
    """Return each guideline's items: topic, what is asked, the answer and the section of the report that gives it."""
    known = answers(given)
    return {
        guideline: [
            {
                "topic": topic,
                "asked": asked,
                "answer": known.get(key, ("", ""))[0],
                "where": known.get(key, ("", ""))[1],
            }
            for topic, asked, key in items
        ]
        for guideline, items in ITEMS.items()
    }


def answers(given: ReportInput) -> dict[str, tuple[str, str]]:
    """Return what the study knows: key -> (text, anchor in the report); an unknown one has an empty text."""
    result, real = given.evaluation, given.real
    counts = {split: len(real.where(split=split)) for split in ("guide", "train", "val", "test")}
    patients = f"{result.patients} patients" if all(r.patient for r in real.where(split="test")) else "patients unknown"
    synthetic = given.training.where(origin="synthetic")
    auc = result.estimates["auc"]
    calibrated = result.reliability[-1]
    return {
        "result": (" ".join(words.answer(result)), "results"),
        "sources": (_stated(given, "licence", "licences"), "data"),
        "reference_standard": (_stated(given, "reference_standard", "reference standards"), "data"),
        "consent": (_stated(given, "consent", "consent"), "data"),
        "preprocessing": ("The largest central square, resized; one form for real and synthetic images.", "provenance"),
        "deidentification": ("Patients appear as salted hashes; no file or patient name is kept.", "provenance"),
        "unusable": (
            f"{given.quarantined} unusable files set aside, {given.duplicates} duplicates dropped, {given.leaks} leaks "
            "removed.",
            "data",
        ),
        "synthetic": (
            f"{len(given.candidates)} candidates by {given.backbone}, {len(synthetic)} used in training.", "images"
        ) if len(synthetic) else ("No synthetic image was used.", "images"),
        "splits": (
            f"By patient where known: {counts['guide']} guides, {counts['val']} validation and {counts['test']} test "
            "images; copies across splits are searched for.",
            "data",
        ),
        "sample_size": (f"{result.images} test images, {patients}; no calculation was made beforehand.", "results"),
        "model": (f"Layers and sizes are in the classifier's model.json; {len(result.classes)} outputs.", "provenance"),
        "start": ("classifier.model.weights in the logged configuration.", "provenance"),
        "software": (", ".join(f"{name} {version}" for name, version in given.versions.items()), "provenance"),
        "training": (
            f"{len(given.training)} images; epoch {given.best_epoch} kept by validation loss alone; the recipe is "
            "logged with the run.",
            "training",
        ),
        "threshold": (
            f"P({result.positive}) at least {result.threshold:.3f}, fixed on validation images before.", "results"
        ),
        "probes": ("; ".join(probe.sentence for probe in given.probes), "probes"),
        "flow": (f"{len(real)} real images, {result.images} of them tested.", "data"),
        "subgroups": (words.fairness(result) if result.subgroups else "", "subgroups"),
        "failures": ("Wrong calls are shown with what they resemble." if given.errors else "", "errors"),
        "explained": (
            "Maps of attention and of covering, each with a test of whether it means anything." if given.errors else "",
            "errors",
        ),
        "limits": ("Stated in the report.", "limits"),
        "provenance": ("Every stage with its command and fingerprint.", "provenance"),
        "calibration": (
            f"AUC {words.decimal(auc.value)}; expected calibration error {words.decimal(calibrated.ece.value)} and "
            f"Brier score {words.decimal(calibrated.brier.value)} after temperature scaling on validation.",
            "results",
        ),
        "balance": (_balance(given), "data"),
        "intervals": (
            "Wilson for shares, DeLong for the AUC, bootstrap of whole patients; Holm for comparisons.", "results"
        ),
        "abstention": ("The classifier answers every image; what abstention would give is shown.", "results"),
        "external": (
            " ".join(words.answer(test.evaluation, f"images of {test.name}")[0] for test in given.external), "external"
        ),
        "confusion": (f"Rows are the truth: {[list(row) for row in result.confusion]}.", "results"),
    }  # fmt: skip


def _stated(given: ReportInput, column: str, what: str) -> str:
    """Return what is stated of the real images, or nothing where it is stated of none."""
    values = sorted({getattr(record, column) for record in given.real} - {""})
    unknown = sum(not getattr(record, column) for record in given.real)
    if not values:
        return ""
    return f"Stated {what}: {', '.join(values)}" + (f"; not stated for {unknown} images." if unknown else ".")


def _balance(given: ReportInput) -> str:
    counts = {label: given.training.column("label").count(label) for label in given.evaluation.classes}
    return "Training images: " + ", ".join(f"{count} {label}" for label, count in counts.items()) + "."
