"""Prepare: a user's files become one audited Manifest of uniform images, split, and checked for leaks."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from synthvision.data.audit import MOST_PAIRS, Audit, traits_of, write_sheet
from synthvision.data.book import SplitBook
from synthvision.data.cache import ImageCache, Picture
from synthvision.data.copies import Item, Left, TwoLabelsError, one_of_each, tied
from synthvision.data.dicom import BURNED_IN
from synthvision.data.drawing import Drawing
from synthvision.data.guide_sets import GuideSets
from synthvision.data.intake import FolderSource, Found, GuideSource, TableSource
from synthvision.data.leakage import LeakError, Ties
from synthvision.data.reading import patient_hash, read_pictures
from synthvision.data.rules import Rules
from synthvision.data.splits import PARTS, ShortageError
from synthvision.data.writing import write_left, written
from synthvision.manifest import EXTERNAL, Manifest, Record

Source = FolderSource | TableSource
ENLARGED = 4  # times; a guide may be enlarged by no more
GUIDES = "guides"  # the source of guides; the others are numbered
UNUSABLE = "unusable"
TESTS = {"test", EXTERNAL}  # sides whose labels nothing is learnt from before they are opened


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
    into `out`, and where there are near duplicates or leaks `near.png` and `leaks.png`. `quarantine.csv` names source
    files and why each is not used; the manifest carries no name of a file or patient. Pictures with equal pixels count
    once; near duplicates go to one side; pictures that are guides, or whose patient has one, are not drawn for the
    splits. All usable pictures of an external test set are in the manifest: split "external", and the set's name in the
    column `set`. What ties them to another side is a leak. `audit.write_audit` writes what is returned.

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
        ShortageError: too few images for the counts; the message says which were left out since they would leak.
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
        write_left(out / "quarantine.csv", left)


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
    unique, crossing = one_of_each(items, rules.two_labels, left)
    items, near = tied(unique, cache.thumbs())
    guide_items, pool = items[:own], _without_guides_patients(items[:own], items[own:], left)
    splits = SplitBook(root, rules.counts, rules.seed, rules.stratify)
    with splits.lock:
        drawing = Drawing(guide_items, pool, near, crossing, rules, splits.read(), root)
        chosen, resolved = drawing.checked(out, cache, left)
        splits.add(drawing.before, [record for record in chosen if record.split in PARTS])
    by_id = {item.record.image_id: item for item in items}
    _show_near(out / "near.png", near, by_id, cache)
    manifest = Manifest(tuple(written(chosen, by_id, rules, cache, left)), root)
    manifest.write(out / "manifest.csv")
    what = Counter(each.what for each in left)
    sides = {**dict.fromkeys(by_id, ""), **{record.image_id: record.split for record in manifest}}
    return Audit(
        manifest=manifest,
        found=len(found),
        quarantined=what[UNUSABLE],
        reasons=dict(sorted(Counter(_kind(each.reason) for each in left if each.what == UNUSABLE).items())),
        duplicates=what["duplicate"],
        two_labels=what["two labels"],
        also_guides=tuple(each.image_id for each in left if each.what == "also a guide"),
        guide_patients=what["patient of a guide"],
        unused=len(pool) - what["leak dropped"] - (len(manifest) - own),
        kept=drawing.elsewhere(manifest),
        near=tuple((*pair, round(similarity, 4)) for pair, similarity in sorted(near.items())),
        near_labels=sum(by_id[one].record.label != by_id[other].record.label for one, other in near),
        leaks=tuple(resolved),
        masks=sum(bool(record.mask) for record in manifest),
        conversions=dict(sorted(Counter(note for item in items for note in item.picture.conversions).items())),
        warnings=(*_warnings(manifest), *enlarged),
        traits=tuple(traits_of(item) for item in items if not {item.record.split, sides[item.record.image_id]} & TESTS),
    )


def _show_near(file: Path, near: Ties, by_id: Mapping[str, Item], cache: ImageCache) -> None:
    """Draw pairs of near duplicates, the least alike first: they are those to look at."""
    if near:
        pixels, rows = cache.pixels(), {image_id: item.picture.row for image_id, item in by_id.items()}
        pairs = sorted((alike, *pair) for pair, alike in near.items())[:MOST_PAIRS]
        write_sheet(file, [(f"{alike:.3f} {one} {other}", pixels[rows[one]], pixels[rows[other]])
                           for alike, one, other in pairs])  # fmt: skip


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
