"""The report's figures as matplotlib figures, and their deterministic SVG and PNG.

One panel per figure, drawn small: the page lays them out, so that text stays readable on a telephone.
Colours are Okabe and Ito's, which the colour-blind tell apart; lines differ in dashes as well.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from synthvision.evaluation.evaluate import Evaluation
from synthvision.evaluation.intervals import Estimate
from synthvision.evaluation.subgroups import Subgroup

BLUE, VERMILION, GREEN, PURPLE, INK, GREY, GRID = (
    "#0072B2", "#D55E00", "#009E73", "#AA4499", "#1b2733", "#66727f", "#e3e8ed",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, GREY)
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1)))
BLUES = LinearSegmentedColormap.from_list("blues", ["#f5f9fc", "#9fc9e3", BLUE, "#00405f"])
SIZE = (4.4, 3.7)
STYLE: Any = {  # matplotlib types each key; a plain mapping will do
    "svg.fonttype": "none",  # text stays text: it can be searched, copied, read aloud
    "svg.hashsalt": "synthvision",  # the same figure gives the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this report's style."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def panel(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Return a figure with one panel, in inches."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


@styled
def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str], normalised: bool) -> Figure:
    """Return a confusion matrix as counts, or as shares of each true class."""
    counts = np.asarray(confusion, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = panel()
    axes.pcolormesh(shares, cmap=BLUES, vmin=0, vmax=1, edgecolors="white", linewidth=2)
    for (row, column), share in np.ndenumerate(shares):
        text = f"{share:.2f}" if normalised else f"{counts[row, column]:.0f}"
        colour = "white" if share > 0.55 else INK
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=15)
    ticks, names = np.arange(len(classes)) + 0.5, ["\n".join(textwrap.wrap(name, 14)) for name in classes]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set(xlabel="called", ylabel="truth", aspect="equal")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Let both axes run from 0 to 1."""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    axes.grid(color=GRID)


@styled
def roc_figure(evaluation: Evaluation) -> Figure:
    """Return the ROC curve with its area, the line of chance and the operating point with its intervals."""
    figure, axes = panel()
    unit_square(axes, "1 - specificity", "sensitivity")
    auc = evaluation.estimates["auc"]
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=DASHES[2], label="chance: AUC 0.5")
    label = f"AUC {auc.value:.3f}\n({auc.low:.3f} to {auc.high:.3f}, {auc.method})"
    axes.plot(evaluation.roc.x, evaluation.roc.y, color=BLUE, linewidth=2, label=label)
    found, cleared = evaluation.estimates["sensitivity"], evaluation.estimates["specificity"]
    axes.errorbar(
        1 - cleared.value, found.value,
        xerr=[[cleared.high - cleared.value], [cleared.value - cleared.low]],
        yerr=[[found.value - found.low], [found.high - found.value]],
        color=VERMILION, marker="o", markersize=6, capsize=3, linestyle="none",
        label=f"threshold {evaluation.threshold:.3f}",
    )  # fmt: skip
    axes.legend(loc="lower right")
    return figure


@styled
def precision_recall_figure(evaluation: Evaluation) -> Figure:
    """Return the precision-recall curve with average precision, the line of chance and the operating point."""
    figure, axes = panel()
    unit_square(axes, "recall (sensitivity)", "precision (PPV)")
    ap, prevalence = evaluation.estimates["average_precision"], evaluation.prevalence
    axes.axhline(prevalence, color=GREY, linestyle=DASHES[2], label=f"chance: AP {prevalence:.2f}")
    limits = f"\n({ap.low:.3f} to {ap.high:.3f}, bootstrap)" if math.isfinite(ap.low) else ""
    curve = evaluation.precision_recall
    axes.step(curve.x, curve.y, where="pre", color=BLUE, linewidth=2, label=f"average precision {ap.value:.3f}{limits}")
    point = evaluation.estimates["sensitivity"].value, evaluation.estimates["ppv"].value
    axes.plot(*point, color=VERMILION, marker="o", linestyle="none", label=f"threshold {evaluation.threshold:.3f}")
    axes.legend(loc="lower left")
    return figure


@styled
def series_figure(
    history: Sequence[Mapping[str, float]], x: str, names: Sequence[str], ylabel: str, chosen: float | None = None
) -> Figure:
    """Return curves: columns `names` of `history` over its column `x`; `chosen` marks the epoch that was kept."""
    figure, axes = panel((4.4, 3.2))
    for index, name in enumerate(names):
        points = [(row[x], row[name]) for row in history if name in row and math.isfinite(row[name])]
        marker = "o" if len(points) < 30 else None
        axes.plot(
            [at for at, _ in points], [value for _, value in points], label=name, linewidth=1.8, marker=marker,
            markersize=3, color=COLOURS[index % len(COLOURS)], linestyle=DASHES[index % len(DASHES)],
        )  # fmt: skip
    if chosen is not None:
        axes.axvline(chosen, color=GREY, linewidth=1, linestyle=DASHES[2], label=f"kept: {x} {chosen:g}")
    axes.grid(color=GRID)
    axes.set(xlabel=x, ylabel=ylabel)
    axes.legend()
    return figure


@styled
def subgroup_figure(
    subgroups: Sequence[Subgroup], measure: Literal["sensitivity", "specificity"], overall: float
) -> Figure:
    """Return one measure in every subgroup with its interval; the dotted line is that of all images."""
    labels: list[str] = []
    drawn: list[tuple[int, Estimate | None]] = []
    for group in subgroups:
        heading = group.column.replace("_", " ").capitalize() + ":"
        if heading not in labels:
            labels.append(heading)
        drawn.append((len(labels), getattr(group, measure)))
        labels.append(f"{group.value} (n = {group.positives if measure == 'sensitivity' else group.others})")
    figure, axes = panel((4.4, 0.9 + 0.3 * len(labels)))
    axes.axvline(overall, color=GREY, linestyle=DASHES[2], linewidth=1)
    for row, estimate in drawn:
        if estimate is None:
            axes.text(0.02, row, "too few to say", va="center", color=GREY, style="italic")
        else:
            limits = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar(estimate.value, row, xerr=limits, color=BLUE, marker="o", markersize=5, capsize=3)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(labels) - 0.5, -0.5), xlabel=measure)
    axes.grid(color=GRID, axis="x")
    axes.tick_params(axis="y", length=0)
    return figure


def figures_of(result: Evaluation) -> dict[str, Figure]:
    """Return the figures of the test set by name: confusion matrix (counts, shares), ROC and precision-recall."""
    return {
        "confusion-counts": confusion_figure(result.confusion, result.classes, False),
        "confusion-shares": confusion_figure(result.confusion, result.classes, True),
        "roc": roc_figure(result),
        "precision-recall": precision_recall_figure(result),
    }


@styled
def png(figure: Figure, dpi: int = 150) -> bytes:
    """Return the figure as PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


@styled
def svg(figure: Figure, name: str, title: str, description: str) -> str:
    """Return the figure as an SVG element to put into a page.

    Args:
        figure: from this module.
        name: unique in the page; its ids begin with it, since all figures of a page share one space of ids.
        title: read aloud and shown on hover.
        description: what the figure shows, for those who cannot see it.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL).replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = body.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    width, height = (72 * side for side in figure.get_size_inches())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{body.strip()}\n'
    )
