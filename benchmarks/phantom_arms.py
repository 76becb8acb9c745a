"""Print the table of arms from the reports of a study, with intervals by bootstrap over patients and seeds.

    synthvision +sweeps=phantom_arms && python benchmarks/phantom_arms.py [studies/phantom]

Patients and seeds are drawn anew together, the same for all arms, so that a difference of two arms is a paired one.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthvision.evaluation.intervals import patient_draws
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


def right_or_wrong(study: Path, report: Path) -> tuple[tuple[str, ...], NDArray[np.bool_], float]:
    """Return image ids, whether each test image was called rightly (N,), and the AUC."""
    content = json.loads((report / "report.json").read_text())
    used = {row["stage"]: row["fingerprint"] for row in content["stages"]}
    predictions = Predictions.read(study / "evaluate" / used["evaluate"] / "predictions.csv")
    result = content["evaluation"]
    positive = np.array(predictions.label) == result["positive"]
    called = predictions.of(result["positive"]) >= result["threshold"]
    return predictions.image_id, called == positive, result["estimates"]["auc"]["value"]


def patients_of(study: Path, images: tuple[str, ...]) -> list[str]:
    """Return the patient of each test image."""
    for file in study.glob("prepare/*/manifest.csv"):
        known = {record.image_id: record.patient or record.image_id for record in Manifest.read(file, study)}
        if set(images) <= set(known):
            return [known[image] for image in images]
    raise SystemExit(f"{study}: no prepared manifest holds the images of the predictions")


def main(study: Path) -> None:
    """Print a Markdown table: mean accuracy over seeds, its interval, AUC, and the difference to the guides alone."""
    runs = newest_reports(study)
    rows, images = {}, ()
    for arm, seeds in runs.items():
        loaded = [right_or_wrong(study, seeds[seed]) for seed in sorted(seeds)]
        images = images or loaded[0][0]
        if any(each != images for each, _, _ in loaded):
            raise SystemExit(f"{study}: the newest runs of {arm} and of other arms were tested on different images")
        rows[arm] = np.stack([right for _, right, _ in loaded]), float(np.mean([auc for _, _, auc in loaded]))
    weights = patient_draws(patients_of(study, images), DRAWS, 0)  # (draws, images)
    drawn = {arm: _drawn(right, weights) for arm, (right, _) in rows.items()}
    print("| arm | seeds | accuracy | 95% interval | AUC | more than guides alone | 95% interval |")
    print("|---|---|---|---|---|---|---|")
    for arm, (right, auc) in sorted(rows.items(), key=lambda row: -row[1][0].mean()):
        cells = [arm, str(len(right)), f"{right.mean():.3f}", _between(drawn[arm]), f"{auc:.3f}"]
        if BASELINE in rows and arm != BASELINE:
            difference = drawn[arm] - drawn[BASELINE]
            cells += [f"{right.mean() - rows[BASELINE][0].mean():+.3f}", _between(difference, "+.3f")]
        print("| " + " | ".join([*cells, "", ""][:7]) + " |")


def _drawn(right: NDArray[np.bool_], weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return accuracies under drawn patients and drawn seeds; right is (seeds, images)."""
    chosen = np.random.default_rng(0).integers(len(right), size=(DRAWS, len(right)))
    by_seed = weights @ right.T / weights.sum(1, keepdims=True)  # (draws, seeds)
    return np.take_along_axis(by_seed, chosen, axis=1).mean(1)


def _between(values: NDArray[np.float64], form: str = ".3f") -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{low:{form}} to {high:{form}}"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "studies/phantom"))
