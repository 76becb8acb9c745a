"""From a user's files to an audited manifest."""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthvision.artifact import sha256_file, tree_digest
from synthvision.data.audit import Audit, write_audit
from synthvision.data.cache import ImageCache
from synthvision.data.copies import TwoLabelsError
from synthvision.data.images import read_rgb, write_png
from synthvision.data.intake import FolderSource, GuideSource, TableSource
from synthvision.data.leakage import LeakError
from synthvision.data.masks import write_mask
from synthvision.data.prepare import UnreadableError, prepare
from synthvision.data.rules import Rules
from synthvision.data.splits import ShortageError
from synthvision.manifest import Manifest

COUNTS = {"lesion": {"train": 6, "val": 2, "test": 4}, "normal": {"train": 6, "test": 4}}
CLASSES = ("lesion", "normal")
Pixels = NDArray[np.uint8]
RULES = {each.name for each in fields(Rules)}


def picture(*key: int) -> Pixels:
    """Draw patches of random colour, 48 x 40."""
    colours = np.random.default_rng(key).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return colours.repeat(8, axis=0).repeat(8, axis=1)


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
        given = {"sources": [source], "guides": guides, "classes": CLASSES}
        rules = Rules(**{"counts": COUNTS, "size": 16, "seed": 0, **{k: options.pop(k) for k in RULES & set(options)}})
        cache, out = ImageCache(root / "cache", rules.size, rules.seed), root / "prepare" / name
        audit = prepare(root=root, out=out, rules=rules, cache=cache, **{**given, **options})
        write_audit(out, audit)
        return audit


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
    assert {path.name for path in out.iterdir()} == {
        "images",
        "manifest.csv",
        "audit.json",
        "audit.html",
        "quarantine.csv",
    }


def test_known_values_arrive(files: Files, root: Path) -> None:
    manifest = files.prepare(root).manifest
    guides = manifest.where(split="guide")
    assert guides.column("caption") == [f"cluster of {i} pustules" for i in range(3)]
    assert {(r.set, r.consent, r.origin) for r in guides} == {("guides", "written", "real")}
    assert set(manifest.where(label="normal").column("body_part")) == {"arm"}


def test_no_name_of_a_patient_or_source_leaves(files: Files, root: Path) -> None:
    audit = files.prepare(root, seed=7)
    out = root / "prepare" / "one"
    for name in ("manifest.csv", "audit.json", "audit.html"):
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


def test_pictures_that_differ_outside_their_square_are_not_equal(files: Files, root: Path) -> None:
    """Their rows in the cache are equal, so only the decoded pixels tell."""
    other = picture(0, 0)
    other[0] = 255 - other[0]
    write_png(files.folder / "extra" / "other.png", other)
    Image.fromarray(picture(0, 1)).save(files.folder / "extra" / "same.bmp")
    audit = files.prepare(root, sources=[*elsewhere(files)[:1], FolderSource("lesion", str(files.folder / "extra"))])
    assert [Path(row["file"]).name for row in left(root)] == ["same.bmp"]
    assert [similarity for *_, similarity in audit.near] == [1.0]


def test_a_picture_with_two_labels_stops(files: Files, root: Path) -> None:
    write_png(files.image("normal", 3), picture(0, 0))
    with pytest.raises(TwoLabelsError, match=r"one picture has two labels: 'lesion'.*'normal'"):
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


def test_edited_copies_under_other_patients_stay_together(files: Files, root: Path) -> None:
    for i in range(0, 8, 2):
        write_png(files.image("normal", i + 9), picture(1, i)[::-1])
    audit = files.prepare(root, counts={"lesion": {"test": 4}, "normal": {"train": 8, "test": 8}})
    assert len(audit.near) == 4
    assert read_rgb(root / "prepare" / "one" / "near.png").shape[0] > 4 * 160
    assert audit.leaks == ()
    sides: dict[str, set[str]] = {}
    for record in audit.manifest.where(lambda r: bool(r.siblings)):
        sides.setdefault(record.siblings, set()).add(record.split)
    assert sides
    assert all(len(parts) == 1 for parts in sides.values())


def folders(files: Files, copy: Pixels) -> list[FolderSource]:
    """A collection that comes divided, as public ones do, with `copy` in its test folder."""
    for part, first, number in (("train", 0, 12), ("test", 20, 6)):
        for i in range(number):
            for place, label in enumerate(CLASSES):
                write_png(files.folder / part / label / f"{i}.png", picture(place, 100 + first + i))
    write_png(files.folder / "test" / "normal" / "copy.png", copy)
    return [
        FolderSource(label, str(files.folder / part / label), split=part)
        for part in ("train", "test")
        for label in CLASSES
    ]


