"""Figures: the same bytes again, well-formed, self-contained, and showing the numbers they are given."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from test_metrics import HPV, MPOX, study

from synthvision.evaluation import figures
from synthvision.evaluation.evaluate import evaluate

HISTORY = [{"epoch": n, "train/loss": 1 / n, "val/loss": float("nan") if n == 2 else 1.2 / n} for n in range(1, 6)]


@pytest.fixture(scope="module")
def evaluation():
    return evaluate(*study(HPV, ("HPV", "Normal")), threshold=0.5, positive="HPV", draws=100)


def draw(evaluation):
    return {
        "confusion": figures.confusion_figure(evaluation.confusion, evaluation.classes, False),
        "shares": figures.confusion_figure(evaluation.confusion, evaluation.classes, True),
        "roc": figures.roc_figure(evaluation),
        "pr": figures.precision_recall_figure(evaluation),
        "series": figures.series_figure(HISTORY, "epoch", ["train/loss", "val/loss"], "loss", 3),
        "subgroups": figures.subgroup_figure(evaluation.subgroups, "sensitivity", 0.94),
    }


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_same_figure_gives_the_same_bytes(evaluation):
    for first, second in zip(draw(evaluation).values(), draw(evaluation).values(), strict=True):
        assert figures.svg(first, "f", "title", "what") == figures.svg(second, "f", "title", "what")
        assert figures.png(first) == figures.png(second)


def test_figures_are_well_formed_named_and_refer_to_nothing_outside(evaluation):
    seen = set()
    for name, figure in draw(evaluation).items():
        svg = figures.svg(figure, name, "A < B", "what is shown")
        root = ElementTree.fromstring(svg)
        assert root.find("{http://www.w3.org/2000/svg}title").text == "A < B"
        ids = re.findall(r'\bid="([^"]+)"', svg)
        assert all(each.startswith(f"{name}-") for each in ids)
        assert seen.isdisjoint(ids)
        seen |= set(ids)
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) <= set(ids)
        assert svg.count("http") == 1  # the namespace


def test_confusion_figures_show_counts_and_shares():
    shown = texts(
        figures.svg(figures.confusion_figure(MPOX.astype(int), ("M-pox", "Normal", "Other"), False), "a", "", "")
    )
    assert [text for text in shown if text.isdigit()] == [f"{count:.0f}" for count in MPOX.ravel()]
    shown = texts(
        figures.svg(figures.confusion_figure(MPOX.astype(int), ("M-pox", "Normal", "Other"), True), "a", "", "")
    )
    assert [text for text in shown if "." in text] == [f"{share:.2f}" for share in (MPOX / 100).ravel()]


def test_curves_show_their_area_with_its_interval(evaluation):
    auc = evaluation.estimates["auc"]
    shown = " ".join(texts(figures.svg(figures.roc_figure(evaluation), "a", "", "")))
    assert f"AUC {auc.value:.3f}" in shown
    assert f"({auc.low:.3f} to {auc.high:.3f}, DeLong)" in shown


def test_a_subgroup_without_a_number_says_so():
    result = evaluate(*study(np.array([[6.0, 4.0], [0.0, 20.0]]), ("HPV", "Normal")), 0.5, "HPV", draws=50)
    shown = texts(figures.svg(figures.subgroup_figure(result.subgroups, "sensitivity", 0.6), "a", "", ""))
    assert shown.count("too few to say") == 2  # five positives of either tone; ten of the body part that is not stated
    assert "fair (n = 5)" in shown
