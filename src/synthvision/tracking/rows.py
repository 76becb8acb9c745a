"""Runs as the rows of a table: what each was, what came out, and which parameters tell them apart."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from synthvision.tracking.config import COMMAND_TAG, JOB_TAG, VALIDATION
from synthvision.tracking.query import RunData

PREFERRED = ("test/accuracy", "test/auc", "best/val/loss", "best/val/auroc", "test/sensitivity", "test/specificity")
MOST_METRICS = 4
CURVES = ("system/", "train/", "val/", "first/")  # begin metrics that are no result
IGNORED = ("tracking.", "stage.", "hydra.", "root", "debug", "study", "classifier.budgets", "evaluate.reopen")
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)")
SEED = "{seed}"  # stands in a column for the seed that each row's text contains


@dataclass(frozen=True)
class Row:
    """One result."""

    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    command: str  # that remakes it
    group: str = ""  # its training's run: rows read off one training are no independent trials


def rows_of_sweep(runs: Sequence[RunData], sweep: str) -> list[Row]:
    """Return the results of a sweep's finished jobs, oldest first; of a job that ran twice, the last.

    A training that was read off at budgets gives a row for each. What a job's stages found belongs to the job,
    also where a stage had been finished by another run.
    """
    tree, latest = Tree(runs), {}
    for run in sorted(tree.below[sweep], key=lambda run: run.start):
        if run.status == "FINISHED":
            latest[run.tags.get(JOB_TAG, run.run_id)] = run
    return [row for job in latest.values() for row in rows_of(tree, job)]


class Tree:
    """Runs, and those below each."""

    def __init__(self, runs: Sequence[RunData]) -> None:
        self.runs = {run.run_id: run for run in runs}
        self.below: dict[str, list[RunData]] = defaultdict(list)
        for run in runs:
            self.below[run.parent].append(run)


def rows_of(tree: Tree, job: RunData) -> Iterator[Row]:
    """Yield the results of one run: its own and its stages', and one for each budget."""
    stages = {run.stage: run for run in sorted(tree.below[job.run_id], key=lambda run: run.start)}
    for tag, run_id in job.tags.items():
        if tag.startswith("run/") and run_id in tree.runs:
            stages[tag.removeprefix("run/")] = tree.runs[run_id]
    own = _results([*stages.values(), job])
    command = job.tags.get(COMMAND_TAG, "")
    training = job if job.stage == "classify" else stages.get("classify")
    budgets = [run for run in tree.below[training.run_id] if run.stage == "budget"] if training else []
    epochs = {run.params.get("classifier.epochs") for run in budgets}
    if job.params.get("classifier.epochs") not in epochs:
        yield Row(job.run_id, job.name, job.params, own, command, training.run_id if training else job.run_id)
    for run in sorted(budgets, key=lambda run: run.start):
        last = run.params.get("classifier.epochs") == job.params.get("classifier.epochs")
        metrics = {**(own if last else {}), **_results([run])}
        params = {**job.params, **run.params}
        yield Row(run.run_id, run.name, params, metrics, command, run.parent)


