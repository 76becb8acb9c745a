"""Figures of sweeps and comparisons, as PNG and SVG that are the same for the same runs."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from synthvision.tracking.importance import Importance
from synthvision.tracking.rows import number

BLUE, ORANGE, INK, GREY, GRID = "#0072B2", "#D55E00", "#1b2733", "#66727f", "#e3e8ed"
STYLE: Any = {  # matplotlib types each key; a plain mapping will do
    "svg.fonttype": "none",
    "svg.hashsalt": "synthvision",
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
MOST_TICKS = 12  # names on an axis of the parallel coordinates

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this style."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


@styled
def parallel_coordinates(
    columns: Mapping[str, Sequence[str]], result: Sequence[float], metric: str, less: bool
) -> Figure:
    """Draw a line per row through an axis per parameter to its result; the best stand out.

    Args:
        columns: name -> a value per row.
        result: a number per row.
        metric: the result's name.
        less: whether less is better.
    """
    names = list(columns)
    figure = _figure(max(5.0, 1.6 * (len(names) + 1) + 1), 4.2)
    axes = figure.subplots()
    places = [_places(columns[name]) for name in names]
    low, high = min(result), max(result)
    ends = [(value - low) / (high - low) if high > low else 0.5 for value in result]
    order = sorted(range(len(result)), key=lambda row: result[row], reverse=less)  # the best are drawn last, on top
    colours = mpl.colormaps["viridis_r" if less else "viridis"]
    for rank, row in enumerate(order):
        heights = [_spread(place[row], row) for place, _ in places] + [ends[row]]
        best = rank == len(order) - 1
        colour = ORANGE if best else colours(0.15 + 0.8 * ends[row])
        axes.plot(
            range(len(heights)), heights, color=colour, linewidth=2.6 if best else 1.0, alpha=1.0 if best else 0.75
        )
    for index, (_, ticks) in enumerate(places):
        axes.axvline(index, color=GREY, linewidth=0.8)
        for height, label in ticks:
            axes.annotate(label, (index, height), xytext=(-4, 0), textcoords="offset points", ha="right", va="center",
                          fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    axes.axvline(len(names), color=GREY, linewidth=0.8)
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(
            f"{value:.3g}", (len(names), height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xticks(range(len(names) + 1), [*names, metric])
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.45, len(names) + 0.35)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{len(result)} results; the best in orange", fontsize=10, loc="left")
    return figure


@styled
def heat_map(rates: Sequence[str], epochs: Sequence[str], result: Sequence[float], metric: str, title: str, less: bool,
             limits: tuple[float, float]) -> Figure:  # fmt: skip
    """Draw the mean result of every learning rate at every number of epochs.

    Args:
        rates, epochs: a value per row.
        result: a number per row.
        metric: the result's name.
        title: what these rows share.
        less: whether less is better.
        limits: of the colours, the same in every heat map of a sweep.
    """
    xs, ys = _sorted(set(epochs)), _sorted(set(rates))
    table = np.full((len(ys), len(xs)), math.nan)  # (rates, epochs)
    for i, rate in enumerate(ys):
        for j, epoch in enumerate(xs):
            cell = [value for r, e, value in zip(rates, epochs, result, strict=True) if (r, e) == (rate, epoch)]
            if cell:
                table[i, j] = sum(cell) / len(cell)
    figure = _figure(1.6 + 0.8 * len(xs), 1.4 + 0.5 * len(ys))
    axes = figure.subplots()
    colours = mpl.colormaps["viridis_r" if less else "viridis"]
    image = axes.imshow(table, cmap=colours, aspect="auto", vmin=limits[0], vmax=limits[1])
    for (i, j), value in np.ndenumerate(table):
        if not math.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axes.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axes.set_xticks(range(len(xs)), xs)
    axes.set_yticks(range(len(ys)), [f"{float(y):g}" if number(y) is not None else y for y in ys])
    axes.set_xlabel("epochs")
    axes.set_ylabel("learning rate")
    axes.set_title(f"{title}: {metric}" if title else metric, fontsize=10, loc="left")
    return figure


@styled
def importances(found: Importance, metric: str) -> Figure:
    """Draw what shuffling each parameter costs."""
    names = list(found.values)[::-1]
    means = [found.values[name][0] for name in names]
    spread = [found.values[name][1] for name in names]
    figure = _figure(5.6, 1.2 + 0.35 * len(names))
    axes = figure.subplots()
    axes.barh(names, means, xerr=spread, color=BLUE, ecolor=GREY, height=0.6)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("rise of the error when shuffled, as a share of the variance")
    axes.set_title(f"{metric}, {found.n} results; forest's R² on unseen rows {found.r2:.2f}", fontsize=10, loc="left")
    return figure


@styled
def intervals(names: Sequence[str], estimates: Mapping[str, Sequence[tuple[float, float, float] | None]]) -> Figure:
    """Draw a panel per metric, with a point and its interval per run.

    Args:
        names: of the runs, from top to bottom.
        estimates: metric -> (value, low, high) or None per run; an interval that is not known is NaN.
    """
    figure = _figure(1.8 + 2.4 * len(estimates) + 0.06 * max(map(len, names)), 1.0 + 0.28 * len(names))
    panels = figure.subplots(1, len(estimates), sharey=True, squeeze=False)[0]
    for axes, (metric, values) in zip(panels, estimates.items(), strict=True):
        _points(axes, values)
        axes.set_title(metric, fontsize=10, loc="left")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


@styled
def svg(figure: Figure) -> bytes:
    """Return a figure as SVG with text that can be searched."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _points(axes: Axes, values: Sequence[tuple[float, float, float] | None]) -> None:
    axes.grid(axis="x", color=GRID)
    for height, value in enumerate(values):
        if value is not None:
            middle, low, high = value
            if not math.isnan(low):
                axes.plot([low, high], [height, height], color=BLUE, linewidth=1.6)
            axes.plot(middle, height, "o", color=BLUE, markersize=4.5)


def _sorted(values: set[str]) -> list[str]:
    return sorted(values, key=lambda value: (number(value) is None, number(value) or 0.0, value))


def _places(values: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return each row's height on an axis, values equally apart in their order, and the axis' marks."""
    order = _sorted(set(values))
    heights = {value: index / (len(order) - 1) if len(order) > 1 else 0.5 for index, value in enumerate(order)}
    step = max(1, math.ceil(len(order) / MOST_TICKS))
    marks = [(heights[value], value if number(value) is None else f"{float(value):g}") for value in order[::step]]
    return [heights[value] for value in values], marks


def _spread(height: float, row: int) -> float:
    """Move a line a little, so that rows of equal values do not hide one another; the same for the same row."""
    return height + 0.03 * ((row * 0.618034) % 1 - 0.5)