DIVIDED = {"lesion": {"train": 12, "test": 6}, "normal": {"train": 11, "test": 6}}


def test_a_collection_that_comes_divided_and_leaks_is_stopped_with_a_picture_sheet(files: Files, root: Path) -> None:
    sources = folders(files, picture(1, 100)[:, ::-1])
    with pytest.raises(
        LeakError, match=r"1 leaks:\nnear: normal-\w+ \(test\) and normal-\w+ \(train\)(?s:.)*leaks\.png"
    ):
        files.prepare(root, sources=sources, counts={**DIVIDED, "normal": {"train": 12, "test": 7}})
    assert [Path(row["file"]).name for row in left(root)] == ["0.png"]
    assert read_rgb(root / "prepare" / "one" / "leaks.png").shape[1] > 300


def test_leaks_are_dropped_or_moved_by_the_user_s_rule(files: Files, root: Path) -> None:
    sources = folders(files, picture(1, 100)[:, ::-1])
    counts = {**DIVIDED, "normal": {"train": 11, "test": 7}}
    dropped = files.prepare(root, "one", sources=sources, counts=counts, leaks="drop")
    assert [(leak.kind, leak.sides) for leak in dropped.leaks] == [("near", ("test", "train"))]
    assert dropped.counts()["normal"] == counts["normal"]
    counts["normal"] = {"train": 11, "test": 8}  # room for both
    moved = files.prepare(root, "two", sources=sources, counts=counts, leaks="move")
    pair = {moved.leaks[0].first, moved.leaks[0].second}
    assert {record.split for record in moved.manifest if record.image_id in pair} == {"test"}
    assert moved.counts()["normal"] == counts["normal"]


def test_a_shortage_says_which_images_were_left_out_as_leaks(files: Files, root: Path) -> None:
    sources = folders(files, picture(1, 100)[:, ::-1])
    counts = {**DIVIDED, "normal": {"train": 12, "test": 7}}  # one more for training than is left without the leak
    with pytest.raises(ShortageError) as error:
        files.prepare(root, sources=sources, counts=counts, leaks="drop")
    (row,) = left(root)
    assert (Path(row["file"]).name, row["what"]) == ("0.png", "leak dropped")
    assert str(files.folder / "test" / "normal" / "copy.png") in row["reason"]
    told = str(error.value).split("\n")
    assert "label 'normal', split 'train': 12 images wanted, 1 missing" in told[0]
    assert told[1] == "1 were left out as leaks, the second of each pair:"
    assert row["reason"].startswith(told[2])
    assert row["image_id"] in told[2]
    assert (root / "prepare" / "one" / "leaks.png").is_file()
    with pytest.raises(
        ShortageError, match=r"\n1 were moved to the first one's side, with what belongs to them:\nnear: normal-"
    ):
        files.prepare(root / "moved", sources=sources, counts={**DIVIDED, "normal": {"train": 12}}, leaks="move")


def test_an_exact_copy_on_two_sides_is_a_leak_too(files: Files, root: Path) -> None:
    """A public collection has test files that are byte for byte those of training."""
    sources = folders(files, picture(1, 100))
    with pytest.raises(LeakError, match=r"1 leaks:\nexact: normal-(\w+) \(test\) and normal-\1 \(train\), 1.000"):
        files.prepare(root, sources=sources, counts=DIVIDED)
    assert [(Path(row["file"]).name, row["what"]) for row in left(root)] == [("0.png", "leak")]
    assert (root / "prepare" / "one" / "leaks.png").is_file()
    for name, rule in (("two", "drop"), ("three", "move")):
        audit = files.prepare(root, name, sources=sources, counts={**DIVIDED, "normal": {"test": 7}}, leaks=rule)
        assert [(leak.kind, leak.sides) for leak in audit.leaks] == [("exact", ("test", "train"))]
        assert audit.counts()["normal"] == {"test": 7}
        assert audit.duplicates == 0


def elsewhere(files: Files, *extra: Pixels) -> list[FolderSource | TableSource]:
    """The user's table, and four pictures of each class and `extra` ones from another hospital."""
    for place, label in enumerate(CLASSES):
        for i in range(4):
            write_png(files.folder / "other" / label / f"{i}.png", picture(place, 200 + i))
    for i, pixels in enumerate(extra):
        write_png(files.folder / "other" / "normal" / f"extra-{i}.png", pixels)
    labels = dict(zip(CLASSES, CLASSES, strict=True))
    table = TableSource(str(files.folder / "labels.csv"), "file", "label", labels, columns={"patient": "patient"})
    return [table, *(FolderSource(x, str(files.folder / "other" / x), external="hospital_b") for x in CLASSES)]


