"""Copies: one picture counts once, a picture has one label, and edited copies are tied together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from synthvision.data.cache import Picture
from synthvision.data.decoding import Pixels
from synthvision.data.duplicates import near_duplicates
from synthvision.data.leakage import EXACT, SIDES, Leak, Ties, leak_of
from synthvision.data.reading import pixel_digest
from synthvision.data.unusable import UnusableImage
from synthvision.manifest import Record

LABEL_RULES = ("stop", "drop", "first")


@dataclass(frozen=True)
class Item:
    """A usable picture: its record, where it came from, and what is known of its file."""

    record: Record
    source: Path
    picture: Picture
    mask: Path | None = None


@dataclass(frozen=True)
class Left:
    """A file that is not in the manifest for a reason the user should know."""

    image_id: str
    file: Path
    what: str
    reason: str


class TwoLabelsError(ValueError):
    """One picture is said to be of two classes."""


def one_of_each(items: Sequence[Item], rule: str, left: list[Left]) -> tuple[list[Item], list[Leak]]:
    """Return one item per picture, with what its copies tell of it; the first one stays, guides before others.

    Where sources put copies on two sides, the one on the side that comes first in `leakage.SIDES` stays.

    Args:
        items: guides first.
        rule: for a picture with two labels: "stop" raises, "drop" leaves it out, "first" believes what comes first.
        left: gets the others, and why.

    Returns:
        the items, and the copies that were on another side.

    Raises:
        ValueError: two guides show the same pixels.
        TwoLabelsError: the rule is "stop" and a picture has two labels.
    """
    kept: dict[str, Item] = {}
    contradicted: set[str] = set()
    crossing: list[Leak] = []
    for item, key in zip(items, _keys(items), strict=True):
        twin = kept.setdefault(key, item)
        if twin is item:
            continue
        if item.record.split == "guide":
            raise ValueError(f"guides {twin.source} and {item.source} show the same pixels; remove one")
        if twin.record.label != item.record.label:
            _two_labels(twin, item, rule, left)
            contradicted.add(key)
            continue
        kept[key] = _the_one(twin, item, crossing, left)
    if rule != "first":
        kept = {key: each for key, each in kept.items() if key not in contradicted or each.record.split == "guide"}
    return list(kept.values()), crossing


def _keys(items: Sequence[Item]) -> Iterator[str]:
    """Yield what is equal for pictures of equal pixels and for no others.

    It is the sha256 of the decoded pixels where two files might show the same: where their sizes agree, and their rows
    in the cache. Else it is the file's own, which was taken already: hashing millions of pixels takes as long as
    decoding them.
    """
    alike: dict[tuple[int, int, int], set[str]] = defaultdict(set)
    for item in items:
        alike[_look(item.picture)].add(item.picture.sha256)
    known: dict[str, str] = {}
    for item in items:
        file = item.picture.sha256
        if len(alike[_look(item.picture)]) > 1 and file not in known:
            known[file] = _pixels_or(file, item.source)
        yield known.get(file, file)


def _look(picture: Picture) -> tuple[int, int, int]:
    return picture.height, picture.width, picture.checksum


def _pixels_or(digest: str, file: Path) -> str:
    try:
        return pixel_digest(file)
    except UnusableImage:  # it has gone since it was read
        return digest


def _the_one(twin: Item, item: Item, crossing: list[Leak], left: list[Left]) -> Item:
    """Return which of two copies stays, with what the other tells of it."""
    what = "also a guide" if twin.record.split == "guide" else "duplicate"
    if len({twin.record.split, item.record.split} - {"", "guide"}) == 2:
        crossing.append(leak_of(EXACT, twin.record, item.record, 1.0))
        what = "leak"
        twin, item = sorted((twin, item), key=lambda each: SIDES.index(each.record.split))
    left.append(Left(twin.record.image_id, item.source, what, f"same pixels as {twin.source}"))
    return replace(twin, record=_completed(twin.record, item.record))


def _two_labels(twin: Item, item: Item, rule: str, left: list[Left]) -> None:
    labels = f"{twin.record.label!r} ({twin.source}) and {item.record.label!r} ({item.source})"
    if rule == "stop":
        raise TwoLabelsError(
            f"one picture has two labels: {labels}; correct the label, remove the picture, or set "
            "dataset.two_labels=drop (leave both out) or =first (believe the source that comes first)"
        )
    left.append(Left(item.record.image_id, item.source, "two labels", labels))
    if rule == "drop" and twin.record.split != "guide":
        left.append(Left(twin.record.image_id, twin.source, "two labels", labels))


def _completed(record: Record, copy: Record) -> Record:
    """Fill what is unknown of a picture with what its copy tells."""
    unknown = {key: value for key, value in asdict(copy).items() if not getattr(record, key) and key != "split"}
    return replace(record, **unknown, split=record.split or copy.split)


def tied(items: Sequence[Item], thumbs: Pixels) -> tuple[list[Item], Ties]:
    """Return the items with near duplicates tied together as siblings, and the pairs.

    Args:
        items: one per picture.
        thumbs: the cache's thumbnails, uint8 (rows, THUMB, THUMB).
    """
    rows = np.array([item.picture.row for item in items], dtype=np.int64)
    pairs = near_duplicates(thumbs, rows)
    ids = [item.record.image_id for item in items]
    near = {(ids[i], ids[j]): similarity for i, j, similarity in pairs}
    names = _names(near)
    return [
        replace(item, record=replace(item.record, siblings=names[item.record.image_id]))
        if item.record.image_id in names else item
        for item in items
    ], near  # fmt: skip


def _names(near: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """Return image_id -> the smallest image_id that it is tied to, directly or through others."""
    neighbours: dict[str, set[str]] = defaultdict(set)
    for one, other in near:
        neighbours[one].add(other)
        neighbours[other].add(one)
    names: dict[str, str] = {}
    for start in sorted(neighbours):
        waiting = [start] if start not in names else []
        while waiting:
            image_id = waiting.pop()
            if names.setdefault(image_id, start) == start:
                waiting += [each for each in neighbours[image_id] if each not in names]
    return names
