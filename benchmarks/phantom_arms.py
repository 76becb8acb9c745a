"""Print how the arms of a study compare, from its reports: intervals by bootstrap over patients and seeds.

    synthvision +sweeps=phantom_arms && python benchmarks/phantom_arms.py [studies/phantom] [baseline arm]

Patients and seeds are drawn anew together, the same for all arms, so that a difference of two arms is a paired one. The
mathematics is that of synthvision.evaluation.comparison.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthvision.evaluation.comparison import ArmRuns, Difference, differences, drawn_measures
from synthvision.evaluation.intervals import Estimate, bootstrap, patient_draws
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions

DRAWS = 5000
BASELINE = "guides_only"
Runs = dict[str, dict[int, Path]]  # arm -> seed -> folder of its report


def newest_reports(study: Path) -> Runs:
    """Return the newest report of each arm and seed."""
    runs: Runs = defaultdict(dict)
    for file in sorted(study.glob("report/*/report.json"), key=lambda each: each.stat().st_mtime):
        content = json.loads(file.read_text())
        runs[content["arm"]][content["seeds"]["seed"]] = file.parent
    return runs


def called_and_scores(study: Path, report: Path) -> tuple[Predictions, NDArray[np.bool_], NDArray[np.float64]]:
    """Return the predictions of a report's run, whether each image was called positive, and its score."""
    content = json.loads((report / "report.json").read_text())
    used = {row["stage"]: row["fingerprint"] for row in content["stages"]}
    predictions = Predictions.read(study / "evaluate" / used["evaluate"] / "predictions.csv")
    score = predictions.of(content["evaluation"]["positive"])
    return predictions, score >= content["evaluation"]["threshold"], score


def positive_of(report: Path) -> str:
    """Return the class that a report is about."""
    return str(json.loads((report / "report.json").read_text())["evaluation"]["positive"])


def patients_of(study: Path, images: tuple[str, ...]) -> list[str]:
    """Return the patient of each test image."""
    for file in study.glob("prepare/*/manifest.csv"):
        known = {record.image_id: record.patient or record.image_id for record in Manifest.read(file, study)}
        if set(images) <= set(known):
            return [known[image] for image in images]
    raise SystemExit(f"{study}: no prepared manifest holds the images of the predictions")


def main(study: Path, baseline: str) -> None:
    """Print two Markdown tables: each arm's accuracy and AUC, and each arm beside the baseline."""
    runs = newest_reports(study)
    if not runs:
        raise SystemExit(f"{study}: no report; run synthvision +sweeps=phantom_arms first")
    arms, first = {}, None
    for arm, seeds in runs.items():
        loaded = [called_and_scores(study, seeds[seed]) for seed in sorted(seeds)]
        first = first or loaded[0][0]
        if any(each.image_id != first.image_id for each, _, _ in loaded):
            raise SystemExit(f"{study}: the newest runs of {arm} and of other arms were tested on different images")
        arms[arm] = ArmRuns(np.stack([called for _, called, _ in loaded]), np.stack([score for *_, score in loaded]))
    assert first is not None
    truth = np.array(first.label) == positive_of(next(iter(next(iter(runs.values())).values())))
    patients = patients_of(study, first.image_id)
    weights, people = patient_draws(patients, DRAWS, 0), len(set(patients))
    compared = (
        {each.arm: each for each in differences(arms, baseline, truth, patients, DRAWS)} if baseline in arms else {}
    )
    rows = []
    for arm, given in arms.items():
        point, drawn = drawn_measures(given, truth, None), drawn_measures(given, truth, weights)
        accuracy, auc = (bootstrap(float(point[m][0]), drawn[m], people) for m in ("accuracy", "auc"))
        rows.append((arm, len(given.called), accuracy, auc))
    rows.sort(key=lambda row: -row[2].value)
    print(f"| arm | seeds | accuracy | 95% interval | AUC | more than {baseline} | 95% interval |")
    print("|---|---|---|---|---|---|---|")
    for arm, seeds, accuracy, auc in rows:
        cells = [arm, str(seeds), f"{accuracy.value:.3f}", _between(accuracy), f"{auc.value:.3f}"]
        if arm in compared:
            cells += [f"{compared[arm].accuracy.value:+.3f}", _between(compared[arm].accuracy, "+.3f")]
        print("| " + " | ".join([*cells, "", ""][:7]) + " |")
    if compared:
        _tests([compared[arm] for arm, *_ in rows if arm in compared], baseline)


def _tests(found: list[Difference], baseline: str) -> None:
    print(
        f"\nBeside {baseline}; p by bootstrap of patients and seeds, and Holm's; McNemar, DeLong by image, per seed.\n"
    )
    print(
        "| arm | sensitivity | specificity | AUC | p | p, Holm | McNemar p | DeLong p | smallest difference to show |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for each in found:
        parts = [f"{e.value:+.3f} ({_between(e, '+.3f')})" for e in (each.sensitivity, each.specificity, each.auc)]
        p = [f"{each.p:.3f}", f"{each.p_adjusted:.3f}", *(_list(ps) for ps in (each.mcnemar, each.delong))]
        print("| " + " | ".join([each.arm, *parts, *p, f"{each.detectable:.3f}"]) + " |")


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _between(estimate: Estimate, form: str = ".3f") -> str:
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0] if given else "studies/phantom"), given[1] if len(given) > 1 else BASELINE)
