"""The arms of a study beside one another, from the reports that its runs left. No test set is opened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from synthvision import artifact
from synthvision.evaluation.ablation import Ablation, Arm, Composition, ablate
from synthvision.evaluation.ablation_page import sentences, write_page
from synthvision.evaluation.comparison import ArmRuns, Truth
from synthvision.evaluation.ledger import Ledger
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions
from synthvision.stages.context import MANIFEST, Context, Result
from synthvision.stages.evaluate import LEDGER
from synthvision.study import Study

PAGE, DATA = "ablation.html", "ablation.json"
Reports = dict[str, dict[int, Path]]  # arm -> seed -> folder of its newest report
Settings = dict[str, str]  # key of the classifier's -> value


def run_ablation(given: Context) -> Result:
    """Compare the arms of a study that were run with the seeds of the baseline.

    Raises:
        ValueError: the baseline has no report, or an arm was tested on other images.
    """
    study = given.study
    reports, left_out = shared(newest_reports(study.folder), study.evaluate.baseline)
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
    reports, left_out = shared(newest_reports(study.folder), study.evaluate.baseline)
    files = {arm: {seed: artifact.sha256_file(folder / "report.json") for seed, folder in each.items()}
             for arm, each in reports.items()}  # fmt: skip
    return {"baseline": study.evaluate.baseline, "reports": files, "left_out": left_out}


def shared(found: Reports, baseline: str) -> tuple[Reports, dict[str, list[int]]]:
    """Return the reports of the seeds that are compared, and of the arms that lack some of them which they lack.

    Compared are those of the baseline's seeds that give most runs beside it: neither one more seed of the baseline nor
    one arm with fewer changes which.

    Raises:
        ValueError: the baseline has no report.
    """
    if baseline not in found:
        raise ValueError(
            f"evaluate.baseline must be an arm that has a report, one of {sorted(found)}; it is {baseline!r}. Name one "
            f"of these, or run it first: synthvision arm={baseline}"
        )
    of_arm = {arm: frozenset(each) & frozenset(found[baseline]) for arm, each in found.items()}
    beside = [seeds for arm, seeds in of_arm.items() if arm != baseline] or [of_arm[baseline]]
    runs = {each: len(each) * sum(each <= other for other in beside) for each in beside}
    most = max(beside, key=lambda each: (runs[each], len(each), sorted(each)))
    seeds = sorted(most)
    left_out = {arm: lacking for arm, each in found.items() if (lacking := [s for s in seeds if s not in each])}
    kept = {arm: {seed: each[seed] for seed in seeds} for arm, each in found.items() if arm not in left_out}
    return kept, left_out


def newest_reports(folder: Path) -> Reports:
    """Return the newest report of each arm and seed; one arm on several backbones is an arm on each."""
    files = sorted(folder.glob("report/*/report.json"), key=lambda file: file.stat().st_mtime)
    read = [(file.parent, json.loads(file.read_text())) for file in files]
    backbones: dict[str, set[str]] = {}
    for _, content in read:
        backbones.setdefault(content["arm"], set()).add(content["backbone"])
    found: Reports = {}
    for where, content in read:
        arm, backbone = content["arm"], content["backbone"]
        name = f"{arm} ({backbone})" if len(backbones[arm]) > 1 else arm
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
    arms, settings = {}, {name: _settings(study, name, each) for name, each in reports.items()}
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
        arms[name] = Arm(_made_of(study, name, each, _unusual(settings, name)), ArmRuns(called, scores))
    return ablate(arms, baseline, truths, seeds)


def _made_of(study: Study, name: str, reports: Mapping[int, Path], settings: str) -> Composition:
    """Return what an arm was trained on and how, the same for all its seeds.

    Raises:
        ValueError: its seeds differ in it.
    """
    several = [_trained_on(study, report) for report in reports.values()]
    if len(set(several)) > 1:
        raise ValueError(f"arm {name}: its seeds must be trained on equally many images; they are {several}")
    return replace(several[0], settings=settings, opened=_opened(study, reports))


def _trained_on(study: Study, report: Path) -> Composition:
    """Return how many images of the disease a run was trained on, and how many of all classes it was shown."""
    folder = _made(study, report, "classify")
    training, config = Manifest.read(folder / "training.csv", study.folder), _config(folder)
    arm, classifier = config["arm"], config["classifier"]
    of_disease = training.where(label=study.disease.positive)
    counts = {name: len(images) for name, images in _by_origin(of_disease).items()}
    others = len(training) - len(of_disease)
    shown = 0
    for phase, epochs in [(arm["before"], (arm["before"] or {}).get("epochs")), (arm, classifier["epochs"])]:
        if phase:
            images = others + sum(counts[origin] for origin in phase["positives"])
            shown += epochs * (classifier["samples_per_epoch"] or images)
    return Composition(counts["real"], counts["guides"], counts["synthetic"], arm["ratio"], shown)


def _by_origin(of_disease: Manifest) -> dict[str, Manifest]:
    """Return images of the disease by what an arm calls their origin."""
    return {
        "guides": of_disease.where(split="guide"),
        "real": of_disease.where(lambda record: record.origin == "real" and record.split != "guide"),
        "synthetic": of_disease.where(origin="synthetic"),
    }


def _settings(study: Study, name: str, reports: Mapping[int, Path]) -> Settings:
    """Return how an arm's classifier was trained, the same for all its seeds.

    Raises:
        ValueError: its seeds differ in it.
    """
    of_each = []
    for report in reports.values():
        config = _config(_made(study, report, "classify"))
        before = {key: value for key, value in (config["arm"]["before"] or {}).items() if key != "positives"}
        of_each.append(_one_level({**config["classifier"], "before": before}))
    varied = sorted({key for each in of_each for key in each if any(o.get(key) != each[key] for o in of_each)})
    if varied:
        raise ValueError(f"arm {name}: the newest runs of its seeds differ in {varied}; run them anew with the same")
    return of_each[0]


def _one_level(config: Mapping[str, Any]) -> Settings:
    nested = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    flat = {f"{key}.{name}": str(value) for key, each in nested.items() for name, value in each.items()}
    return flat | {key: str(value) for key, value in config.items() if key not in nested}


def _unusual(settings: Mapping[str, Settings], arm: str) -> str:
    """Return in which settings an arm is unlike most arms."""
    keys = sorted({key for each in settings.values() for key in each})
    usual = {key: Counter(each.get(key, "") for each in settings.values()).most_common(1)[0][0] for key in keys}
    own = settings[arm]
    return ", ".join(f"{key}={own.get(key, 'none')}" for key in keys if own.get(key, "") != usual[key])


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / artifact.STAGE_FILE).read_text())["config"]
    return config


def _opened(study: Study, reports: Mapping[int, Path]) -> str:
    """Say how an arm's runs came to open their test sets: as planned, first of all, or for which reasons."""
    evaluated = {_made(study, report, "evaluate").name for report in reports.values()}
    reasons = {opening.reason or "first" for opening in Ledger(study.folder / LEDGER).of(evaluated)}
    return ", ".join(sorted({"as planned" if reason.startswith("planned: ") else reason for reason in reasons}))


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
