"""The report: everything a study found, in one self-contained HTML file and in a JSON file with the same numbers."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from synthvision.artifact import write_json, write_text
from synthvision.evaluation import figures, words
from synthvision.evaluation.figures_use import figures_of_use, tables_of
from synthvision.evaluation.report_content import build, smoothed
from synthvision.evaluation.report_input import ReportInput, StageRow
from synthvision.evaluation.subgroups import worth_showing
from synthvision.manifest import Manifest, Record

__all__ = ["ReportInput", "StageRow", "build", "write_report"]

TILES = 24  # images per grid: enough to judge, few enough to look at each
TILE_SIDE = 192
CURVES: dict[str, Callable[[str], bool]] = {
    "loss": lambda name: name.endswith("loss"),
    "score": lambda name: not name.endswith("loss"),
}
TITLES = {
    "confusion-counts": "Confusion matrix, counts",
    "confusion-shares": "Confusion matrix, share of each true class",
    "roc": "ROC curve",
    "precision-recall": "Precision-recall curve",
    "reliability": "Reliability diagram",
    "decision-curve": "Decision curve",
    "abstention": "Wrong answers over the share of images answered",
}
CARDS = ("model_card", "data_sheet")
NOT_PLOTTED = ("lr", "step", "epoch", "seconds")


def write_report(given: ReportInput, out: Path) -> Path:
    """Write report.html, report.json, model_card.md, data_sheet.md and figures/*.svg and *.csv into `out`.

    Returns:
        The path of the HTML file.
    """
    content = build(given)
    drawn = _figures(given)
    for name, image in drawn.items():
        write_text(out / "figures" / f"{name}.svg", image)
    for name, table in tables_of(given.evaluation).items():
        write_text(out / "figures" / f"{name}.csv", _csv(*table))
    write_json(out / "report.json", content)
    for name in CARDS:
        text = environment().get_template(f"{name}.md.j2").render(**content)
        write_text(out / f"{name}.md", "\n".join(line.rstrip() for line in text.splitlines()) + "\n")
    template = environment().get_template("report.html.j2")
    page = template.render(
        **content, figures={name: Markup(image) for name, image in drawn.items()}, grids=_grids(given),
        samples=[thumbnail(path, 640) for path in given.samples], words=words,
        error_pictures={case.image_id: thumbnail(case.picture, 640) for case in given.errors},
        neighbours=_neighbours(given),
    )  # fmt: skip
    write_text(out / "report.html", page)
    return out / "report.html"


def _figures(given: ReportInput) -> dict[str, str]:
    result = given.evaluation
    made = {**figures.figures_of(result), **figures_of_use(result)}
    drawn = {name: (figure, TITLES[name]) for name, figure in made.items()}
    measures: tuple[Literal["sensitivity", "specificity"], ...] = ("sensitivity", "specificity")
    for measure in measures:
        if result.subgroups:
            overall = result.estimates[measure].value
            drawn[f"subgroups-{measure}"] = (
                figures.subgroup_figure(worth_showing(result.subgroups), measure, overall),
                f"{measure.capitalize()} by subgroup",
            )
    for kind, belongs in CURVES.items():
        names = [name for name in _columns(given.history) if belongs(name)]
        if names:
            figure = figures.series_figure(given.history, "epoch", names, kind, float(given.best_epoch))
            drawn[f"classifier-{kind}"] = (figure, f"Classifier: {kind} by epoch")
    if given.diffusion_losses:
        smooth = smoothed(given.diffusion_losses, "step")
        figure = figures.series_figure(smooth, "step", _columns(smooth), "loss (running mean)")
        drawn["diffusion-loss"] = (figure, "Diffusion model: loss by step")
    describe = {
        "confusion-counts": f"Rows are the truth, columns the decision, classes {result.classes}: {result.confusion}."
    }
    return {
        name: figures.svg(figure, name, title, describe.get(name, title)) for name, (figure, title) in drawn.items()
    }


def _csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()


def _columns(rows: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name.split("/")[-1] not in NOT_PLOTTED]


def _grids(given: ReportInput) -> dict[str, list[dict[str, str]]]:
    candidates = given.candidates
    chosen = {
        "guides": given.real.where(split="guide"),
        "candidates": candidates.with_values(lambda _: {"reason": ""}),
        "accepted": candidates.where(decision="accept"),
        "rejected": candidates.where(decision="reject"),
    }
    return {name: [_tile(manifest, record) for record in _spread(manifest)] for name, manifest in chosen.items()}


def _neighbours(given: ReportInput) -> dict[str, str]:
    wanted = {name for case in given.errors for name in case.neighbours}
    near = given.training.where(lambda record: record.image_id in wanted)
    return {record.image_id: thumbnail(near.file(record), TILE_SIDE) for record in near}


def _spread(manifest: Manifest) -> list[Record]:
    """Return at most TILES records, evenly over the manifest, so that nobody picks the pretty ones."""
    at = np.unique(np.linspace(0, len(manifest) - 1, min(TILES, len(manifest))).round().astype(int))
    return [manifest.records[index] for index in at]


def _tile(manifest: Manifest, record: Record) -> dict[str, str]:
    seen = record.caption or record.prompt or record.label
    return {
        "src": thumbnail(manifest.file(record), TILE_SIDE),
        "alt": seen,
        "id": record.image_id,
        "note": record.reason,
    }


def thumbnail(path: Path, side: int) -> str:
    """Return an image, at most `side` pixels wide and high, as a data URI; small ones stay lossless."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side))
    kind = "PNG" if max(small.size) <= 96 else "JPEG"
    out = io.BytesIO()
    small.save(out, format=kind, **({} if kind == "PNG" else {"quality": 88}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def environment() -> Environment:
    """Return what renders this room's templates."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is None or not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=words.percent, decimal=words.decimal, signed=words.signed)
    return environment
