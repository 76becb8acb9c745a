"""Prepare: a user's files become one audited Manifest of uniform images, split, and checked for leaks."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from synthvision.artifact import write_bytes, write_text
from synthvision.data.audit import Audit, traits_of, write_sheet
from synthvision.data.book import SplitBook
from synthvision.data.cache import ImageCache, Picture
from synthvision.data.copies import Item, Left, TwoLabelsError, one_of_each, tied
from synthvision.data.dicom import BURNED_IN
from synthvision.data.guide_sets import GuideSets
from synthvision.data.images import encode_png
from synthvision.data.intake import FolderSource, Found, GuideSource, TableSource
from synthvision.data.leakage import Leak, LeakError, Ties, find_leaks
from synthvision.data.masks import fit_mask, read_mask, write_mask
from synthvision.data.reading import patient_hash, read_pictures
from synthvision.data.rules import Rules
from synthvision.data.splits import ShortageError, groups_of, split
from synthvision.data.tone import ita_group
from synthvision.manifest import Manifest, Record

Source = FolderSource | TableSource
ENLARGED = 4  # times; a guide may be enlarged by no more
GUIDES = "guides"  # the source of guides; the others are numbered
UNUSABLE = "unusable"
MOST_TOLD = 20  # leaks in an error message


class UnreadableError(ValueError):
    """More files than allowed give no usable picture: something is wrong with all of them."""


def prepare(
    sources: Sequence[Source],
    guides: GuideSource | GuideSets,
    rules: Rules,
    classes: Sequence[str],
    root: Path,
    out: Path,
    cache: ImageCache,
) -> Audit:
    """Read all files once, write the used pictures as PNG of (size, size), and the Manifest over them.

    Writes `images/<image_id>.png`, `masks/<image_id>.png` of those that have one, `manifest.csv` and `quarantine.csv`
    into `out`, and where leaks are found `leaks.png`. `quarantine.csv` names source files and why each is not used; the
    manifest carries no name of a file or patient. Pictures with equal pixels count once; near duplicates go to one
    side; pictures that are guides, or whose patient has one, are not drawn for the splits. `audit.write_audit` writes
    what is returned.

    Args:
        sources: real images with labels.
        guides: real images with captions.
        rules: how to check and split them.
        classes: the study's labels.
        root: the study folder; `out` lies in it.
        out: the stage's folder.
        cache: of decoded pictures of this size.

    Raises:
        ValueError: a label is not among the classes, or a guide is unusable.
        UnreadableError: more than `most_unusable` of the sources' files give no picture.
        TwoLabelsError: a picture has two labels and the rule is "stop".
        ShortageError: too few images for the counts.
        LeakError: the same picture or patient is on two sides; `quarantine.csv` names the files.
    """
    _check(sources, guides, rules, classes)
    for leftover in (out / "images", out / "masks"):  # of an interrupted run
        shutil.rmtree(leftover, ignore_errors=True)
    left: list[Left] = []
    try:
        return _prepared(sources, guides, rules, root, out, cache, left)
    except (ShortageError, LeakError, TwoLabelsError, UnreadableError) as error:
        where = f"{out / 'quarantine.csv'} names the files that were left out, and why"
        raise type(error)(f"{error}\n{where}") from error
    finally:
        _write_left(out / "quarantine.csv", left)


def _prepared(
    sources: Sequence[Source],
    guides: GuideSource | GuideSets,
    rules: Rules,
    root: Path,
    out: Path,
    cache: ImageCache,
    left: list[Left],
) -> Audit:
    found = [(GUIDES, each) for each in guides.read()]
    found += [(str(number), each) for number, source in enumerate(sources) for each in source.read()]
    pictures = read_pictures([each.file for _, each in found], cache, rules.workers)
    items = list(_items(found, pictures, rules, out.relative_to(root) / "images", left))
    _check_readable(len(found), left, rules.most_unusable)
    own = sum(item.record.split == "guide" for item in items)
    enlarged = _enlarged(items[:own], rules.size)
    items, near = tied(one_of_each(items, rules.two_labels, left), cache.thumbs())
    guide_items, pool = items[:own], _without_guides_patients(items[:own], items[own:], left)
    splits = SplitBook(root, rules.counts, rules.seed, rules.stratify)
    with splits.lock:
        before = splits.read()
        drawing = _Drawing(guide_items, pool, near, rules, before, root)
        chosen, resolved = _split_without_leaks(drawing, out, cache, left)
        splits.add(before, [record for record in chosen if record.split != "guide"])
    by_id = {item.record.image_id: item for item in items}
    manifest = Manifest(tuple(_written(chosen, by_id, rules, cache, left)), root)
    manifest.write(out / "manifest.csv")
    what = Counter(each.what for each in left)
    drawn = len(manifest) - len(guide_items)
    return Audit(
        manifest=manifest,
        found=len(found),
        quarantined=what[UNUSABLE],
        reasons=dict(sorted(Counter(_kind(each.reason) for each in left if each.what == UNUSABLE).items())),
        duplicates=what["duplicate"],
        two_labels=what["two labels"],
        also_guides=tuple(each.image_id for each in left if each.what == "also a guide"),
        guide_patients=what["patient of a guide"],
        unused=len(pool) - what["leak dropped"] - drawn,
        kept=_elsewhere(drawing, manifest),
        near=tuple((*pair, round(similarity, 4)) for pair, similarity in sorted(near.items())),
        near_labels=sum(by_id[one].record.label != by_id[other].record.label for one, other in near),
        leaks=tuple(resolved),
        masks=sum(bool(record.mask) for record in manifest),
        conversions=dict(sorted(Counter(note for item in items for note in item.picture.conversions).items())),
        warnings=(*_warnings(manifest), *enlarged),
        traits=tuple(traits_of(item) for item in items),
    )


def _check(sources: Sequence[Source], guides: GuideSource | GuideSets, rules: Rules, classes: Sequence[str]) -> None:
    named = {guides.label, *rules.counts}
    for source in sources:
        named |= {source.label} if isinstance(source, FolderSource) else set(source.labels.values())
    unknown = sorted(named - set(classes))
    if unknown:
        raise ValueError(f"labels must be among the classes {list(classes)}; these are not: {unknown}")


def _items(
    found: Sequence[tuple[str, Found]], pictures: Sequence[Picture], rules: Rules, folder: Path, left: list[Left]
) -> Iterator[Item]:
    """Yield the usable pictures, one for each file that is named once or more by a source."""
    seen: set[tuple[Path, str]] = set()
    for (source, each), picture in zip(found, pictures, strict=True):
        guide = source == GUIDES
        if not picture.usable:
            if guide:
                raise ValueError(f"guide {each.file}: {picture.reason}; every guide counts, so replace or remove it")
            left.append(Left("", each.file, UNUSABLE, picture.reason))
        elif (each.file, each.values["label"]) in seen and not guide:
            left.append(Left("", each.file, "duplicate", "the source names it twice"))
        else:
            seen.add((each.file, each.values["label"]))
            yield _item(source, each, picture, rules, folder)


def _item(source: str, found: Found, picture: Picture, rules: Rules, folder: Path) -> Item:
    values = dict(found.values)
    image_id = f"{_slug(values['label'])}-{picture.sha256[:12]}"
    for column in ("patient", "lesion"):
        if values.get(column):
            values[column] = patient_hash(values[column], rules.seed)
    values["patient"] = values.get("patient") or picture.patient
    if source == GUIDES:
        values["split"] = "guide"
    record = Record(
        image_id=image_id,
        path=(folder / f"{image_id}.png").as_posix(),
        sha256=picture.sha256,  # of the source, until its own file is written
        origin="real",
        source=source,
        conversions="; ".join(picture.conversions),
        **values,
    )
    return Item(record, found.file, picture, found.mask)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "image"


def _check_readable(found: int, left: Sequence[Left], most: float) -> None:
    reasons = Counter(_kind(each.reason) for each in left if each.what == UNUSABLE)
    if reasons.total() > most * found:
        told = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common(5))
        raise UnreadableError(
            f"{reasons.total()} of {found} files give no usable picture ({told}); dataset.most_unusable={most} allows "
            f"{most:.0%}. Mend the files, correct the source's pattern, or raise it"
        )


def _kind(reason: str) -> str:
    return reason.split(":")[0]


def _without_guides_patients(guides: Sequence[Item], items: Sequence[Item], left: list[Left]) -> list[Item]:
    patients = {item.record.patient for item in guides} - {""}
    pool = []
    for item in items:
        if item.record.patient in patients:
            reason = "another picture of this patient is a guide"
            left.append(Left(item.record.image_id, item.source, "patient of a guide", reason))
        else:
            pool.append(item)
    return pool


@dataclass(frozen=True)
class _Drawing:
    """What splits are drawn from, and how leaks are resolved."""

    guides: Sequence[Item]
    pool: Sequence[Item]
    near: Ties
    rules: Rules
    before: Mapping[str, str]  # image_id -> split of an earlier run
    root: Path

    def drawn(self) -> tuple[Manifest, list[Leak], list[Leak]]:
        """Draw until nothing leaks, or once where leaks shall stop the run.

        Returns:
            the guides and the drawn images, the leaks that are left, and those that were resolved.
        """
        dropped: dict[str, Leak] = {}
        moved: dict[str, tuple[str, Leak]] = {}  # image_id -> side
        records = [item.record for item in self.pool]
        groups = {record.image_id: group for group in groups_of(records) for record in group}
        while True:
            sided = [
                replace(r, split=moved[r.image_id][0]) if r.image_id in moved else r
                for r in records if r.image_id not in dropped
            ]  # fmt: skip
            manifest = self._with_guides([record for record in sided if record.split])
            leaks = find_leaks(manifest, self.near)  # of how the sources are divided, whether or not all are drawn
            if not leaks:
                kept = {image_id: part for image_id, part in self.before.items() if image_id not in moved}
                drawn = split(sided, self.rules.counts, self.rules.seed, self.rules.stratify, kept)
                manifest = self._with_guides(drawn)
                leaks = find_leaks(manifest, self.near)
            if not leaks or self.rules.leaks == "stop":
                return manifest, leaks, [*dropped.values(), *{leak for _, leak in moved.values()}]
            for leak in leaks:
                if self.rules.leaks == "drop" or leak.sides[0] == "guide" or leak.second in moved:
                    dropped[leak.second] = leak  # a guide's copy cannot become a guide: it has no caption
                else:
                    moved |= {r.image_id: (leak.sides[0], leak) for r in groups[leak.second]}

    def _with_guides(self, records: Sequence[Record]) -> Manifest:
        return Manifest((*(item.record for item in self.guides), *records), self.root)


def _elsewhere(drawing: _Drawing, manifest: Manifest) -> int:
    """Return how many images a draw without a memory would have put elsewhere. Where nothing was added it is none."""
    if not drawing.before:
        return 0
    rules = drawing.rules
    try:
        fresh = split([item.record for item in drawing.pool], rules.counts, rules.seed, rules.stratify)
    except ShortageError:  # what earlier runs drew is what makes it possible
        return len(drawing.before)
    sides = {record.image_id: record.split for record in fresh}
    return sum(drawing.before.get(r.image_id) == r.split != sides.get(r.image_id) for r in manifest)


def _split_without_leaks(
    drawing: _Drawing, out: Path, cache: ImageCache, left: list[Left]
) -> tuple[Manifest, list[Leak]]:
    """Return what was drawn, and the leaks that were resolved.

    Raises:
        LeakError: a leak is left, and the rule is "stop".
    """
    manifest, leaks, resolved = drawing.drawn()
    by_id = {item.record.image_id: item for item in (*drawing.guides, *drawing.pool)}
    for leak in leaks or resolved:
        gone = "leak dropped" if not leaks and leak.second not in set(manifest.column("image_id")) else "leak"
        left.append(Left(leak.second, by_id[leak.second].source, gone, f"{leak}; {by_id[leak.first].source}"))
    if leaks or resolved:
        pixels = cache.pixels()
        pairs = [(f"{leak.kind} {leak.similarity:.3f}: {leak.sides[0]} / {leak.sides[1]}",
                  *(pixels[by_id[each].picture.row] for each in (leak.first, leak.second)))
                 for leak in leaks or resolved]  # fmt: skip
        write_sheet(out / "leaks.png", pairs)
    if leaks:
        shown = [str(leak) for leak in leaks[:MOST_TOLD]]
        more = [f"and {len(leaks) - MOST_TOLD} more"] if len(leaks) > MOST_TOLD else []
        remedy = (
            f"{out / 'leaks.png'} shows them. Remove one of each pair, or let dataset.leaks=drop leave the second out, "
            "or dataset.leaks=move take it, with all that belongs to it, to the first one's side"
        )
        raise LeakError("\n".join([f"{len(leaks)} leaks:", *shown, *more, remedy]))
    return manifest, resolved


def _written(
    chosen: Manifest, by_id: Mapping[str, Item], rules: Rules, cache: ImageCache, left: list[Left]
) -> Iterator[Record]:
    """Write the used pictures and their masks; yield their records."""
    pixels = cache.pixels()
    for record in chosen:
        item = by_id[record.image_id]
        image = cache.row(pixels, item.picture)
        png = encode_png(image)
        write_bytes(chosen.file(record), png, durable=False)
        tone = ita_group(image) if rules.estimate_tone and not record.skin_tone else ""
        mask = _written_mask(chosen.file(record).parents[1] / "masks", item, rules.size, left)
        yield replace(
            record,
            sha256=hashlib.sha256(png).hexdigest(),
            mask=(Path(record.path).parents[1] / "masks" / mask).as_posix() if mask else "",
            skin_tone_ita=tone,
        )


def _written_mask(folder: Path, item: Item, size: int, left: list[Left]) -> str:
    """Write an image's mask, if it has one, and return its name. One that cannot be used is left out, but a guide's."""
    if item.mask is None:
        return ""
    try:
        mask = fit_mask(read_mask(item.mask, item.picture.height, item.picture.width), size)
        if not mask.any():
            raise ValueError(
                f"{item.mask} marks nothing within the central square of its image; move the crop or the mask"
            )
    except ValueError as error:
        if item.record.split == "guide":
            raise
        left.append(Left(item.record.image_id, item.mask, "mask", str(error)))
        return ""
    file = folder / f"{item.record.image_id}.png"
    write_mask(file, mask)
    return file.name


def _enlarged(guides: Sequence[Item], size: int) -> list[str]:
    """Warn of guides that are enlarged; refuse one in which nothing of what shall be painted can be seen."""
    warnings = []
    for item in guides:
        side = min(item.picture.height, item.picture.width)
        if side * ENLARGED < size:
            raise ValueError(
                f"guide {item.source} must have {math.ceil(size / ENLARGED)} or more pixels a side to be enlarged "
                f"to dataset.size={size}; it has {side}. Use a larger picture, or a smaller dataset.size"
            )
        if side < size:
            warnings.append(f"guide {item.record.image_id} is enlarged from {side} to {size} pixels a side")
    return warnings


def _warnings(manifest: Manifest) -> tuple[str, ...]:
    asked: Mapping[str, str] = {
        "reference_standard": "how their diagnosis was established is unknown",
        "consent": "whether patients consented to this use is unknown",
        "patient": "each counts as its own patient, so splits may share one unseen",
    }
    missing = {column: manifest.column(column).count("") for column in asked}
    total = len(manifest)
    found = [f"{missing[c]} of {total} images have no {c}: {means}" for c, means in asked.items() if missing[c]]
    burned = sum(BURNED_IN in record.conversions for record in manifest)
    if burned:
        found.append(f"{burned} of {total} images have text in the picture, says their file: it may name the patient")
    return tuple(found)


def _write_left(file: Path, left: Sequence[Left]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image_id", "file", "what", "reason"))
    # Names that are not UTF-8 are shown as far as they can be.
    writer.writerows((each.image_id, _shown(str(each.file)), each.what, _shown(each.reason)) for each in left)
    write_text(file, out.getvalue())


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
