"""The test set is opened, once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from synthvision import artifact
from synthvision.classification.predict import load_classifier, predict
from synthvision.evaluation.errors import write_errors
from synthvision.evaluation.evaluate import Evaluation, evaluate
from synthvision.evaluation.figures import figures_of, png
from synthvision.evaluation.intervals import Estimate
from synthvision.evaluation.ledger import Ledger, Opening
from synthvision.evaluation.probes import Probe
from synthvision.evaluation.shortcuts import probe_metrics, probe_study, read_probes, write_probes
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions
from synthvision.stages.context import MANIFEST, WEIGHTS, Context, Result
from synthvision.study import Study

LEDGER = "ledger"  # folder in a study's


def run_evaluate(given: Context) -> Result:
    """Open the test set, once, and predict on it."""
    study = given.study
    test = given.manifest("prepare").where(split="test")
    probes = _probes(given)  # before the test set is opened: nothing may fail afterwards that could fail now
    opening = open_test_set(given, test)
    predictions = predict(given.before["classify"] / WEIGHTS, test, study.classifier.batch_size)
    predictions.write(given.out / "predictions.csv")
    result = evaluated(given, predictions, test)
    artifact.write_json(given.out / "evaluation.json", asdict(result))
    write_probes(given.out / "probes.json", probes)
    model = load_classifier(given.before["classify"] / WEIGHTS)
    training = Manifest.read(given.before["classify"] / "training.csv", study.folder)
    write_errors(model, predictions, test, training, study.evaluate.cases, study.seed, given.out / "errors")
    for name, figure in figures_of(result).items():
        artifact.write_bytes(given.out / "figures" / f"{name}.png", png(figure))
    return Result(
        read_headline(given.out),
        [given.out / "predictions.csv", given.out / "figures"],
        {"testing": test},
        tags={"test_opening": opening.number},
    )


def open_test_set(given: Context, test: Manifest) -> Opening:
    """Enter the opening into the ledger before any test label is read."""
    study = given.study
    return Ledger(study.folder / LEDGER).open(
        identity_of(test), given.out.name, given.run_id, study.evaluate.reopen, planned=planned_as(study)
    )


def check_may_open(study: Study, prepared: Path) -> None:
    """Refuse before the training what `open_test_set` would refuse after it.

    Raises:
        LedgerError: the test set was opened before, and neither a reason nor a plan lets this run in.
    """
    test = Manifest.read(prepared / MANIFEST, study.folder).where(split="test")
    Ledger(study.folder / LEDGER).check(identity_of(test), study.evaluate.reopen, planned_as(study))


def planned_as(study: Study) -> str:
    """Return a run's name in the plans of its study."""
    return planned_run(study.arm.name, study.backbone.name, study.seed)


def planned_run(arm: str, backbone: str, seed: int) -> str:
    """Name a run as plans in the ledger do."""
    return f"{arm} with {backbone}, seed {seed}"


def identity_of(test: Manifest) -> str:
    """Return a digest of a test set's images, at whatever size they were prepared and wherever they lie, and labels.

    An image's id holds the digest of the file that it was read from.
    """
    return artifact.digest_of(sorted((record.image_id, record.label) for record in test))


def evaluated(given: Context, predictions: Predictions, test: Manifest) -> Evaluation:
    """Return all results at the thresholds and the temperature that validation gave."""
    chosen = json.loads((given.before["classify"] / WEIGHTS / "model.json").read_text())
    return evaluate(
        predictions, test, float(chosen["threshold"]), given.study.disease.positive, given.study.seed,
        choices=given.study.evaluate.choices(chosen["thresholds"], chosen["temperature"]),
    )  # fmt: skip


def _probes(given: Context) -> tuple[Probe, ...]:
    known = given.manifest("prepare").where(lambda record: record.split in ("guide", "train", "val"))
    none = Manifest((), given.study.folder)
    synthetic = given.manifest("review").where(decision="accept") if given.study.generates else none
    return probe_study(known, synthetic, given.study.disease.positive, given.study.dataset.size)


def read_headline(folder: Path) -> dict[str, float]:
    """Return the test metrics and probes that a finished evaluation left in its folder."""
    saved = json.loads((folder / "evaluation.json").read_text())["estimates"]
    estimates = {name: Estimate(**value) for name, value in saved.items()}
    return {**metric_rows(estimates, "test"), **probe_metrics(read_probes(folder / "probes.json"))}


def metric_rows(estimates: Mapping[str, Estimate], of: str) -> dict[str, float]:
    """Return metrics with their intervals' ends, under MLflow names that begin with `of`."""
    rows: dict[str, float] = {}
    for name, estimate in estimates.items():
        rows |= {f"{of}/{name}": estimate.value, f"{of}/{name}_low": estimate.low, f"{of}/{name}_high": estimate.high}
    return {name: value for name, value in rows.items() if value == value}
