"""Figures of what the classifier is worth in use: calibration, net benefit, abstention; and all figures' data."""

from __future__ import annotations

from matplotlib.figure import Figure

from synthvision.evaluation.decision_curve import Abstention, DecisionCurve
from synthvision.evaluation.evaluate import Evaluation
from synthvision.evaluation.figures import BLUE, DASHES, GREEN, GREY, GRID, VERMILION, panel, styled, unit_square
from synthvision.evaluation.reliability import Reliability


@styled
def reliability_figure(shown: tuple[Reliability, ...], positive: str) -> Figure:
    """Return the reliability diagram: as the classifier says it, and at the temperature from validation."""
    figure, axes = panel()
    unit_square(axes, f"probability of {positive} that was said", f"share that was {positive}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=DASHES[2], label="honest")
    for each, colour, marker, name in zip(shown, (GREY, BLUE), ("s", "o"), ("as it is", "calibrated"), strict=False):
        said = [part.said for part in each.bins]
        true = [part.came_true.value for part in each.bins]
        limits = [
            [part.came_true.value - part.came_true.low for part in each.bins],
            [part.came_true.high - part.came_true.value for part in each.bins],
        ]
        label = f"{name}: ECE {each.ece.value:.3f}, Brier {each.brier.value:.3f}"
        axes.errorbar(said, true, yerr=limits, color=colour, marker=marker, markersize=4, capsize=2, label=label)
    _legend_below(figure)
    return figure


@styled
def decision_figure(curve: DecisionCurve, prevalence: float) -> Figure:
    """Return net benefit over the risk at which one would act, beside acting on all and on none."""
    figure, axes = panel()
    axes.fill_between(curve.risk, curve.low, curve.high, color=BLUE, alpha=0.18, linewidth=0)
    axes.plot(curve.risk, curve.classifier, color=BLUE, linewidth=2, label="by the classifier")
    axes.plot(curve.risk, curve.act_on_all, color=VERMILION, linestyle=DASHES[1], label="act on all")
    axes.axhline(0, color=GREY, linestyle=DASHES[2], label="act on none")
    axes.set(xlim=(0, 1), ylim=(-0.05, prevalence * 1.12), xlabel="risk at which one would act", ylabel="net benefit")
    axes.grid(color=GRID)
    _legend_below(figure)
    return figure


@styled
def abstention_figure(found: Abstention) -> Figure:
    """Return the share of wrong calls over the share of images that are answered, the surest first."""
    figure, axes = panel()
    axes.plot(found.coverage, found.risk, color=GREEN, linewidth=2, label=f"mean over coverage {found.area:.3f}")
    axes.axhline(found.risk[-1], color=GREY, linestyle=DASHES[2], label="answering all")
    axes.set(xlim=(0, 1.02), ylim=(-0.01, max(0.1, max(found.risk) * 1.1)))
    axes.set(xlabel="share of images answered, surest first", ylabel="share of wrong answers")
    axes.grid(color=GRID)
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    """Put the legend where it hides no line."""
    figure.legend(loc="outside lower center", fontsize=8)


def figures_of_use(result: Evaluation) -> dict[str, Figure]:
    """Return the figures by name."""
    return {
        "reliability": reliability_figure(result.reliability, result.positive),
        "decision-curve": decision_figure(result.decision_curve, result.prevalence),
        "abstention": abstention_figure(result.abstention),
    }


Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


def tables_of(result: Evaluation) -> dict[str, Table]:
    """Return the data of the test set's figures, as (columns, rows) by the figure's name."""
    curve, kept = result.decision_curve, result.abstention
    bins = [(each.temperature, part.said, part.came_true.value, part.came_true.low, part.came_true.high,
             part.came_true.n) for each in result.reliability for part in each.bins]  # fmt: skip
    confusion = [(truth, called, count) for truth, row in zip(result.classes, result.confusion, strict=True)
                 for called, count in zip(result.classes, row, strict=True)]  # fmt: skip
    groups = [
        (group.column, group.value, measure, kind, *(() if one is None else (one.value, one.low, one.high)))
        for group in result.subgroups
        for measure, kind, one in (
            ("sensitivity", group.positives, group.sensitivity),
            ("specificity", group.others, group.specificity),
        )
    ]
    return {
        "confusion": (("truth", "called", "images"), list(confusion)),
        "roc": (("one_minus_specificity", "sensitivity"), list(zip(result.roc.x, result.roc.y, strict=True))),
        "precision-recall": (
            ("recall", "precision"),
            list(zip(result.precision_recall.x, result.precision_recall.y, strict=True)),
        ),
        "reliability": (("temperature", "said", "came_true", "low", "high", "images"), list(bins)),
        "decision-curve": (
            ("risk", "classifier", "low", "high", "act_on_all"),
            list(zip(curve.risk, curve.classifier, curve.low, curve.high, curve.act_on_all, strict=True)),
        ),
        "abstention": (("coverage", "risk"), list(zip(kept.coverage, kept.risk, strict=True))),
        "subgroups": (("column", "value", "measure", "images", "share", "low", "high"), list(groups)),
    }
