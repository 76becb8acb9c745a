"""The classifier is trained on what the arm says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from synthvision import artifact
from synthvision.classification.train import train
from synthvision.manifest import Manifest
from synthvision.stages.context import Context, Result


def run_classify(given: Context) -> Result:
    """Train the classifier; epoch and threshold come from validation."""
    study = given.study
    images, validation = training_images(given), given.manifest("prepare").where(split="val")
    done = train(
        images, validation, study.disease.classes, study.classifier, given.out, given.work, study.seed, given.logger
    )
    images.write(given.out / "training.csv")
    done.val_predictions.write(given.out / "validation.csv")
    _write_rows(given.out / "history.csv", done.history)
    best = {f"best/{name}": value for name, value in done.history[done.best_epoch].items()}
    return Result(
        {**best, "threshold": done.threshold},
        [given.out / "history.csv", given.out / "validation.csv"],
        {"training": images, "validation": validation},
        classifier=done.weights,
    )


def training_images(given: Context) -> Manifest:
    """Return what the arm trains on: real images of the other classes, and the disease class as the arm says."""
    real, disease = given.manifest("prepare"), given.study.disease
    images = real.where(lambda r: r.split == "train" and r.label != disease.positive)
    for kind in given.study.arm.positives:
        if kind == "synthetic":
            images += given.manifest("review").where(decision="accept").with_values(lambda _: {"split": "train"})
        elif kind == "guides":
            images += real.where(split="guide")
        else:
            images += real.where(split="train", label=disease.positive)
    return images


def _write_rows(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    artifact.write_text(file, "\n".join(lines) + "\n")
