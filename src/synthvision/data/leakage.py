"""Leakage: the same picture, nearly the same picture, or the same patient on two sides of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from synthvision.data.splits import TIES
from synthvision.manifest import Manifest, Record

# Sides in the order in which they keep their image when a leak is resolved.
SIDES = ("guide", "external", "test", "val", "train")
Ties = Mapping[tuple[str, str], float]  # two image_ids -> similarity of their pictures
EXACT = "exact"
NEAR = "near"
SIBLINGS = "siblings"


@dataclass(frozen=True)
class Leak:
    """Two images that tie two sides together. The first lies on the side that keeps its image (order of `SIDES`)."""

    kind: str  # "exact", "near", "patient", "lesion" or "siblings" (tied through copies that are on no side)
    first: str  # image_id
    second: str
    sides: tuple[str, str]
    similarity: float  # correlation of structure; 1 where it was not measured

    def __str__(self) -> str:
        """Return what a user needs to find the pair."""
        how = {EXACT: ", 1.000", NEAR: f", {self.similarity:.3f}", SIBLINGS: ", tied through copies of both"}
        return (
            f"{self.kind}: {self.first} ({self.sides[0]}) and {self.second} ({self.sides[1]}){how.get(self.kind, '')}"
        )


class LeakError(ValueError):
    """The same picture or patient lies on two sides of guide / train / validation / test / external test sets."""


def find_leaks(manifest: Manifest, near: Ties) -> list[Leak]:
    """Find what ties guide, training, validation, test and external images together.

    Args:
        manifest: records without a split are on no side.
        near: near duplicates among them, and among others.

    Returns:
        every exact or near duplicate, and one pair per patient, lesion or group of siblings and pair of sides.
    """
    on_side = {record.image_id: record for record in manifest if record.split}
    leaks = [*_copies(on_side, near), *_exact(on_side)]
    tied = {(leak.first, leak.second) for leak in leaks}
    siblings = {(on_side[first].siblings, frozenset((on_side[first].split, on_side[second].split)))
                for first, second in tied}  # fmt: skip
    for column in TIES:
        for leak in _shared(on_side, column):
            group = (on_side[leak.first].siblings, frozenset(leak.sides))
            if column != SIBLINGS or group not in siblings:
                leaks.append(leak)
    return sorted(leaks, key=lambda leak: (leak.kind, leak.first, leak.second))


def _copies(on_side: Mapping[str, Record], near: Ties) -> Iterator[Leak]:
    for (one, other), similarity in near.items():
        if one in on_side and other in on_side and on_side[one].split != on_side[other].split:
            yield leak_of(NEAR, on_side[one], on_side[other], round(similarity, 4))


def _exact(on_side: Mapping[str, Record]) -> Iterator[Leak]:
    files: dict[str, list[Record]] = {}
    for record in on_side.values():
        files.setdefault(record.sha256, []).append(record)
    for same in files.values():
        for one, other in combinations(same, 2):
            if one.split != other.split:
                yield leak_of(EXACT, one, other, 1.0)


def _shared(on_side: Mapping[str, Record], column: str) -> Iterator[Leak]:
    seen: dict[str, dict[str, Record]] = {}  # value -> side -> its first image there
    for record in on_side.values():
        if value := getattr(record, column):
            seen.setdefault(value, {}).setdefault(record.split, record)
    for by_side in seen.values():
        for one, other in combinations(by_side.values(), 2):
            yield leak_of(column, one, other, 1.0)


def leak_of(kind: str, one: Record, other: Record, similarity: float) -> Leak:
    """Return what ties two images on different sides, the one first that stays where it is."""
    first, second = sorted((one, other), key=lambda record: SIDES.index(record.split))
    return Leak(kind, first.image_id, second.image_id, (first.split, second.split), similarity)
