"""Prepare: a user's files become one audited Manifest of uniform images, split, and checked for leaks."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from synthvision.artifact import WORK, write_json, write_text
from synthvision.data.decoding import Pixels, decode_file, read_file
from synthvision.data.images import (
    encode_png,
    fit,
    require_content,
    thumbnail,
)
from synthvision.data.intake import FolderSource, Found, GuideSource, TableSource
from synthvision.data.leakage import Leak, LeakError, find_leaks
from synthvision.data.masks import prepared_mask
from synthvision.data.splits import Counts, ShortageError, split
from synthvision.data.unusable import UnusableImage
from synthvision.manifest import Manifest, Record

Source = FolderSource | TableSource
MASK_END = ".mask.png"
LEAK_RULES = ("stop", "drop")


@dataclass(frozen=True)
class Audit:
    """What prepare made of the files it was given."""

    manifest: Manifest
    found: int  # files read, guides included
    quarantined: int  # files that gave no usable picture
    duplicates: int  # pictures dropped because the same pixels were there already
    also_guides: tuple[str, ...]  # guides whose picture also was in a source, and was removed there
    guide_patients: int  # pictures left out because their patient has a guide
    unused: int  # usable pictures beyond the counts
    leaks: tuple[Leak, ...]  # leaks that were resolved by dropping the second picture
    warnings: tuple[str, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return label -> split -> number of images."""
        table: dict[str, dict[str, int]] = defaultdict(dict)
        for (label, part), number in sorted(Counter((r.label, r.split) for r in self.manifest).items()):
            table[label][part] = number
        return dict(table)

    def summary(self) -> dict[str, Any]:
        """Return everything but the manifest as JSON-able values; no path of a source is among them."""
        values = {key: value for key, value in vars(self).items() if key != "manifest"}
        return {**values, "leaks": [asdict(leak) for leak in self.leaks], "counts": self.counts()}


@dataclass(frozen=True)
class _Item:
    """A usable picture: its record, where it came from, and what is needed to compare it with others."""

    record: Record
    source: Path
    pixels: str  # digest of the picture as it was decoded
    thumbnail: Pixels  # see `images.thumbnail`


@dataclass(frozen=True)
class _Left:
    """A file that is not in the manifest for a reason the user should know."""

    image_id: str
    file: Path
    what: str
    reason: str


def prepare(
    sources: Sequence[Source],
    guides: GuideSource,
    counts: Counts,
    size: int,
    seed: int,
    root: Path,
    out: Path,
    classes: Sequence[str],
    leaks: str = "stop",
) -> Audit:
    """Read all files once, write the used pictures as PNG of (size, size), and the Manifest over them.

    Writes `images/<image_id>.png`, `manifest.csv`, `audit.json` and `quarantine.csv` into `out`. The last names source
    files and why each is not used; the others carry no name of a file or patient. Pictures with equal pixels
    count once; pictures that are guides, or whose patient has one, are not drawn for the splits.

    Args:
        sources: real images with labels.
        guides: real images with captions.
        counts: label -> "train" / "val" / "test" -> number of images, exactly.
        size: side of the written pictures, in pixels.
        seed: of the split, and salt of the patients' hashes.
        root: the study folder; `out` lies in it.
        out: the stage's folder.
        classes: the study's labels.
        leaks: "stop" raises on a leak; "drop" removes the picture on the lesser side (guide > test > val > train)
            and draws again.

    Raises:
        ValueError: a label is not among the classes, a guide is unusable, or a picture has two labels.
        ShortageError: too few images for the counts.
        LeakError: the same picture is on two sides; `quarantine.csv` names the files.
    """
    _check(sources, guides, counts, classes, leaks)
    for leftover in (out / "images", out / WORK):  # of an interrupted run
        shutil.rmtree(leftover, ignore_errors=True)
    left: list[_Left] = []
    reader = _Reader(size, seed, root, out, left)
    guide_items = [reader.guide(found) for found in guides.read()]
    found = [each for source in sources for each in source.read()]
    items = reader.all(found)
    pool, guide_items = _without_copies(guide_items, items, left)
    try:
        chosen, dropped = _split_without_leaks(guide_items, pool, counts, seed, root, leaks, left)
    except (ShortageError, LeakError) as error:
        where = f"{out / 'quarantine.csv'} names the files that were left out, and why"
        raise type(error)(f"{error}\n{where}") from error
    finally:
        _write_left(out / "quarantine.csv", left)
    manifest = _keep(chosen, out)
    what = Counter(each.what for each in left)
    audit = Audit(
        manifest=manifest,
        found=len(found) + len(guide_items),
        quarantined=what["unusable"],
        duplicates=what["duplicate"],
        also_guides=tuple(each.image_id for each in left if each.what == "also a guide"),
        guide_patients=what["patient of a guide"],
        unused=len(pool) - len(dropped) - (len(manifest) - len(guide_items)),
        leaks=tuple(dropped),
        warnings=_warnings(manifest),
    )
    write_json(out / "audit.json", audit.summary())
    manifest.write(out / "manifest.csv")
    return audit


