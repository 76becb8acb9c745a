"""From a user's files to an audited manifest."""

import csv
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthvision.artifact import sha256_file, tree_digest
from synthvision.data.images import read_rgb, write_png
from synthvision.data.intake import FolderSource, GuideSource, TableSource
from synthvision.data.leakage import LeakError
from synthvision.data.masks import write_mask
from synthvision.data.prepare import Audit, prepare
from synthvision.data.splits import ShortageError
from synthvision.manifest import Manifest

COUNTS = {"lesion": {"train": 6, "val": 2, "test": 4}, "normal": {"train": 6, "test": 4}}
CLASSES = ("lesion", "normal")
Pixels = NDArray[np.uint8]


def picture(*key: int) -> Pixels:
    """Draw patches of random colour, 24 x 20."""
    colours = np.random.default_rng(key).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return colours.repeat(4, axis=0).repeat(4, axis=1)


@dataclass
class Files:
    """A user's files: a table with 20 pictures of each class, two per patient, and three guides."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = [("file", "label", "patient", "part")]
        for place, label in enumerate(CLASSES):
            for i in range(20):
                write_png(self.image(label, i), picture(place, i))
                rows.append((f"{label}-{i}.png", label, f"Jane Doe {label} {i // 2}", "arm"))
        with (self.folder / "labels.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows(rows)
        for i in range(3):
            self.add_guide(i, picture(9, i))

    def image(self, label: str, index: int) -> Path:
        return self.folder / f"{label}-{index}.png"

    def add_guide(self, index: int, pixels: Pixels) -> None:
        write_png(self.folder / "guides" / f"{index}.png", pixels)
        (self.folder / "guides" / f"{index}.txt").write_text(f"cluster of {index} pustules")

    def prepare(self, root: Path, name: str = "one", **options: Any) -> Audit:
        columns = {"patient": "patient", "body_part": "part"}
        table = str(self.folder / "labels.csv")
        source = TableSource(table, "file", "label", dict(zip(CLASSES, CLASSES, strict=True)), columns=columns)
        guides = GuideSource(str(self.folder / "guides"), "lesion", consent="written")
        given = {"sources": [source], "guides": guides, "counts": COUNTS, "size": 16, "seed": 0, "classes": CLASSES}
        return prepare(root=root, out=root / "prepare" / name, **{**given, **options})


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "user").mkdir()
    return Files(tmp_path / "user")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "study"


def left(root: Path) -> list[dict[str, str]]:
    with (root / "prepare" / "one" / "quarantine.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_manifest_has_the_counts_and_the_pictures(files: Files, root: Path) -> None:
    audit = files.prepare(root)
    lesion = {"guide": 3, **COUNTS["lesion"]}
    assert audit.counts() == {"lesion": lesion, "normal": COUNTS["normal"]}
    assert (audit.found, audit.unused, audit.quarantined, audit.duplicates, audit.leaks) == (43, 18, 0, 0, ())
    for record in audit.manifest:
        file = audit.manifest.file(record)
        assert sha256_file(file) == record.sha256
        assert read_rgb(file).shape == (16, 16, 3)
    out = root / "prepare" / "one"
    assert Manifest.read(out / "manifest.csv", root) == audit.manifest
    assert len(list((out / "images").iterdir())) == len(audit.manifest)
    assert {path.name for path in out.iterdir()} == {"images", "manifest.csv", "audit.json", "quarantine.csv"}


def test_known_values_arrive(files: Files, root: Path) -> None:
    manifest = files.prepare(root).manifest
    guides = manifest.where(split="guide")
    assert guides.column("caption") == [f"cluster of {i} pustules" for i in range(3)]
    assert {(r.set, r.consent, r.origin) for r in guides} == {("guides", "written", "real")}
    assert set(manifest.where(label="normal").column("body_part")) == {"arm"}


def test_no_name_of_a_patient_or_source_leaves(files: Files, root: Path) -> None:
    audit = files.prepare(root, seed=7)
    out = root / "prepare" / "one"
    for name in ("manifest.csv", "audit.json"):
        text = (out / name).read_text()
        assert "Jane" not in text
        assert str(files.folder) not in text
    known = {hashlib.sha256(f"7:Jane Doe normal {i}".encode()).hexdigest()[:12] for i in range(10)}
    assert set(audit.manifest.where(label="normal").column("patient")) <= known
    assert json.loads((out / "audit.json").read_text())["found"] == 43


def test_same_input_gives_the_same_bytes_also_after_a_kill(files: Files, root: Path) -> None:
    files.prepare(root, "one")
    stale = root / "prepare" / "two" / "images" / "half.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    (root / "prepare" / "two" / "work" / "images").mkdir(parents=True)
    files.prepare(root, "two")
    one, two = root / "prepare" / "one", root / "prepare" / "two"
    assert {p.name: p.read_bytes() for p in one.glob("images/*")} == {
        p.name: p.read_bytes() for p in two.glob("images/*")
    }
    before = tree_digest(one)
    files.prepare(root, "one")
    assert tree_digest(one) == before


def test_unusable_files_are_quarantined_with_their_reason(files: Files, root: Path) -> None:
    files.image("lesion", 0).write_bytes(b"")
    files.image("lesion", 1).write_text("hello")
    files.image("lesion", 2).unlink()
    write_png(files.image("normal", 0), np.full((20, 20, 3), 9, dtype=np.uint8))
    whole = files.image("normal", 1).read_bytes()
    files.image("normal", 1).write_bytes(whole[: len(whole) // 2])
    audit = files.prepare(root)
    assert audit.quarantined == 5
    reasons = {Path(row["file"]).name: row["reason"] for row in left(root)}
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "lesion-0.png": "the file is empty",
        "lesion-1.png": "not an image of a known format",
        "lesion-2.png": "cannot be read",
        "normal-0.png": "uniform",
        "normal-1.png": "damaged",
    }
    assert files.image("lesion", 0).read_bytes() == b""  # the user's files are never touched


def test_a_guide_must_be_usable(files: Files, root: Path) -> None:
    (files.folder / "guides" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.png: the file is empty"):
        files.prepare(root)


def test_equal_pixels_count_once(files: Files, root: Path) -> None:
    Image.fromarray(picture(0, 0)).save(files.folder / "copy.bmp")  # other bytes, same pixels
    files.folder.joinpath("extra").mkdir()
    files.folder.joinpath("copy.bmp").rename(files.folder / "extra" / "copy.bmp")
    table = TableSource(str(files.folder / "labels.csv"), "file", "label", {"lesion": "lesion", "normal": "normal"})
    audit = files.prepare(root, sources=[table, FolderSource("lesion", str(files.folder / "extra"))])
    assert (audit.duplicates, audit.found) == (1, 44)
    assert [row["what"] for row in left(root)] == ["duplicate"]


def test_a_picture_with_two_labels_stops(files: Files, root: Path) -> None:
    write_png(files.image("normal", 3), picture(0, 0))
    with pytest.raises(ValueError, match=r"one picture has two labels: 'lesion'.*'normal'"):
        files.prepare(root)


def test_a_guide_copied_out_of_a_source_leaves_it_with_its_patient(files: Files, root: Path) -> None:
    files.add_guide(0, picture(0, 4))  # its patient's other picture is number 5
    audit = files.prepare(root)
    assert (len(audit.also_guides), audit.guide_patients) == (1, 1)
    assert {Path(row["file"]).name: row["what"] for row in left(root)} == {
        "lesion-4.png": "also a guide",
        "lesion-5.png": "patient of a guide",
    }
    guide = audit.manifest.where(image_id=audit.also_guides[0]).records[0]
    assert (guide.split, guide.body_part, guide.caption) == ("guide", "arm", "cluster of 0 pustules")
    assert guide.patient
    assert Counter(audit.manifest.column("patient"))[guide.patient] == 1


def test_two_guides_with_equal_pixels_stop(files: Files, root: Path) -> None:
    files.add_guide(0, picture(9, 1))
    with pytest.raises(ValueError, match=r"0\.png and .*1\.png show the same pixels"):
        files.prepare(root)


def test_a_near_copy_of_a_guide_stops_or_is_dropped(files: Files, root: Path) -> None:
    files.add_guide(0, picture(1, 3)[:, ::-1])
    counts = {"lesion": {"test": 4}, "normal": {"train": 12, "test": 8}}  # every normal picture, so the copy too
    with pytest.raises(LeakError, match=r"near: lesion-\w+ \(guide\) and normal-\w+ \((test|train)\)") as error:
        files.prepare(root, counts=counts)
    assert "quarantine.csv" in str(error.value)
    assert "normal-3.png" not in str(error.value)
    assert [Path(row["file"]).name for row in left(root)] == ["normal-3.png"]
    counts["normal"]["train"] = 11
    audit = files.prepare(root, counts=counts, leaks="drop")
    assert [(leak.kind, leak.sides[0]) for leak in audit.leaks] == [("near", "guide")]
    assert audit.counts()["normal"] == counts["normal"]


def test_dropping_leaks_ends_with_none_and_exact_counts(files: Files, root: Path) -> None:
    for i in range(0, 8, 2):  # mirrored copies under other patients
        write_png(files.image("normal", i + 9), picture(1, i)[::-1])
    counts = {"lesion": {"test": 4}, "normal": {"train": 7, "test": 7}}
    audit = files.prepare(root, counts=counts, leaks="drop")
    assert audit.counts()["normal"] == counts["normal"]
    gone = {leak.second for leak in audit.leaks}
    assert gone
    assert not gone & set(audit.manifest.column("image_id"))


def test_shortage_tells_where_to_look(files: Files, root: Path) -> None:
    with pytest.raises(ShortageError, match=r"label 'normal', split 'test'(?s:.)*quarantine\.csv"):
        files.prepare(root, counts={"normal": {"test": 21}})


def test_what_is_unknown_is_a_warning(files: Files, root: Path) -> None:
    warnings = files.prepare(root).warnings
    assert [text.split(":")[0] for text in warnings] == [
        "25 of 25 images have no reference_standard",
        "22 of 25 images have no consent",
        "3 of 25 images have no patient",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("lesion", "other")}, r"not: \['normal'\]"),
        ({"counts": {"wart": {"test": 1}}}, r"not: \['wart'\]"),
        ({"leaks": "ignore"}, "leaks must be one of"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    files: Files, root: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        files.prepare(root, **options)
    assert not root.exists()


def test_masks_of_guides_are_prepared_beside_them(tmp_path: Path) -> None:
    files = Files(tmp_path / "user")
    mask = np.zeros((24, 20), dtype=bool)
    mask[2:14, 4:16] = True
    write_mask(files.folder / "guides" / "1.mask.png", mask)
    audit = files.prepare(tmp_path / "study")
    guides = audit.manifest.where(split="guide")
    masked = guides.where(lambda record: bool(record.mask))
    assert len(masked) == 1
    prepared = read_rgb(audit.manifest.root / masked.records[0].mask)
    assert prepared.shape == read_rgb(guides.file(masked.records[0])).shape
    side = len(prepared)
    assert (prepared[..., 0] > 127).mean() == pytest.approx(mask[2:22].mean(), abs=2 / side)


def test_guides_that_are_too_small_are_refused_and_large_ones_shrunk(tmp_path: Path) -> None:
    files = Files(tmp_path / "user")
    files.add_guide(7, picture(8, 1).repeat(5, axis=0).repeat(5, axis=1))  # 120 x 100
    with pytest.raises(ValueError, match=r"0\.png must have 25 or more pixels a side .* it has 20"):
        files.prepare(tmp_path / "large", size=100)
    for index in range(3):
        (files.folder / "guides" / f"{index}.png").unlink()
        (files.folder / "guides" / f"{index}.txt").unlink()
    audit = files.prepare(tmp_path / "one", size=128)
    assert any("enlarged from 100 to 128 pixels" in warning for warning in audit.warnings)
    files.add_guide(8, np.kron(picture(8, 2), np.ones((333, 400, 1), np.uint8)))  # 7,992 x 8,000
    assert len(files.prepare(tmp_path / "two", size=128).manifest.where(split="guide")) == 2
