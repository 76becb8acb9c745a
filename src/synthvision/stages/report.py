"""The report is written from what the stages before it left."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

from synthvision.evaluation.errors import read_errors
from synthvision.evaluation.ledger import Ledger
from synthvision.evaluation.probes import Probe
from synthvision.evaluation.report import ReportInput, write_report
from synthvision.evaluation.shortcuts import read_probes
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions
from synthvision.stages.context import WEIGHTS, Context, Result, versions
from synthvision.stages.evaluate import evaluated, identity_of
from synthvision.stages.external import read_external
from synthvision.stages.generate import FIDELITY
from synthvision.stages.prepare import PROBES


def run_report(given: Context) -> Result:
    """Write the report from what the stages before it left."""
    study, disease = given.study, given.study.disease
    real = given.manifest("prepare")
    test = real.where(split="test")
    result = evaluated(given, Predictions.read(given.before["evaluate"] / "predictions.csv"), test)
    audit = json.loads((given.before["prepare"] / "audit.json").read_text())
    described = json.loads((given.before["classify"] / WEIGHTS / "model.json").read_text())
    trained = given.before.get("dreambooth")
    page = write_report(
        ReportInput(
            study=study.study,
            title=f"{disease.name}: {', '.join(disease.classes)}",
            backbone=study.backbone.name,
            arm=study.arm.name,
            real=real,
            candidates=given.manifest("review") if study.generates else Manifest((), study.folder),
            training=Manifest.read(given.before["classify"] / "training.csv", study.folder),
            evaluation=result,
            openings=Ledger(study.folder / "ledger").openings(identity_of(test)),
            probes=[*read_probes(given.before["evaluate"] / "probes.json"), *_of_intake(given.before["prepare"])],
            external=read_external(given, given.before["external"]) if "external" in given.before else (),
            errors=read_errors(given.before["evaluate"] / "errors"),
            fidelity=json.loads((given.before["generate"] / FIDELITY).read_text()) if study.generates else {},
            diffusion_losses=_losses(trained),
            history=_read_rows(given.before["classify"] / "history.csv"),
            best_epoch=described["epoch"],
            stages=given.stages,
            commands=given.commands,
            versions=versions(),
            seeds={"seed": study.seed, "dataset.seed": study.dataset.seed},
            quarantined=audit["quarantined"],
            duplicates=audit["duplicates"],
            leaks=len(audit["leaks"]),
            samples=sorted((trained / "samples").glob("*.png")) if trained else (),
        ),
        given.out,
    )
    return Result(files=[page, given.out / "report.json", given.out / "figures"])


def _of_intake(prepared: Path) -> list[Probe]:
    """Return what `prepare` found out about shortcuts in real images but those of the test set, before any training."""
    return [replace(probe, name=f"{probe.name} of real images") for probe in read_probes(prepared / PROBES)]


def _losses(trained: Path | None) -> list[dict[str, float]]:
    """Return DreamBooth's losses by step; none for an arm without it and for the control without a step."""
    file = trained / "losses.csv" if trained else None
    return _read_rows(file) if file and file.is_file() else []


def _read_rows(file: Path) -> list[dict[str, float]]:
    with file.open(newline="") as handle:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(handle)]