def _check(sources: Sequence[Source], guides: GuideSource, counts: Counts, classes: Sequence[str], leaks: str) -> None:
    named = {guides.label, *counts}
    for source in sources:
        named |= {source.label} if isinstance(source, FolderSource) else set(source.labels.values())
    unknown = sorted(named - set(classes))
    if unknown:
        raise ValueError(f"labels must be among the classes {list(classes)}; these are not: {unknown}")
    if leaks not in LEAK_RULES:
        raise ValueError(f"leaks must be one of {LEAK_RULES}; it is {leaks!r}")


class _Reader:
    """Turns files into items; each picture goes to the work folder until it is known to be used."""

    def __init__(self, size: int, seed: int, root: Path, out: Path, left: list[_Left]) -> None:
        self.size, self.seed, self.left = size, seed, left
        self.folder = (out / "images").relative_to(root)
        self.work = out / WORK / "images"
        self.work.mkdir(parents=True)

    def guide(self, found: Found) -> _Item:
        try:
            return self.item(found, split="guide")
        except UnusableImage as error:
            raise ValueError(f"guide {found.file}: {error}; every guide counts, so replace or remove it") from error

    def all(self, found: Sequence[Found]) -> list[_Item]:
        items = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for each in progress.track(found, description="reading images"):
                try:
                    items.append(self.item(each))
                except UnusableImage as error:
                    self.left.append(_Left("", each.file, "unusable", str(error)))
        return items

    def item(self, found: Found, split: str = "") -> _Item:
        data = read_file(found.file)
        decoded = decode_file(data)
        require_content(decoded.pixels)
        values = {"patient": decoded.patient, **found.values}
        image_id = f"{_slug(values['label'])}-{hashlib.sha256(data).hexdigest()[:12]}"
        if values["patient"]:
            values["patient"] = hashlib.sha256(f"{self.seed}:{values['patient']}".encode()).hexdigest()[:12]
        png = encode_png(fit(decoded.pixels, self.size))
        (self.work / f"{image_id}.png").write_bytes(png)
        record = Record(
            image_id=image_id,
            path=(self.folder / f"{image_id}.png").as_posix(),
            sha256=hashlib.sha256(png).hexdigest(),
            origin="real",
            split=split,
            mask=self.mask(image_id, found, decoded.pixels),
            conversions="; ".join(decoded.conversions),
            **values,
        )
        digest = hashlib.sha256(repr(decoded.pixels.shape).encode() + decoded.pixels.tobytes()).hexdigest()
        return _Item(record, found.file, digest, thumbnail(decoded.pixels))

    def mask(self, image_id: str, found: Found, pixels: Pixels) -> str:
        """Write the image's mask, if it has one, and return its path; a mask that cannot be used is left out."""
        if found.mask is None:
            return ""
        try:
            png = encode_png(prepared_mask(read_file(found.mask), pixels.shape, self.size))
        except UnusableImage as error:
            self.left.append(_Left(image_id, found.mask, "mask", str(error)))
            return ""
        name = f"{image_id}{MASK_END}"
        (self.work / name).write_bytes(png)
        return (self.folder / name).as_posix()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "image"


