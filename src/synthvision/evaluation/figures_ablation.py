"""Figures of an ablation: all arms, accuracy over real images, accuracy over the ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synthvision.evaluation.ablation import Ablation, Point, Row
from synthvision.evaluation.figures import BLUE, COLOURS, DASHES, GREY, GRID, VERMILION, panel, styled


def figures_of_ablation(found: Ablation) -> dict[str, Figure]:
    """Return by name the figures that there are points for."""
    drawn = {"arms": arms_figure(found.rows, found.baseline)}
    curves = {"real images alone": found.real_alone, "with synthetic ones": found.real_and_synthetic}
    if len(found.real_alone) > 1:
        drawn["real-images"] = curve_figure(curves, "real images of the disease")
    if found.ratios:
        drawn["ratio"] = curve_figure({"with synthetic ones": found.ratios}, "synthetic images per real one")
    return drawn


@styled
def arms_figure(rows: Sequence[Row], baseline: str) -> Figure:
    """Return every arm's accuracy with its interval; the dotted line is the baseline's."""
    figure, axes = panel((6.4, 0.9 + 0.32 * len(rows)))
    for place, row in enumerate(rows):
        _bar(axes, row.accuracy.value, place, row.accuracy.low, row.accuracy.high, row.arm == baseline)
    for row in rows:
        if row.arm == baseline:
            axes.axvline(row.accuracy.value, color=GREY, linestyle=DASHES[2], linewidth=1)
    axes.set_yticks(range(len(rows)), [row.arm for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="accuracy")
    axes.grid(color=GRID, axis="x")
    axes.tick_params(axis="y", length=0)
    return figure


def _bar(axes: Axes, value: float, place: int, low: float, high: float, is_baseline: bool) -> None:
    limits = [[value - low], [high - value]] if math.isfinite(low) else None
    axes.errorbar(value, place, xerr=limits, color=VERMILION if is_baseline else BLUE, marker="o", capsize=3)


@styled
def curve_figure(curves: Mapping[str, Sequence[Point]], xlabel: str) -> Figure:
    """Return accuracy with its intervals over a number on a logarithmic axis, a line for each curve."""
    figure, axes = panel((4.8, 3.6))
    for index, (name, points) in enumerate(curves.items()):
        if points:
            x, y = [p.x for p in points], [p.accuracy.value for p in points]
            down = [max(0.0, p.accuracy.value - p.accuracy.low) for p in points]
            up = [max(0.0, p.accuracy.high - p.accuracy.value) for p in points]
            axes.errorbar(
                x, y, yerr=[down, up], label=name, marker="o", capsize=3, color=COLOURS[index], linestyle=DASHES[index]
            )
    axes.set_xscale("log")
    at = sorted({point.x for points in curves.values() for point in points})
    axes.set_xticks(at, [f"{each:g}" for each in at])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel="accuracy")
    axes.grid(color=GRID)
    if sum(map(bool, curves.values())) > 1:
        axes.legend()
    return figure
