"""Print how the arms of a study compare, from its reports: intervals by bootstrap over patients and seeds.

    synthvision +sweeps=phantom_arms && python benchmarks/phantom_arms.py [studies/phantom] [baseline arm]

Seeds and patients are drawn anew together, the same for all arms, so that a difference of two arms is a paired one.
Each seed may have test images of its own. The mathematics is that of synthvision.evaluation.comparison.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthvision.artifact import digest_of
from synthvision.evaluation.comparison import (
    ArmRuns,
    Difference,
    Truth,
    differences,
    draw_patients,
    drawn_measures,
    people,
)
from synthvision.evaluation.intervals import Estimate, bootstrap
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


def truth_of(study: Path, report: Path, predictions: Predictions) -> Truth:
    """Return which images of a report's test set are positive, and the patient of each."""
    positive = str(json.loads((report / "report.json").read_text())["evaluation"]["positive"])
    test = digest_of(list(predictions.image_id))  # a number of one drawing is another patient in the next
    patients = tuple(f"{test} {patient}" for patient in patients_of(study, predictions.image_id))
    return Truth(np.array(predictions.label) == positive, patients)


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
    seeds = sorted(set.intersection(*(set(each) for each in runs.values())))
    if not seeds:
        found = {arm: sorted(each) for arm, each in runs.items()}
        raise SystemExit(f"{study}: no seed was run in every arm; the seeds of each are {found}")
    loaded = {arm: [called_and_scores(study, each[seed]) for seed in seeds] for arm, each in runs.items()}
    first_arm, first = next(iter(loaded.items()))
    for arm, each in loaded.items():
        if any(one[0].image_id != other[0].image_id for one, other in zip(first, each, strict=True)):
            raise SystemExit(f"{study}: the newest runs of {arm} and of {first_arm} were tested on different images")
    truths = [truth_of(study, runs[first_arm][seed], one[0]) for seed, one in zip(seeds, first, strict=True)]
    arms = {
        arm: ArmRuns([called for _, called, _ in each], [score for *_, score in each]) for arm, each in loaded.items()
    }
    weights = draw_patients(truths, DRAWS)
    compared = {each.arm: each for each in differences(arms, baseline, truths, DRAWS)} if baseline in arms else {}
    rows = []
    for arm, given in arms.items():
        point, drawn = drawn_measures(given, truths, None), drawn_measures(given, truths, weights)
        accuracy, auc = (bootstrap(float(point[m][0]), drawn[m], people(truths)) for m in ("accuracy", "auc"))
        rows.append((arm, len(seeds), accuracy, auc))
    rows.sort(key=lambda row: -row[2].value)
    print(f"| arm | seeds | accuracy | 95% interval | AUC | more than {baseline} | 95% interval |")
    print("|---|---|---|---|---|---|---|")
    for arm, number, accuracy, auc in rows:
        cells = [arm, str(number), f"{accuracy.value:.3f}", _between(accuracy), f"{auc.value:.3f}"]
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
