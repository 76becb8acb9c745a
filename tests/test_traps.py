"""Traps that real collections hold, planted: each is found, and a clean set raises no alarm."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthvision.data.audit import Audit
from synthvision.data.cache import ImageCache
from synthvision.data.intake import FolderSource, GuideSource, TableSource
from synthvision.data.leakage import LeakError
from synthvision.data.phantom import PhantomConfig, write_phantoms
from synthvision.data.prepare import prepare
from synthvision.data.rules import Rules
from synthvision.evaluation.shortcuts import in_words, probe_intake

Pixels = NDArray[np.uint8]
CLASSES = ("lesion", "normal")
EACH = 90
COUNTS = {label: {"train": 40, "val": 10, "test": 20} for label in CLASSES}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantoms(folder, PhantomConfig(dict.fromkeys(CLASSES, EACH), guides=3, seed=5))
    return folder


def audited(drawn: Path, root: Path, change: Callable[[str, Pixels], tuple[bytes, str]] | None = None) -> Audit:
    """Prepare the phantoms, each file written anew by `change(label, pixels)` -> bytes and file name's end."""
    table = (drawn / "phantoms.csv").read_text().splitlines()
    folder = drawn
    if change:
        folder = root / "changed"
        (folder / "images").mkdir(parents=True)
        for number, row in enumerate(table[1:], 1):
            name, label = row.split(",")[:2]
            with Image.open(drawn / name) as image:
                data, end = change(label, np.array(image))
            (folder / name).with_suffix(end).write_bytes(data)
            table[number] = row.replace(".png", end, 1)
    (root / "table.csv").write_text("\n".join(table) + "\n")
    labels = dict(zip(CLASSES, CLASSES, strict=True))
    source = TableSource(
        str(root / "table.csv"), "file", "label", labels, folder=str(folder), columns={"patient": "patient"}
    )
    guides, rules = GuideSource(str(drawn / "guides"), "lesion"), Rules(counts=COUNTS, size=64, seed=0)
    cache = ImageCache(root / "cache", 64, 0)
    return prepare([source], guides, rules, CLASSES, root / "study", root / "study" / "prepare" / "x", cache)


def alarms(audit: Audit, root: Path) -> list[str]:
    probes = probe_intake(audit.traits, ImageCache(root / "cache", 64, 0).pixels(), CLASSES, 0)
    return [told["name"] for told in map(in_words, probes) if told["grave"]]


def encoded(pixels: Pixels, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def test_a_clean_set_raises_no_alarm(drawn: Path, tmp_path: Path) -> None:
    audit = audited(drawn, tmp_path)
    assert (audit.quarantined, audit.duplicates, audit.near, audit.leaks) == (0, 0, (), ())
    assert alarms(audit, tmp_path) == []


def stamped(label: str, pixels: Pixels) -> tuple[bytes, str]:
    if label == "lesion":
        pixels[-9:-4, 3:14] = 250
    return encoded(pixels, "PNG"), ".png"


def larger(label: str, pixels: Pixels) -> tuple[bytes, str]:
    side = 128 if label == "lesion" else 120
    return encoded(np.asarray(Image.fromarray(pixels).resize((side, side))), "PNG"), ".png"


def coarser(label: str, pixels: Pixels) -> tuple[bytes, str]:
    return encoded(pixels, "JPEG", quality=80 if label == "lesion" else 95), ".jpg"


def dated(label: str, pixels: Pixels) -> tuple[bytes, str]:
    exif = Image.Exif()
    exif[0x0132] = f"20{19 if label == 'lesion' else 24}:05:06 12:00:00"
    return encoded(pixels, "JPEG", quality=90, exif=exif), ".jpg"


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        (stamped, "borders and corners"),
        (larger, "file metadata"),
        (coarser, "file metadata"),
        (dated, "file metadata"),
    ],
)
def test_what_marks_one_class_is_found(
    change: Callable[[str, Pixels], tuple[bytes, str]], alarm: str, drawn: Path, tmp_path: Path
) -> None:
    assert alarm in alarms(audited(drawn, tmp_path, change), tmp_path)


def test_a_source_that_has_one_class_only_is_found(drawn: Path, tmp_path: Path) -> None:
    sources = [FolderSource(label, str(drawn / "images"), f"{label}-*.png") for label in CLASSES]
    guides, rules = GuideSource(str(drawn / "guides"), "lesion"), Rules(counts=COUNTS, size=64, seed=0)
    cache, out = ImageCache(tmp_path / "cache", 64, 0), tmp_path / "study" / "prepare"
    audit = prepare(sources, guides, rules, CLASSES, tmp_path / "study", out, cache)
    assert alarms(audit, tmp_path) == ["source and site"]


def test_a_patient_on_two_sides_of_a_divided_collection_is_found(drawn: Path, tmp_path: Path) -> None:
    rows = (drawn / "phantoms.csv").read_text().splitlines()
    patients = [row.split(",")[2] for row in rows[1:]]
    twice = next(index for index in range(1, len(patients)) if patients[index] == patients[index - 1])
    parts = ["test" if index == twice else "train" for index in range(len(patients))]
    lines = [f"{rows[0]},part", *(f"{row},{part}" for row, part in zip(rows[1:], parts, strict=True))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    columns = {"patient": "patient", "split": "part"}
    labels = dict(zip(CLASSES, CLASSES, strict=True))
    source = TableSource(str(tmp_path / "table.csv"), "file", "label", labels, folder=str(drawn), columns=columns)
    rules = Rules(counts={"lesion": {"train": 5}}, size=64, seed=0)
    with pytest.raises(LeakError, match=r"patient: lesion-\w+ \(test\) and lesion-\w+ \(train\)"):
        prepare(
            [source], GuideSource(str(drawn / "guides"), "lesion"), rules, CLASSES, tmp_path / "study",
            tmp_path / "study" / "prepare", ImageCache(tmp_path / "cache", 64, 0),
        )  # fmt: skip
