"""A finished classifier is used on a user's images, or exported."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from synthvision import artifact
from synthvision.classification.apply import Application
from synthvision.classification.export import export_onnx
from synthvision.data.images import Pixels, UnusableImage, read_rgb, require_content
from synthvision.stages.context import WEIGHTS, Context, Result
from synthvision.study import PredictConfig

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"})
BATCH = 32
Row = dict[str, str | float | bool]


@dataclass(frozen=True)
class Found:
    """A file to answer, by the name that the user knows it by."""

    name: str
    file: Path


def run_predict(given: Context) -> Result:
    """Answer every image; those that cannot be used are listed with the reason."""
    config = given.study.predict
    application = Application.load(weights_of(given))
    application.threshold(config.rule)  # a wrong rule fails before hours of work
    rows: list[Row] = []
    found = images_of(config)
    batches = [found[start : start + BATCH] for start in range(0, len(found), BATCH)]
    for batch in track(batches, description="predict"):
        rows += _answer(application, batch, config.rule)
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    artifact.write_text(given.out / "answers.csv", out.getvalue())
    artifact.write_json(given.out / "answers.json", rows)
    unusable = sum(row["status"] != "ok" for row in rows)
    flagged = sum(bool(row.get("foreign")) or bool(row.get("quality")) for row in rows)
    return Result({"images": len(rows), "unusable": unusable, "flagged": flagged})


def run_export(given: Context) -> Result:
    """Write the classifier as ONNX, checked against it."""
    file = given.out / "classifier.onnx"
    difference = export_onnx(Application.load(weights_of(given)).model, file)
    return Result({"onnx/greatest_difference": difference}, [file])


def weights_of(given: Context) -> Path:
    """Return the classifier's folder: the one that `predict.weights` names, or the study's own."""
    named = given.study.predict.weights
    return Path(named) if named else given.before["classify"] / WEIGHTS


def images_of(config: PredictConfig) -> list[Found]:
    """Return the files that `predict.images` names, in order: one image, all below a folder, or a column of a CSV.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: no image is named, or the CSV lacks the column.
    """
    if not config.images:
        raise ValueError("predict.images must name an image, a folder or a CSV; set predict.images=/path")
    path = Path(config.images)
    if not path.exists():
        raise FileNotFoundError(f"predict.images={path}: there is no such file or folder")
    found = list(_listed(path, config.column))
    if not found:
        raise ValueError(f"predict.images={path} holds no image; looked for {sorted(SUFFIXES)}")
    return found


def _listed(path: Path, column: str) -> Iterator[Found]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.suffix.lower() in SUFFIXES:
                yield Found(file.relative_to(path).as_posix(), file)
    elif path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"predict.column={column!r}: {path} has no such column but {reader.fieldnames}")
            for row in reader:
                name = row[column].strip()
                yield Found(name, path.parent / name)
    else:
        yield Found(path.name, path)


def _answer(application: Application, batch: Sequence[Found], rule: str | None) -> list[Row]:
    rows: list[Row] = [{"image": each.name, "status": "ok", "reason": ""} for each in batch]
    usable: list[int] = []
    images: list[Pixels] = []
    for index, each in enumerate(batch):
        try:
            image = read_rgb(each.file)
            require_content(image)
        except UnusableImage as error:
            rows[index] |= {"status": "unusable", "reason": str(error)}
        else:
            usable.append(index)
            images.append(image)
    if not images:
        return rows
    answer = application.answer(images, rule)
    classes = application.model.classes
    for place, index in enumerate(usable):
        rows[index] |= {
            "decision": answer.called[place],
            **{f"p_{name}": float(value) for name, value in zip(classes, answer.probability[place], strict=True)},
            **{f"calibrated_{name}": float(v) for name, v in zip(classes, answer.calibrated[place], strict=True)},
            "threshold": application.threshold(rule),
            "distance": float(answer.distance[place]),
            "foreign": answer.foreign[place],
            "quality": answer.faults[place],
        }
    return rows


def input_digest(config: PredictConfig) -> str:
    """Return a digest of the images to answer: new images are answered anew."""
    return artifact.digest_of([(each.name, _digest(each.file)) for each in images_of(config)])


def _digest(file: Path) -> str:
    try:
        return artifact.sha256_file(file)
    except OSError:
        return "unreadable"  # the answer will say why
