"""The phantom grid as a sweep with budgets, cache and sharing, beside the same grid as plain jobs; when a job starts.

    python benchmarks/sweep.py NEW_FOLDER [--epochs 2,5,10,15,20] [--rates 1e-3,1e-4] [--optimizers adam] [OVERRIDE ...]

The epochs are the HPV paper's in tenths. A plain job is what Hydra's multirun comes to without them: a process of
its own that prepares its images and trains to its own number of epochs. The arm is `real_only`: each plain job
would make its own fine-tune as well, which would flatter the sweep. The script fails where one metric of one result
differs. It prints wall and CPU time with the load; on a busy machine believe the latter.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

from synthvision.tracking.config import JOB_TAG, TrackingConfig
from synthvision.tracking.query import RunData, runs_of

STUDY = "phantom"
GOAL, START_GOAL = 2.5, 1.0  # times less wall time; seconds
Results = dict[tuple[str, float, int], dict[str, float]]  # optimizer, rate, epochs -> best/val/...


@dataclass(frozen=True)
class Spent:
    """What a grid took."""

    wall: float
    cpu: float


def command(folder: Path, *overrides: str) -> Spent:
    """Run the command in a folder.

    Raises:
        CalledProcessError: it failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "synthvision", *overrides], cwd=folder, stdout=log, stderr=log, check=True
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(time.perf_counter() - start, cpu)


def results(root: Path, stage: str) -> Results:
    """Return what each run of a stage found."""
    found: Results = {}
    for run in runs_of(TrackingConfig(str(root)), STUDY):
        if run.stage == stage:
            key = (
                run.params["classifier.optimizer"],
                float(run.params["classifier.lr"]),
                int(run.params["classifier.epochs"]),
            )
            found[key] = {name: value for name, value in run.metrics.items() if name.startswith("best/")}
    return found


def starts(root: Path) -> list[float]:
    """Return the seconds from the end of each job of the sweep to the beginning of the next one's training."""
    runs = sorted(runs_of(TrackingConfig(str(root)), STUDY), key=lambda run: run.start)
    jobs = [run for run in runs if JOB_TAG in run.tags]
    training = {run.parent: run for run in runs if run.stage == "classify"}
    return [_between(before, training[after.run_id]) for before, after in pairwise(jobs)]


def _between(before: RunData, after: RunData) -> float:
    return (after.start - before.end) / 1000


def main(folder: Path, epochs: Sequence[str], rates: Sequence[str], optimizers: Sequence[str], more: list[str]) -> None:
    """Run both and print how they compare."""
    if folder.exists():
        raise SystemExit(f"{folder} exists; name a new folder, so that nothing made before is reused")
    load = os.getloadavg()[0]
    kept = ["stage=classify", "arm=real_only", "classifier.schedule=constant", "classifier.warmup_epochs=0", *more]
    grid = command(
        folder / "sweep", "-m", *kept, f"classifier.epochs={max(epochs, key=int)}",
        f"classifier.budgets=[{','.join(sorted(epochs, key=int))}]", f"classifier.lr={','.join(rates)}",
        f"optimizer={','.join(optimizers)}", "tracking.root=../sweep_runs",
    )  # fmt: skip
    plain = []
    for number, (optimizer, rate, budget) in enumerate(product(optimizers, rates, epochs)):
        job = [f"optimizer={optimizer}", f"classifier.lr={rate}", f"classifier.epochs={budget}"]
        plain.append(command(folder / f"plain{number:02}", *kept, *job, "tracking.root=../plain_runs"))
    swept, alone = results(folder / "sweep_runs", "budget"), results(folder / "plain_runs", "classify")
    if swept != alone or len(alone) != len(plain):
        raise SystemExit(f"{folder}: the results differ: {swept} and {alone}")
    wall, cpu = sum(each.wall for each in plain), sum(each.cpu for each in plain)
    print(f"{len(plain)} results, all metrics of validation equal; load {load:.1f} to {os.getloadavg()[0]:.1f}")
    print("| | wall time, s | CPU time, s |\n|---|---|---|")
    print(f"| plain jobs | {wall:.0f} | {cpu:.0f} |\n| sweep | {grid.wall:.0f} | {grid.cpu:.0f} |")
    print(f"| times less (goal {GOAL}) | {wall / grid.wall:.2f} | {cpu / grid.cpu:.2f} |")
    if waits := starts(folder / "sweep_runs"):
        print(f"start of a job after the first: median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s "
              f"(goal {START_GOAL})")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    for name, default in (("epochs", "2,5,10,15,20"), ("rates", "1e-3,1e-4,1e-5"), ("optimizers", "adam,rmsprop")):
        parser.add_argument(f"--{name}", default=default)
    given, overrides = parser.parse_known_args()
    lists = (getattr(given, name).split(",") for name in ("epochs", "rates", "optimizers"))
    main(given.folder.absolute(), *lists, overrides)
