"""Runs beside one another: a table and a figure with intervals, in the terminal and as one HTML file.

From MLflow alone: what is not in the store is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from rich.table import Table

from synthvision import __version__
from synthvision.tracking.config import VALIDATION, TrackingConfig
from synthvision.tracking.query import RunData, runs_of
from synthvision.tracking.rows import (
    Configuration,
    Row,
    Tree,
    configurations,
    is_less_better,
    mean_interval,
    rows_of,
    rows_of_sweep,
    usual_metrics,
    validation_metric,
    varying,
)

METRIC_WIDTH = 16  # characters of a column in the terminal
MOST_DRAWN = 40  # lines of the figure; the table has all
MOST_PRINTED = 30  # lines in the terminal; the page has all

Estimate = tuple[float, float, float]  # value, low, high; an interval that is not known is NaN


@dataclass(frozen=True)
class CompareConfig:
    """Which runs: `conf/stage/compare.yaml`.

    Raises:
        ValueError: a value breaks its rule; the message names the key.
    """

    runs: tuple[str, ...] = ()  # run ids, or as much of their beginnings as tells them apart, or names
    sweep: str | None = None  # a sweep's run: its id or its name
    metrics: tuple[str, ...] = ()  # none: those of the test set and of validation that most runs have
    out: str | None = None  # the HTML file; None: below the study's folder

    def __post_init__(self) -> None:
        if bool(self.runs) == bool(self.sweep):
            raise ValueError(
                "set either stage.runs=[ID,ID,...] or stage.sweep=NAME (or its run's ID), not both or none; the UI "
                "(synthvision stage=ui) shows ids and names"
            )


@dataclass(frozen=True)
class Line:
    """One line of the comparison: runs that differ in nothing but seeds."""

    name: str
    values: Mapping[str, str]  # of the parameters that vary
    n: int
    estimates: Mapping[str, Estimate]
    runs: tuple[Row, ...]


@dataclass(frozen=True)
class Comparison:
    """What was compared."""

    study: str
    experiment: str  # MLflow's id of the study
    title: str
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]  # the best by validation first
    chosen_by: str | None  # the metric of that order

    @property
    def columns(self) -> list[str]:
        """Names of the parameters that vary."""
        return list(self.lines[0].values)


def compare(config: TrackingConfig, study: str, asked: CompareConfig) -> Comparison:
    """Compare runs of a study.

    Raises:
        ValueError: a run or sweep is not there, has no result, or its name is that of several; the key is named.
    """
    runs = runs_of(config, study)
    if asked.sweep:
        sweep = find(runs, asked.sweep, "stage.sweep", study, "sweep")
        rows, title = rows_of_sweep(runs, sweep.run_id), f"sweep {sweep.name}"
        if not rows:
            raise ValueError(f"stage.sweep={asked.sweep} has no finished job yet; run the sweep first")
    else:
        named = [find(runs, each, "stage.runs", study) for each in asked.runs]
        tree = Tree(runs)
        rows, title = [row for run in named for row in rows_of(tree, run)], f"{len(named)} runs"
    metrics = asked.metrics or usual_metrics(rows)
    missing = [name for name in metrics if not any(name in row.metrics for row in rows)]
    if missing or not metrics:
        known = sorted({name for row in rows for name in row.metrics if not name.endswith(("_low", "_high"))})
        raise ValueError(f"stage.metrics must be of those that these runs have, {known}; it has {list(missing)}")
    return _comparison(study, runs[0].experiment, title, rows, tuple(metrics))


def find(runs: Sequence[RunData], wanted: str, key: str, study: str, stage: str = "") -> RunData:
    """Return the run of an id, of the beginning of an id, or of a name.

    Raises:
        ValueError: there is none, or there are several.
    """
    of = [run for run in runs if not stage or run.stage == stage]
    found = [run for run in of if run.run_id == wanted] or [run for run in of if run.name == wanted]
    found = found or [run for run in of if len(wanted) >= 4 and run.run_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    kind = stage or "run"
    if found:
        ids = ", ".join(run.run_id[:8] for run in found[:8])
        raise ValueError(
            f"{key}: {len(found)} {kind}s of study={study} are called {wanted!r}; name one by its id: {ids}"
        )
    newest = ", ".join(f"{run.name} ({run.run_id[:8]})" for run in of[:8] if stage or run.stage == "pipeline") or "none"
    raise ValueError(
        f"{key}: study={study} has no {kind} {wanted!r}; the newest are: {newest}. Set study= for another study"
    )


def _comparison(study: str, experiment: str, title: str, rows: Sequence[Row], metrics: tuple[str, ...]) -> Comparison:
    columns = varying(rows)
    lines = [_line(each, metrics) for each in configurations(rows, columns)]
    chosen_by = validation_metric(rows)
    if chosen_by:
        sign = 1 if is_less_better(chosen_by) else -1
        lines.sort(key=lambda line: sign * _mean_of(line, chosen_by))
    return Comparison(study, experiment, title, metrics, tuple(lines), chosen_by)


def _line(of: Configuration, metrics: Sequence[str]) -> Line:
    estimates = {name: _estimate(of.rows, name) for name in metrics if of.metric(name)}
    name = ", ".join(f"{key} {value}" for key, value in of.values.items()) or of.rows[0].name
    return Line(name, of.values, len(of.rows), estimates, of.rows)


def _estimate(rows: Sequence[Row], metric: str) -> Estimate:
    """Return a value with its interval: over seeds where there are several, else the one that the run logged."""
    values = [row.metrics[metric] for row in rows if metric in row.metrics]
    if len(values) > 1:
        return mean_interval(values)
    logged = next(row.metrics for row in rows if metric in row.metrics)
    return values[0], logged.get(f"{metric}_low", math.nan), logged.get(f"{metric}_high", math.nan)


def _mean_of(line: Line, metric: str) -> float:
    values = [row.metrics[metric] for row in line.runs if metric in row.metrics]
    return sum(values) / len(values) if values else math.inf


def text_of(estimate: Estimate | None) -> tuple[str, str]:
    """Return a value and its interval as text."""
    if estimate is None:
        return "", ""
    value, low, high = estimate
    return f"{value:.3f}", "" if math.isnan(low) else f"{low:.3f}-{high:.3f}"


def terminal_table(found: Comparison, width: int) -> Table:
    """Return the table for a terminal, with as many metrics as fit into its width in characters; the page has all."""
    table = Table(title=f"{found.study}: {found.title}", title_justify="left", header_style="bold")
    seeds = any(line.n > 1 for line in found.lines)
    taken = sum(3 + max(len(name), *(len(line.values[name]) for line in found.lines)) for name in found.columns) or 30
    metrics = found.metrics[: max(1, (width - taken - 8) // METRIC_WIDTH)]
    for column in [*(found.columns or ["run"]), *(["n"] if seeds else [])]:
        table.add_column(column, no_wrap=True)
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    for line in found.lines[:MOST_PRINTED]:
        first = list(line.values.values()) or [line.name]
        estimates = ["\n".join(text_of(line.estimates.get(metric))).rstrip() for metric in metrics]
        table.add_row(*first, *([str(line.n)] if seeds else []), *estimates)
    return table


def words(found: Comparison) -> list[str]:
    """Return what a reader must know to read the table."""
    said = []
    if any(line.n > 1 for line in found.lines):
        said.append("Where n is above 1, mean over n runs that differ in seeds only, with Student's 95% interval.")
    if any(line.n == 1 and any(not math.isnan(e[1]) for e in line.estimates.values()) for line in found.lines):
        said.append("Intervals of single runs are those that the evaluation logged (95%).")
    if found.chosen_by:
        said.append(f"Ordered by {found.chosen_by}, never by the test set.")
    if not any(name.startswith(VALIDATION) for name in found.metrics):
        said.append(
            "Intervals that overlap do not say that two runs are equal: for that, compare them on the same patients."
        )
    return said


def _commands(lines: Sequence[Line]) -> dict[str, list[str]]:
    """Return the lines' commands, each with the names of what it makes: budgets share one."""
    commands: dict[str, list[str]] = {}
    for line in lines:
        if line.runs[0].command:
            commands.setdefault(line.runs[0].command, []).append(line.name)
    return commands


def page(found: Comparison, config: TrackingConfig) -> str:
    """Return the comparison as one HTML file that needs no network; its links lead to the UI."""
    from synthvision.tracking import figures

    drawn = found.lines[:MOST_DRAWN]
    estimates = {metric: [line.estimates.get(metric) for line in drawn] for metric in found.metrics}
    names = [line.name if len(line.name) <= 60 else line.name[:57] + "..." for line in drawn]
    figure = figures.svg(figures.intervals(names, estimates)).decode()
    environment = Environment(
        loader=PackageLoader("synthvision.tracking"), autoescape=select_autoescape(["j2"], default=True)
    )
    context: dict[str, Any] = {
        "found": found,
        "figure": figure[figure.index("<svg") :],
        "text_of": text_of,
        "words": words(found),
        "experiment": found.experiment,
        "ui": config.address,
        "drawn": len(drawn),
        "commands": _commands(drawn),
        "version": __version__,
        "seeds": any(line.n > 1 for line in found.lines),
    }
    return environment.get_template("compare.html.j2").render(context)