def _without_copies(
    guides: Sequence[_Item], items: Sequence[_Item], left: list[_Left]
) -> tuple[list[_Item], list[_Item]]:
    """Return the pool that splits are drawn from, and the guides with what their copies in the sources tell of them."""
    kept: dict[str, _Item] = {}
    for guide in guides:
        if guide.pixels in kept:
            raise ValueError(f"guides {kept[guide.pixels].source} and {guide.source} show the same pixels; remove one")
        kept[guide.pixels] = guide
    for item in items:
        twin = kept.setdefault(item.pixels, item)
        if twin is item:
            continue
        if twin.record.label != item.record.label:
            labels = f"{twin.record.label!r} ({twin.source}) and {item.record.label!r} ({item.source})"
            raise ValueError(f"one picture has two labels: {labels}; correct the label or remove the picture")
        what = "also a guide" if twin.record.split == "guide" else "duplicate"
        left.append(_Left(twin.record.image_id, item.source, what, f"same pixels as {twin.source}"))
        kept[item.pixels] = replace(twin, record=_completed(twin.record, item.record))
    known = list(kept.values())
    own = [item for item in known if item.record.split == "guide"]
    patients = {item.record.patient for item in own} - {""}
    pool = []
    for item in known[len(own) :]:
        if item.record.patient in patients:
            reason = "another picture of this patient is a guide"
            left.append(_Left(item.record.image_id, item.source, "patient of a guide", reason))
        else:
            pool.append(item)
    return pool, own


def _completed(record: Record, copy: Record) -> Record:
    """Fill what is unknown of a picture with what its copy tells."""
    return replace(record, **{key: value for key, value in asdict(copy).items() if not getattr(record, key)})


def _split_without_leaks(
    guides: Sequence[_Item],
    pool: Sequence[_Item],
    counts: Counts,
    seed: int,
    root: Path,
    rule: str,
    left: list[_Left],
) -> tuple[Manifest, list[Leak]]:
    """Draw splits; on a leak stop, or drop the lesser picture of each pair and draw again until there is none."""
    by_id = {item.record.image_id: item for item in (*guides, *pool)}
    dropped: dict[str, Leak] = {}
    while True:
        open_records = [item.record for item in pool if item.record.image_id not in dropped]
        drawn = split(open_records, counts, seed)
        manifest = Manifest((*(item.record for item in guides), *drawn), root)
        leaks = find_leaks(manifest, np.stack([by_id[record.image_id].thumbnail for record in manifest]))
        if not leaks:
            return manifest, list(dropped.values())
        for leak in leaks:
            left.append(_Left(leak.second, by_id[leak.second].source, "leak", f"{leak}; {by_id[leak.first].source}"))
        if rule == "stop":
            remedy = "remove one of each pair, or let leaks='drop' remove the second"
            raise LeakError("\n".join([f"{len(leaks)} leaks:", *map(str, leaks), remedy]))
        dropped |= {leak.second: leak for leak in leaks}


def _keep(manifest: Manifest, out: Path) -> Manifest:
    """Move the used pictures to their place and drop the others."""
    (out / "images").mkdir(parents=True)
    for record in manifest:
        (out / WORK / "images" / f"{record.image_id}.png").replace(manifest.file(record))
        if record.mask:
            (out / WORK / "images" / f"{record.image_id}{MASK_END}").replace(manifest.root / record.mask)
    shutil.rmtree(out / WORK)
    return manifest


def _warnings(manifest: Manifest) -> tuple[str, ...]:
    asked: Mapping[str, str] = {
        "reference_standard": "how their diagnosis was established is unknown",
        "consent": "whether patients consented to this use is unknown",
        "patient": "each counts as its own patient, so splits may share one unseen",
    }
    missing = {column: manifest.column(column).count("") for column in asked}
    total = len(manifest)
    return tuple(f"{missing[c]} of {total} images have no {c}: {means}" for c, means in asked.items() if missing[c])


def _write_left(file: Path, left: Sequence[_Left]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image_id", "file", "what", "reason"))
    writer.writerows((each.image_id, each.file, each.what, each.reason) for each in left)
    write_text(file, out.getvalue())
