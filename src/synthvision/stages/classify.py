"""The classifier is trained on what the arm says."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synthvision import artifact
from synthvision.classification.model import WEIGHTS_FILE
from synthvision.classification.resume import best_epoch
from synthvision.classification.train import Trained, train
from synthvision.data.cache import ImageCache
from synthvision.manifest import Manifest
from synthvision.stages.composition import training_phases
from synthvision.stages.context import Context, Result, image_cache
from synthvision.study import Study

HISTORY = "history.csv"
FIRST = "first_phase"  # folder of an arm's first training, and of its resumable state


def run_classify(given: Context) -> Result:
    """Train the classifier; epoch and threshold come from validation."""
    study = given.study
    *before, images = training_phases(given)
    validation = given.manifest("prepare").where(split="val")
    first = _first_phase(given, before[0], validation) if before else None
    done = train(
        images, validation, study.disease.classes, study.classifier, given.out, given.work, study.seed, given.logger,
        start=first.weights / WEIGHTS_FILE if first else None, cache=_cache(study),
        on_epoch=given.on_epoch,
    )  # fmt: skip
    seen = _together([*before, images])
    seen.write(given.out / "training.csv")
    inputs = {"training": seen, "validation": validation}
    ended = _result(done, inputs)
    before_it = {f"first/{name}": value for name, value in first.history[first.best_epoch].items()} if first else {}
    budgets = {epochs: _result(part, inputs) for epochs, part in done.budgets.items()}
    return replace(ended, metrics={**ended.metrics, **before_it}, budgets=budgets)


def read_validation(folder: Path) -> dict[str, float]:
    """Return `best/val/...` of a finished classifier, as its run has them."""
    with (folder / HISTORY).open(newline="") as stream:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]
    return {f"best/{name}": value for name, value in rows[best_epoch(rows)].items() if name.startswith("val/")}


def _result(done: Trained, inputs: Mapping[str, Manifest]) -> Result:
    """Write validation's predictions and the history beside the weights."""
    folder = done.weights.parent
    done.val_predictions.write(folder / "validation.csv")
    _write_rows(folder / HISTORY, done.history)
    kept = done.history[done.best_epoch]
    # MLflow's compare page draws the first metric by name: it shall be one that runs are chosen by.
    best = {f"best/{name}": value for name, value in kept.items() if name.startswith("val/")}
    reached = {"reached/epoch": kept["epoch"], "threshold": done.threshold}
    files = [folder / HISTORY, folder / "validation.csv"]
    return Result({**best, **reached}, files, inputs, classifier=done.weights)


def _first_phase(given: Context, images: Manifest, validation: Manifest) -> Trained:
    """Train as the arm says before its own training; a finished one is taken up, not repeated."""
    study, phase = given.study, given.study.arm.before
    assert phase is not None
    config = replace(study.classifier, epochs=phase.epochs, lr=phase.lr, budgets=())
    folder = given.out / FIRST
    # No logger: its curves would lie upon those of the second phase.
    done = train(images, validation, study.disease.classes, config, folder, given.work / FIRST, study.seed,
                 cache=_cache(study))  # fmt: skip
    images.write(folder / "training.csv")
    _write_rows(folder / HISTORY, done.history)
    return done


def _cache(study: Study) -> ImageCache:
    """Return the cache that all runs share: arms and seeds train on the same images."""
    return image_cache(study, study.classifier.model.image_size)


def _together(phases: Sequence[Manifest]) -> Manifest:
    """Return every image that any phase trained on, once."""
    records = {record.image_id: record for images in phases for record in images}
    return Manifest(tuple(records.values()), phases[-1].root)


def _write_rows(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    artifact.write_text(file, "\n".join(lines) + "\n")
