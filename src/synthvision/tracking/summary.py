"""What a sweep found, on the sweep's own run: table, best, figures, importance; from MLflow alone."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from synthvision.tracking import figures
from synthvision.tracking.config import NOTE_TAG
from synthvision.tracking.importance import Importance, importance
from synthvision.tracking.query import RunData, runs_of
from synthvision.tracking.rows import (
    Configuration,
    Row,
    configurations,
    is_less_better,
    is_seed,
    mean_interval,
    rows_of_sweep,
    validation_metric,
    varying,
)
from synthvision.tracking.store import Store
from synthvision.tracking.view import view_of

FOLDER = "summary"
BEGIN, END = "<!-- summary -->", "<!-- /summary -->"  # around what the note gets, so that it is replaced, not repeated


@dataclass(frozen=True)
class Best:
    """The configuration that validation puts first."""

    configuration: Configuration
    row: Row  # the best of its seeds
    metric: str
    value: float  # mean over its seeds
    among: int  # configurations


def log_sweep_summary(store: Store, parent_run_id: str) -> None:
    """Write onto a sweep's run what its finished jobs found so far; a second call replaces the first.

    Artifacts in `summary/`: `table.csv` with a line per result and the parameters that vary as columns,
    `configurations.csv` with means over seeds, parallel coordinates, a heat map of learning rate x epochs per
    optimizer, and the importance of each hyperparameter, where there are results enough. Tags name the best run; the
    note says it all in Markdown, and a saved view of the study's table shows the results. The best is chosen by
    validation, never by the test set.

    Raises:
        ValueError: the store has no such run.
    """
    runs = runs_of(store.config, store.study)
    parent = next((run for run in runs if run.run_id == parent_run_id), None)
    if parent is None:
        raise ValueError(f"study {store.study} has no run {parent_run_id} in {store.config.place}")
    rows = rows_of_sweep(runs, parent_run_id)
    columns = varying(rows)
    metric = validation_metric(rows)
    best = _best(rows, columns, metric)
    with store.again(parent_run_id) as run:
        run.log_bytes("table.csv", table_csv(rows, columns).encode(), FOLDER)
        if any(is_seed(name) for name in columns):
            run.log_bytes("configurations.csv", _configurations_csv(configurations(rows, columns)).encode(), FOLDER)
        found, why = _importance(rows, columns, metric)
        for name, figure in _figures(rows, columns, metric, found):
            run.log_bytes(f"{name}.png", figures.png(figure), FOLDER)
            run.log_bytes(f"{name}.svg", figures.svg(figure), FOLDER)
        if best:
            run.set_tags({"best_run": best.row.run_id, "best_metric": best.metric, "best_value": f"{best.value:.6g}"})
            run.log_metrics({best.metric: best.value})
        view = store.save_view(parent.run_id, view_of(parent, rows, runs))
        link = store.link(best.row.run_id) if best else ""
        run.note(_note(parent, rows, columns, best, found, why, link, view))


def table_csv(rows: Sequence[Row], columns: Mapping[str, Sequence[str]]) -> str:
    """Return a line per result: what varies, then every result, then the run."""
    metrics = sorted({name for row in rows for name in row.metrics})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, *metrics, "name", "run_id", "command"])
    for index, row in enumerate(rows):
        values = [column[index] for column in columns.values()]
        writer.writerow([*values, *(row.metrics.get(name, "") for name in metrics), row.name, row.run_id, row.command])
    return out.getvalue()


def _configurations_csv(of: Sequence[Configuration]) -> str:
    metrics = sorted({name for each in of for row in each.rows for name in row.metrics})
    metrics = [name for name in metrics if not name.endswith(("_low", "_high"))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*of[0].values, "seeds", *(f"{name}{end}" for name in metrics for end in ("", "_low", "_high"))])
    for each in of:
        found = [mean_interval(each.metric(name)) if each.metric(name) else ("", "", "") for name in metrics]
        writer.writerow([*each.values.values(), len(each.rows), *(value for triple in found for value in triple)])
    return out.getvalue()


def _best(rows: Sequence[Row], columns: Mapping[str, Sequence[str]], metric: str | None) -> Best | None:
    if metric is None:
        return None
    sign = 1 if is_less_better(metric) else -1
    rated = [each for each in configurations(rows, columns) if _finite(each.metric(metric))]
    if not rated:
        return None
    first = min(rated, key=lambda each: sign * _mean(each.metric(metric)))
    row = min((row for row in first.rows if metric in row.metrics), key=lambda row: sign * row.metrics[metric])
    return Best(first, row, metric, _mean(first.metric(metric)), len(rated))


def _finite(values: Sequence[float]) -> bool:
    return bool(values) and all(map(math.isfinite, values))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rated(
    rows: Sequence[Row], columns: Mapping[str, Sequence[str]], metric: str
) -> tuple[list[Row], dict[str, list[str]]]:
    """Return the rows that have a metric, and their columns."""
    has = [index for index, row in enumerate(rows) if math.isfinite(row.metrics.get(metric, math.nan))]
    return [rows[index] for index in has], {name: [values[index] for index in has] for name, values in columns.items()}


def _importance(
    rows: Sequence[Row], columns: Mapping[str, Sequence[str]], metric: str | None
) -> tuple[Importance | None, str]:
    """Return the importance of what varies, or why there is none."""
    if metric is None or not columns:
        return None, "nothing varies, or no result of validation is there"
    rated, of = _rated(rows, columns, metric)
    try:
        return importance(of, [row.metrics[metric] for row in rated], [row.group for row in rated]), ""
    except ValueError as error:
        return None, str(error)


def _figures(
    rows: Sequence[Row], columns: Mapping[str, Sequence[str]], metric: str | None, found: Importance | None
) -> Iterator[tuple[str, Figure]]:
    if metric is None or not columns:
        return
    rated, of = _rated(rows, columns, metric)
    result, less = [row.metrics[metric] for row in rated], is_less_better(metric)
    if not rated:
        return
    yield "parallel_coordinates", figures.parallel_coordinates(of, result, metric, less)
    if {"lr", "epochs"} <= set(of):
        words = of.get("optimizer", [""] * len(rated))
        limits = (min(result), max(result))
        for optimizer in sorted(set(words)):
            these = [index for index, word in enumerate(words) if word == optimizer]
            rates, epochs = ([of[name][index] for index in these] for name in ("lr", "epochs"))
            figure = figures.heat_map(rates, epochs, [result[i] for i in these], metric, optimizer, less, limits)
            yield f"heat_map_{optimizer}" if optimizer else "heat_map", figure
    if found:
        yield "importance", figures.importances(found, metric)


def _note(parent: RunData, rows: Sequence[Row], columns: Mapping[str, Sequence[str]], best: Best | None,
          found: Importance | None, why: str, link: str, view: str) -> str:  # fmt: skip
    before, _, rest = parent.tags.get(NOTE_TAG, "").partition(BEGIN)
    after = rest.partition(END)[2]
    lines = [f"### Results: {len(rows)}", ""]
    if best:
        values = ", ".join(f"{name} {value}" for name, value in best.configuration.values.items()) or best.row.name
        seeds = f", mean of {len(best.configuration.rows)} seeds" if len(best.configuration.rows) > 1 else ""
        lines += [
            f"Best of {best.among} by validation ({best.metric} {best.value:.4g}{seeds}): **{values}**, "
            f"[{best.row.name}]({link}).",
            "",
            *(["```", best.row.command, "```", ""] if best.row.command else []),
            *_table(rows, columns, best.metric),
        ]
    else:
        lines += ["No result of validation is there, so none is called the best.", ""]
    if found:
        most = ", ".join(f"{name} {mean:.2f}" for name, (mean, _) in found.values.items())
        trust = "" if found.r2 > 0.2 else " The forest hardly predicts unseen rows: these figures say little."
        lines += [f"Importance (permutation, n = {found.n}, R² {found.r2:.2f}): {most}.{trust}", ""]
    else:
        lines += [f"No importance of hyperparameters: {why}.", ""]
    lines += [f"Table and figures: artifacts, `summary/`. In the UI's own table: the [view *{parent.name}*]({view})."]
    text = "\n".join(lines)
    return f"{before.rstrip()}\n\n{BEGIN}\n{text}\n{END}{after}"


def _table(rows: Sequence[Row], columns: Mapping[str, Sequence[str]], metric: str) -> list[str]:
    """Return the ten best configurations as Markdown."""
    sign = 1 if is_less_better(metric) else -1
    of = [each for each in configurations(rows, columns) if _finite(each.metric(metric))]
    of = sorted(of, key=lambda each: sign * _mean(each.metric(metric)))[:10]
    names = [name for name in columns if not is_seed(name)]
    seeds = ["seeds"] if any(len(each.rows) > 1 for each in of) else []
    head = [*names, *seeds, metric]
    body = [
        [*each.values.values(), *(str(len(each.rows)) for _ in seeds), f"{_mean(each.metric(metric)):.4g}"]
        for each in of
    ]
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)] + [""]
