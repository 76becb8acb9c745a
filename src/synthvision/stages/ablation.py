"""The arms of a study beside one another, from the reports that its runs left. No test set is opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from synthvision import artifact
from synthvision.evaluation.ablation import Ablation, Arm, Composition, ablate
from synthvision.evaluation.ablation_page import sentences, write_page
from synthvision.evaluation.comparison import ArmRuns, Truth
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions
from synthvision.stages.context import MANIFEST, Context, Result
from synthvision.study import Study

PAGE, DATA = "ablation.html", "ablation.json"
Reports = dict[str, dict[int, Path]]  # arm -> seed -> folder of its newest report


def run_ablation(given: Context) -> Result:
    """Compare the arms of a study that were run with the seeds of the baseline.

    Raises:
        ValueError: the baseline has no report, or an arm was tested on other images.
    """
    study = given.study
    reports, left_out = comparable(study)
    found = _ablate(study, reports)
    artifact.write_json(given.out / DATA, {"answer": sentences(found), **asdict(found)})
    write_page(found, left_out, study.study, given.commands["this stage"], given.out / PAGE)
    metrics = {f"ablation/{row.arm}": row.accuracy.value for row in found.rows}
    return Result(metrics, [given.out / PAGE, given.out / DATA, given.out / "figures"])


def read_answer(folder: Path) -> list[str]:
    """Return what a finished comparison says in words."""
    answer: list[str] = json.loads((folder / DATA).read_text())["answer"]
    return answer


def ablation_inputs(study: Study) -> Mapping[str, Any]:
    """Return what the comparison depends on: the baseline and the reports."""
    reports, left_out = comparable(study)
    files = {arm: {seed: artifact.sha256_file(folder / "report.json") for seed, folder in each.items()}
             for arm, each in reports.items()}  # fmt: skip
    return {"baseline": study.evaluate.baseline, "reports": files, "left_out": left_out}


def comparable(study: Study) -> tuple[Reports, dict[str, list[int]]]:
    """Return the reports of the baseline's seeds, and of the arms that lack some of them which they lack.

    Raises:
        ValueError: the baseline has no report.
    """
    found, baseline = newest_reports(study.folder), study.evaluate.baseline
    if baseline not in found:
        raise ValueError(
            f"evaluate.baseline must be an arm of study {study.study} that has a report, one of {sorted(found)}; it is "
            f"{baseline!r}. Run it first: synthvision arm={baseline}"
        )
    seeds = sorted(found[baseline])
    left_out = {arm: lacking for arm, each in found.items() if (lacking := [s for s in seeds if s not in each])}
    kept = {arm: {seed: each[seed] for seed in seeds} for arm, each in found.items() if arm not in left_out}
    return kept, left_out


def newest_reports(folder: Path) -> Reports:
    """Return the newest report of each arm and seed; arms of several backbones are told apart by name."""
    files = sorted(folder.glob("report/*/report.json"), key=lambda file: file.stat().st_mtime)
    read = [(file.parent, json.loads(file.read_text())) for file in files]
    several = len({content["backbone"] for _, content in read}) > 1
    found: Reports = {}
    for where, content in read:
        name = f"{content['arm']} ({content['backbone']})" if several else content["arm"]
        found.setdefault(name, {})[content["seeds"]["seed"]] = where
    return found


def _ablate(study: Study, reports: Reports) -> Ablation:
    baseline = study.evaluate.baseline
    seeds = sorted(reports[baseline])
    patients = _patients(study)
    first = [Predictions.read(_made(study, reports[baseline][seed], "evaluate") / "predictions.csv") for seed in seeds]
    truths = []
    for predictions in first:
        test = artifact.digest_of(list(predictions.image_id))  # a number of one drawing is another patient in the next
        people = tuple(f"{test} {patients[image]}" for image in predictions.image_id)
        truths.append(Truth(np.array(predictions.label) == study.disease.positive, people))
    arms = {}
    for name, each in reports.items():
        called, scores = [], []
        for seed, same in zip(seeds, first, strict=True):
            folder = _made(study, each[seed], "evaluate")
            predictions = Predictions.read(folder / "predictions.csv")
            if predictions.image_id != same.image_id:
                raise ValueError(f"the newest runs of {name} and of {baseline} with seed {seed} were tested on "
                                 "different images; run both anew with the same dataset")  # fmt: skip
            score = predictions.of(study.disease.positive)
            scores.append(score)
            called.append(score >= json.loads((folder / "evaluation.json").read_text())["threshold"])
        arms[name] = Arm(_composition(study, each.values()), ArmRuns(called, scores))
    return ablate(arms, baseline, truths, seeds)


def _composition(study: Study, reports: Iterable[Path]) -> Composition:
    """Return how many images of the disease an arm was trained on, the same for all its seeds."""
    training = Manifest.read(_made(study, next(iter(reports)), "classify") / "training.csv", study.folder)
    of_disease = training.where(label=study.disease.positive)
    guides = len(of_disease.where(split="guide"))
    real = len(of_disease.where(origin="real")) - guides
    return Composition(real, guides, len(of_disease) - guides - real)


def _made(study: Study, report: Path, stage: str) -> Path:
    """Return the folder of a stage that a report was made from."""
    content = json.loads((report / "report.json").read_text())
    used = next(row["fingerprint"] for row in content["stages"] if row["stage"] == stage)
    return study.folder / stage / str(used)


def _patients(study: Study) -> dict[str, str]:
    known: dict[str, str] = {}
    for file in study.folder.glob(f"prepare/*/{MANIFEST}"):
        known |= {each.image_id: each.patient or each.image_id for each in Manifest.read(file, study.folder)}
    return known