def test_an_external_test_set_is_whole_and_beside_the_splits(files: Files, root: Path) -> None:
    alone = files.prepare(root, "one", sources=elsewhere(files)[:1])
    audit = files.prepare(root, "two", sources=elsewhere(files))
    external = audit.manifest.where(split="external")
    assert Counter(external.column("label")) == {"lesion": 4, "normal": 4}
    assert set(external.column("set")) == {"hospital_b"}
    assert all(audit.manifest.file(record).is_file() for record in external)
    assert audit.manifest.where(lambda r: r.split != "external") == alone.manifest.with_values(
        lambda r: {"path": r.path.replace("/one/", "/two/")}
    )
    assert audit.counts()["normal"] == {**COUNTS["normal"], "external/hospital_b": 4}
    assert "external/<wbr>hospital_b</th>" in (root / "prepare" / "two" / "audit.html").read_text()
    assert len(audit.traits) == 43 - 8  # of no test set: what tells hospitals apart is no clue to the class within one
    tested = {record.patient for record in audit.manifest.where(split="test")}
    assert not tested & {trait.group for trait in audit.traits}
    (book,) = (root / "splits").glob("*.csv")
    assert "external" not in book.read_text()


def test_what_ties_an_external_test_set_to_training_leaks(files: Files, root: Path) -> None:
    counts = {"lesion": {"train": 20}, "normal": {"train": 19}}
    sources = elsewhere(files, picture(1, 8)[:, ::-1])
    with pytest.raises(LeakError, match=r"near: normal-\w+ \(external\) and normal-\w+ \(train\)"):
        files.prepare(root, sources=sources, counts={**counts, "normal": {"train": 20}})
    for rule in ("drop", "move"):  # nothing is moved into a set that came as it is
        audit = files.prepare(root / rule, sources=sources, counts=counts, leaks=rule)
        assert [leak.sides for leak in audit.leaks] == [("external", "train")]
        assert audit.counts()["normal"] == {"train": 19, "external/hospital_b": 5}
    same = elsewhere(files, picture(1, 4))  # equal pixels, and no side stated: the picture is the external set's
    counts["normal"] = {"train": 18}
    with pytest.raises(LeakError, match=r"patient: normal-\w+ \(external\) and normal-\w+ \(train\)"):
        files.prepare(root / "same", sources=same, counts={**counts, "normal": {"train": 19}})
    audit = files.prepare(root / "same", sources=same, counts=counts, leaks="drop")
    assert audit.duplicates == 1
    assert audit.counts()["normal"] == {"train": 18, "external/hospital_b": 5}


def test_a_class_with_one_image_gets_a_clear_message(files: Files, root: Path) -> None:
    write_png(files.folder / "one" / "0.png", picture(3, 0))
    sources = [*elsewhere(files)[:1], FolderSource("rare", str(files.folder / "one"))]
    with pytest.raises(
        ShortageError, match=r"'rare' has images of 1 patient for 2 splits.*leave it out of disease\.classes, or join"
    ):
        files.prepare(
            root, sources=sources, classes=(*CLASSES, "rare"), counts={**COUNTS, "rare": {"val": 1, "test": 1}}
        )


def test_two_labels_are_resolved_by_the_user_s_rule(files: Files, root: Path) -> None:
    write_png(files.image("normal", 3), picture(0, 0))
    dropped = files.prepare(root, "one", two_labels="drop")
    assert dropped.two_labels == 2
    assert {Path(row["file"]).name for row in left(root)} == {"normal-3.png", "lesion-0.png"}
    first = files.prepare(root, "two", two_labels="first")
    assert first.two_labels == 1
    assert sum(trait.label == "lesion" for trait in first.traits) == 19  # 23 but for those of the test set


def test_too_many_unusable_files_stop_with_the_reasons(files: Files, root: Path) -> None:
    for i in range(12):
        files.image("lesion", i).write_bytes(b"")
    with pytest.raises(
        UnreadableError, match=r"12 of 43 files .*\(12 the file is empty\); .*most_unusable=0\.2 allows 20%"
    ):
        files.prepare(root)
    assert len(left(root)) == 12
    files.prepare(root, most_unusable=0.5, counts={"lesion": {"test": 4}, "normal": {"test": 4}})


def test_an_image_keeps_its_split_when_others_are_added(files: Files, root: Path) -> None:
    table = files.folder / "labels.csv"
    whole = table.read_text()
    table.write_text("".join(line for line in whole.splitlines(True) if "Doe normal 9" not in line))
    before = files.prepare(root, "one").manifest
    table.write_text(whole)
    audit = files.prepare(root, "two")
    sides = dict(zip(audit.manifest.column("image_id"), audit.manifest.column("split"), strict=True))
    assert sides == dict(zip(before.column("image_id"), before.column("split"), strict=True))
    others = files.prepare(root, "three", seed=1).manifest
    assert set(others.column("image_id")) != set(before.column("image_id"))


