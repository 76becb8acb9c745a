"""An ablation as one HTML file, in words, tables and figures, with the figures and tables beside it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from synthvision import __version__
from synthvision.artifact import write_text
from synthvision.evaluation import figures, words
from synthvision.evaluation.ablation import Ablation, Worth
from synthvision.evaluation.comparison import Difference
from synthvision.evaluation.figures_ablation import figures_of_ablation
from synthvision.evaluation.intervals import LEVEL, Estimate
from synthvision.evaluation.report import environment

TITLES = {
    "arms": "Accuracy of every arm",
    "real-images": "Accuracy over the number of real images of the disease",
    "ratio": "Accuracy over synthetic images per real one",
}


def write_page(found: Ablation, left_out: Mapping[str, Sequence[int]], study: str, command: str, file: Path) -> None:
    """Write the page, and beside it `figures/*.svg`, `arms.csv` and `differences.csv`."""
    drawn = {name: figures.svg(figure, name, TITLES[name], "The tables hold the same numbers.")
             for name, figure in figures_of_ablation(found).items()}  # fmt: skip
    for name, image in drawn.items():
        write_text(file.parent / "figures" / f"{name}.svg", image)
    write_text(file.parent / "arms.csv", _arms(found))
    write_text(file.parent / "differences.csv", _differences(found))
    page = environment().get_template("ablation.html.j2").render(
        found=found, study=study, command=command, version=__version__, left_out=left_out, titles=TITLES,
        answer=sentences(found), figures={name: Markup(image) for name, image in drawn.items()},
        between=lambda estimate: words.between("accuracy", estimate), points=_points, p_value=_p,
    )  # fmt: skip
    write_text(file, page)


def sentences(found: Ablation) -> list[str]:
    """Return the answers in words: who beats the baseline, what synthetic images are worth, where they stop helping."""
    return [_beside(found), *(_worth(each) for each in found.worth), *_saturated(found)]


def _beside(found: Ablation) -> str:
    """Say which arms are known to differ from the baseline, and which would be but for the number of comparisons."""
    base, level = found.baseline, 1 - LEVEL
    if not found.differences:
        return f"There is nothing to compare with {base}."
    sure = [d for d in found.differences if d.p_adjusted < level]
    hints = [d for d in found.differences if d.p < level and d not in sure]
    others = len(found.differences) - len(sure) - len(hints)
    said = [
        f"By p < {level:.2g} after Holm's correction, {_sides(sure, base) or f'no arm is better or worse than {base}'}."
    ]
    if hints:
        said.append(f"Each taken by itself, which is a hint and no finding, {_sides(hints, base)}.")
    if others:
        said.append(f"{others} of {len(found.differences)} arms cannot be told from {base}.")
    return " ".join(said)


def _sides(differences: Sequence[Difference], baseline: str) -> str:
    better = [d.arm for d in differences if d.accuracy.value > 0]
    worse = [d.arm for d in differences if d.accuracy.value < 0]
    parts = {f"better than {baseline}": better, f"worse than {baseline}": worse}
    return "; ".join(f"{words}: {', '.join(arms)}" for words, arms in parts.items() if arms)


def _worth(worth: Worth) -> str:
    low, high = _number(worth, worth.low), _number(worth, worth.high)
    interval = low if low == high else f"{low} to {high}"
    return (
        f"The training images of {worth.arm} are worth {_number(worth, worth.images)} real ones (95% interval "
        f"{interval}), by where the curve of real images alone reaches their accuracy."
    )


def _number(worth: Worth, images: float) -> str:
    if math.isfinite(images):
        return f"{images:.0f}"
    return f"more than {worth.most}" if images > 0 else f"fewer than {worth.least}"


def _saturated(found: Ablation) -> list[str]:
    at = found.saturation
    if at is None:
        return []
    if at.ratio == at.greatest:
        return [f"With {at.real} real images no saturation was seen up to {at.greatest:g} synthetic ones for each."]
    return [
        f"With {at.real} real images, no greater ratio than {at.ratio:g} synthetic ones for each is better by an "
        f"interval without zero: the best of them differs by {_points(at.left)}, which is what cannot be excluded."
    ]


def _p(value: float, digits: int) -> str:
    least: float = 10**-digits
    return f"<{least:g}" if value < least else words.decimal(value, digits)


def _points(estimate: Estimate) -> str:
    """Return a difference of shares in percentage points."""
    value, low, high = (words.signed(each) for each in (estimate.value, estimate.low, estimate.high))
    return f"{value} points ({low} to {high})"


def _arms(found: Ablation) -> str:
    measures = ("accuracy", "sensitivity", "specificity", "auc")
    head = [
        "arm",
        "real",
        "guides",
        "synthetic",
        "shown",
        "settings",
        "opened",
        *(f"{m}{end}" for m in measures for end in ("", "_low", "_high")),
    ]
    rows = []
    for row in found.rows:
        made = row.made_of
        cells: list[object] = [
            row.arm, made.real, made.guides, made.synthetic, made.shown, made.settings, made.opened
        ]  # fmt: skip
        for measure in measures:
            estimate: Estimate = getattr(row, measure)
            cells += [f"{value:.6g}" for value in (estimate.value, estimate.low, estimate.high)]
        rows.append(cells)
    return _csv(head, rows)


def _differences(found: Ablation) -> str:
    head = ["arm", "minus", "accuracy", "low", "high", "p", "p_holm", "auc", "auc_low", "auc_high", "detectable"]
    rows = [
        [d.arm, found.baseline, *(f"{x:.6g}" for x in (d.accuracy.value, d.accuracy.low, d.accuracy.high, d.p,
         d.p_adjusted, d.auc.value, d.auc.low, d.auc.high, d.detectable))]
        for d in found.differences
    ]  # fmt: skip
    return _csv(head, rows)


def _csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()
