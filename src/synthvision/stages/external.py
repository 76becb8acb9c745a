"""External test sets are opened, each with a ledger of its own; the study's own test set stays as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from synthvision import artifact
from synthvision.classification.predict import load_classifier
from synthvision.evaluation.figures import figures_of, png
from synthvision.evaluation.ledger import Ledger
from synthvision.evaluation.report_input import ExternalTest
from synthvision.manifest import EXTERNAL, Manifest
from synthvision.predictions import Predictions
from synthvision.stages.context import MANIFEST, WEIGHTS, Context, Result
from synthvision.stages.evaluate import LEDGER, evaluated, identity_of, metric_rows, planned_as
from synthvision.study import Study

PREDICTIONS = "predictions.csv"


def run_external(given: Context) -> Result:
    """Open the sets that `evaluate.external` names and predict on them."""
    study, weights = given.study, given.before["classify"] / WEIGHTS
    sets = external_sets(study, given.before["prepare"])  # all are checked before one is opened
    model = load_classifier(weights)
    metrics: dict[str, float] = {}
    for name, test in sets.items():
        _ledger(study).open(
            identity_of(test), _evaluation(given, name), given.run_id, study.evaluate.reopen, planned=planned_as(study)
        )
        predictions = model.predict(test, study.classifier.batch_size)
        predictions.write(given.out / name / PREDICTIONS)
        result = evaluated(given, predictions, test)
        artifact.write_json(given.out / name / "evaluation.json", asdict(result))
        for title, figure in figures_of(result).items():
            artifact.write_bytes(given.out / name / "figures" / f"{title}.png", png(figure))
        metrics |= metric_rows(result.estimates, f"external/{name}")
    inputs = {f"external {name}": test for name, test in sets.items()}
    return Result(metrics, [given.out / name for name in sets], inputs)


def check_may_open_external(study: Study, prepared: Path) -> None:
    """Refuse before the training what would be refused after it.

    Raises:
        ValueError: as of `external_sets`.
        LedgerError: a set was opened before, and neither a reason nor a plan lets this run in.
    """
    for test in external_sets(study, prepared).values():
        _ledger(study).check(identity_of(test), study.evaluate.reopen, planned_as(study))


def external_sets(study: Study, prepared: Path) -> dict[str, Manifest]:
    """Return the sets that `evaluate.external` names.

    Raises:
        ValueError: none is named, there is none of a name, or one lacks a class.
    """
    there = Manifest.read(prepared / MANIFEST, study.folder).where(split=EXTERNAL)
    known = sorted(set(there.column("set")))
    if not study.evaluate.external:
        raise ValueError(f"evaluate.external must name one or more external test sets of {known}; it names none")
    found = {}
    for name in study.evaluate.external:
        if name not in known:
            raise ValueError(f"evaluate.external may name the data's external test sets, {known}; it names {name!r}")
        found[name] = there.where(set=name)
        missing = sorted(set(study.disease.classes) - set(found[name].column("label")))
        if missing:
            raise ValueError(f"external test set {name!r}: each class needs an image; there is none of {missing}")
    return found


def read_external(given: Context, folder: Path) -> list[ExternalTest]:
    """Return what `run_external` left in its folder, with the openings of each set."""
    return [
        ExternalTest(
            name,
            evaluated(given, Predictions.read(folder / name / PREDICTIONS), test),
            _ledger(given.study).openings(identity_of(test)),
        )
        for name, test in external_sets(given.study, given.before["prepare"]).items()
    ]


def _ledger(study: Study) -> Ledger:
    return Ledger(study.folder / LEDGER)


def _evaluation(given: Context, name: str) -> str:
    """Return what tells one evaluation of a set from another: another set beside it does not make it a new one."""
    chosen = asdict(given.study.evaluate) | {"reopen": None, "external": [name]}
    return artifact.digest_of([given.before["classify"].name, given.study.seed, chosen])[:16]