def test_masks_are_prepared_beside_their_images(files: Files, root: Path) -> None:
    white = np.zeros((48, 40), dtype=np.uint8)
    white[10:30, 10:30] = 255
    for i in range(20):
        write_png(files.image("lesion", i).with_name(f"lesion-{i}_mask.png"), white)
    write_png(files.folder / "guides" / "0.mask.png", white)
    for i in range(20):
        write_png(files.image("normal", i).with_name(f"normal-{i}_mask.png"), white[:20])
    manifest = files.prepare(root).manifest
    guides = manifest.where(split="guide")
    assert [bool(record.mask) for record in guides] == [True, False, False]
    assert [row["what"] for row in left(root)] == ["mask"] * 10  # every drawn normal's: of another size than its image
    for record in manifest.where(lambda r: bool(r.mask)):
        mask = read_rgb(root / record.mask)
        assert mask.shape == (16, 16, 3)
        assert set(np.unique(mask)) == {0, 255}
    assert all(manifest.where(lambda r: r.split != "guide", label="lesion").column("mask"))


def test_an_estimated_tone_has_its_own_column(files: Files, root: Path) -> None:
    manifest = files.prepare(root, estimate_tone=True).manifest
    assert set(manifest.column("skin_tone")) == {""}
    assert set(manifest.column("skin_tone_ita")) <= {"very light", "light", "intermediate", "tan", "brown", "dark"}
    assert "" not in manifest.column("skin_tone_ita")


def test_odd_names_and_loops_end_in_manifest_or_quarantine(files: Files, root: Path) -> None:
    odd = files.folder / "odd one"
    names = ["two\nlines.png", "\N{MICROSCOPE} cell.png", "x" * 196 + ".png", 'a,"b";c.png', "plain"]
    for number, name in enumerate(names):
        write_png(odd / name, picture(5, number))
    (odd / "loop.png").symlink_to(odd / "loop.png")
    (odd / "nowhere.png").symlink_to(odd / "missing.png")
    (odd / "up").symlink_to(files.folder)
    not_utf8 = odd / os.fsdecode(b"no \xff utf-8.png")
    shutil.copyfile(files.image("lesion", 1), not_utf8)
    odd.chmod(0o555)
    source = FolderSource("lesion", str(odd), "**/*")
    audit = files.prepare(root, sources=[source], counts={"lesion": {"test": 6}}, most_unusable=0.5)
    assert audit.counts()["lesion"]["test"] == 6
    assert {Path(row["file"]).name for row in left(root)} - {"up"} == {"loop.png", "nowhere.png"}


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
        ({"two_labels": "both"}, "two_labels must be one of"),
        ({"most_unusable": 20}, "most_unusable must be a share"),
        ({"stratify": ["tone"]}, "stratify: columns must be among"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    files: Files, root: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        files.prepare(root, **options)
    assert not (root / "prepare").exists()


def test_masks_of_guides_are_prepared_beside_them(tmp_path: Path) -> None:
    files = Files(tmp_path / "user")
    mask = np.zeros((48, 40), dtype=bool)
    mask[4:28, 8:32] = True
    write_mask(files.folder / "guides" / "1.mask.png", mask)
    audit = files.prepare(tmp_path / "study")
    guides = audit.manifest.where(split="guide")
    masked = guides.where(lambda record: bool(record.mask))
    assert len(masked) == 1
    prepared = read_rgb(audit.manifest.root / masked.records[0].mask)
    assert prepared.shape == read_rgb(guides.file(masked.records[0])).shape
    side = len(prepared)
    assert (prepared[..., 0] > 127).mean() == pytest.approx(mask[4:44].mean(), abs=2 / side)


def test_guides_that_are_too_small_are_refused_and_large_ones_shrunk(tmp_path: Path) -> None:
    files = Files(tmp_path / "user")
    files.add_guide(7, picture(8, 1).repeat(5, axis=0).repeat(5, axis=1))  # 240 x 200
    with pytest.raises(ValueError, match=r"0\.png must have 45 or more pixels a side .* it has 40"):
        files.prepare(tmp_path / "large", size=180)
    for index in range(3):
        (files.folder / "guides" / f"{index}.png").unlink()
        (files.folder / "guides" / f"{index}.txt").unlink()
    audit = files.prepare(tmp_path / "one", size=256)
    assert any("enlarged from 200 to 256 pixels" in warning for warning in audit.warnings)
    files.add_guide(8, np.kron(picture(8, 2), np.ones((166, 200, 1), np.uint8)))  # 7,968 x 8,000
    assert len(files.prepare(tmp_path / "two", size=256).manifest.where(split="guide")) == 2