def varying(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the parameters that tell rows apart, with their values, by short names; see `telling`."""
    columns = telling(rows)
    return {short: columns[key] for key, short in short_names(columns).items()}


def telling(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the parameters that tell rows apart, with their values: key -> a value per row.

    What follows from another (an arm's counts from its name, a classifier's optimizer from the optimizer) is left out.
    Text that contains its row's seed, as a phantom's folder does, shows SEED in its place; but what merely differs
    wherever the seed does stays: nothing tells a rate that was given to each seed from one that follows from it.
    """
    keys = sorted(set().union(*(row.params for row in rows)), key=lambda key: (len(key), key))
    columns = {key: [row.params.get(key, "") for row in rows] for key in keys if not key.startswith(IGNORED)}
    columns = {key: values for key, values in columns.items() if len(set(values)) > 1}
    seeds = [values for key, values in columns.items() if is_seed(key)]
    columns = {key: values if is_seed(key) else _seed_named(values, seeds) for key, values in columns.items()}
    columns = {key: values for key, values in columns.items() if len(set(values)) > 1}
    # Names first: an arm is called by its name, not by one of its numbers. Then what tells most apart.
    order = sorted(columns, key=lambda key: (not key.endswith(".name"), -len(set(columns[key])), len(key), key))
    kept: list[str] = []
    for key in order:
        if not any(_follows(key, other, columns) for other in kept):
            kept.append(key)
    return {key: columns[key] for key in kept}


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return key -> as much of its end as tells it from the others: lr, epochs, optimizer."""
    keys = list(keys)
    short: dict[str, str] = {}
    for key in keys:
        parts = key.removesuffix(".name").split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [other.removesuffix(".name").split(".") for other in keys if other != key]
        taken = [{".".join(other[-n:]) for other in others} for n in range(1, len(parts) + 1)]
        short[key] = next((end for end, used in zip(ends, taken, strict=True) if end not in used), key)
    return short


def is_seed(name: str) -> bool:
    """Tell whether a parameter only draws anew."""
    return name.rsplit(".", 1)[-1] == "seed"


def number(text: str) -> float | None:
    """Return a parameter's value as a number, or None for a word."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_less_better(metric: str) -> bool:
    """Tell whether less of a metric is better, as its name says."""
    return metric.rsplit("/", 1)[-1].split("_")[0] in ("loss", "brier", "ece", "error", "fid", "kid")


def validation_metric(rows: Sequence[Row]) -> str | None:
    """Return the metric that a choice may be made by: the validation loss, or another one of validation, or none."""
    known = {name for row in rows for name in row.metrics if name.startswith(VALIDATION)}
    return f"{VALIDATION}loss" if f"{VALIDATION}loss" in known else min(known, default=None)


def usual_metrics(rows: Sequence[Row]) -> list[str]:
    """Return the metrics to show: those of the test set with intervals, and of validation, that most rows have."""
    counts = Counter(name for row in rows for name in row.metrics)
    usual = [name for name in PREFERRED if 2 * counts[name] >= max(1, len(rows))]
    others = sorted(name for name in counts if name not in usual and not name.endswith(("_low", "_high")))
    return (usual or others)[:MOST_METRICS]


@dataclass(frozen=True)
class Configuration:
    """Rows that differ in nothing but seeds."""

    values: Mapping[str, str]  # of the parameters that vary, seeds left out
    rows: tuple[Row, ...]

    def metric(self, name: str) -> list[float]:
        """Return a metric's value in each row that has it."""
        return [row.metrics[name] for row in self.rows if name in row.metrics]


def configurations(rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> list[Configuration]:
    """Put rows that differ only in seeds together, in the order of their first."""
    names = [name for name in columns if not is_seed(name)]
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[tuple(columns[name][index] for name in names)].append(row)
    return [Configuration(dict(zip(names, key, strict=True)), tuple(group)) for key, group in groups.items()]


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and Student's 95% interval; the interval of fewer than two values is unknown (NaN)."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    mean, n = sum(values) / len(values), len(values)
    if n < 2:
        return mean, math.nan, math.nan
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 0.975)) * spread
    return mean, mean - half, mean + half


def _results(runs: Iterable[RunData]) -> dict[str, float]:
    found = {name: value for run in runs for name, value in run.metrics.items()}
    return {name: value for name, value in found.items() if not name.startswith(CURVES)}


def _seed_named(values: Sequence[str], seeds: Sequence[Sequence[str]]) -> list[str]:
    """Return a column's texts with SEED where rows that differ in nothing but numbers have their seed each.

    Args:
        values: the column.
        seeds: columns of seeds.
    """
    parts, named = [NUMBER.split(value) for value in values], list(values)  # every other part is a number
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        if any(part[::2]):  # a number alone may be a hyperparameter
            alike[tuple(part[::2])].append(index)
    for words, rows in alike.items():
        for place in range(1, 2 * len(words) - 1, 2):
            there = [parts[row][place] for row in rows]
            if len(set(there)) > 1 and there in [[seed[row] for row in rows] for seed in seeds]:
                for row in rows:
                    parts[row][place] = SEED
        for row in rows:
            named[row] = "".join(parts[row])
    return named


def _follows(key: str, other: str, columns: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a parameter's value follows from another's, by more than chance."""
    if is_seed(other) and not is_seed(key):
        return False
    mine, theirs = columns[key], columns[other]
    if list(mine) == list(theirs):
        return True
    implied = len(set(zip(mine, theirs, strict=True))) == len(set(theirs))
    room = other.endswith(".name") and key.startswith(other.removesuffix("name"))
    return implied and (room or len(mine) >= 2 * len(set(theirs)))
