"""Splits: training, validation and test sets of exact size that never share a patient."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from synthvision.manifest import Record

PARTS = ("train", "val", "test")
Group = list[Record]  # all images of one patient
Counts = Mapping[str, Mapping[str, int]]  # label -> split -> number of images
Needs = Counter[tuple[str, str]]  # (label, split) -> number of images


class ShortageError(ValueError):
    """There are too few images for the counts that were asked for."""


def split(records: Sequence[Record], counts: Counts, seed: int) -> tuple[Record, ...]:
    """Give records a split, by the counts per label exactly; records that are not needed are left out.

    All images of a patient go to one split; a record without a patient is its own. Which patient goes where is drawn
    from a hash of seed and patient, so the order of the records has no influence. The result keeps their order.

    Args:
        records: images, their `split` still open.
        counts: label -> "train" / "val" / "test" -> number of images; a split that is not named gets none.
        seed: of the draw.

    Raises:
        ShortageError: the counts cannot be reached; the message says for which label and split, and by how much.
        ValueError: a split is unknown or a count is negative.
    """
    _check(counts)
    groups = _groups(records, counts)
    drawn = sorted(groups, key=lambda group: _draw(seed, _group_name(group[0])))
    # In drawn order first: it favours no patient. Where that leaves gaps, large patients go first, as one packs a box.
    for order in (drawn, sorted(drawn, key=len, reverse=True)):
        chosen, missing = _fill(order, counts, seed)
        if not missing:
            return tuple(replace(r, split=chosen[r.image_id]) for r in records if r.image_id in chosen)
    raise ShortageError(_explain(missing, counts, groups))


def _check(counts: Counts) -> None:
    for label, parts in counts.items():
        for part, number in parts.items():
            if part not in PARTS:
                raise ValueError(f"counts.{label}: splits must be among {PARTS}; this is not: {part!r}")
            if number < 0:
                raise ValueError(f"counts.{label}.{part} must be 0 or more; it is {number}")


def _groups(records: Sequence[Record], counts: Counts) -> list[Group]:
    groups: dict[str, Group] = defaultdict(list)
    for record in records:
        if record.label in counts:
            groups[_group_name(record)].append(record)
    return list(groups.values())


def _group_name(record: Record) -> str:
    return f"patient:{record.patient}" if record.patient else f"image:{record.image_id}"


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def _fill(order: Sequence[Group], counts: Counts, seed: int) -> tuple[dict[str, str], Needs]:
    """Place group after group; return image_id -> split, and what is missing in the end."""
    needs: Needs = Counter({(label, part): n for label, parts in counts.items() for part, n in parts.items()})
    chosen: dict[str, str] = {}
    for group in order:
        part = _best_part(group, needs, counts)
        # A patient with more images than are needed gives those that the hash puts first.
        for record in sorted(group, key=lambda r: _draw(seed, r.image_id)):
            if needs[record.label, part] > 0:
                needs[record.label, part] -= 1
                chosen[record.image_id] = part
    return chosen, +needs


def _best_part(group: Group, needs: Needs, counts: Counts) -> str:
    """Return the split that can use most of the group's images; among equals the one that is least filled."""
    labels = Counter(record.label for record in group)

    def worth(part: str) -> tuple[int, float]:
        used = sum(min(number, needs[label, part]) for label, number in labels.items())
        wanted = sum(counts[label].get(part, 0) for label in labels)
        return used, sum(needs[label, part] for label in labels) / max(wanted, 1)

    return max(PARTS, key=worth)


def _explain(missing: Needs, counts: Counts, groups: Sequence[Group]) -> str:
    present = Counter(record.label for group in groups for record in group)
    lines = [
        f"label {label!r}, split {part!r}: {counts[label][part]} images wanted, {number} missing"
        f" ({present[label]} usable images for {sum(counts[label].values())} wanted in all splits)"
        for (label, part), number in sorted(missing.items())
    ]
    return "counts cannot be reached: " + "; ".join(lines) + ". Add images or lower the counts; patients are kept whole"
