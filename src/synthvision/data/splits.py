"""Splits: training, validation and test sets of exact size that never share a patient.

What belongs together (a patient's images, a lesion's, edited copies of one picture) goes to one side as a whole. Who
goes where follows from a hash, and images that had a side before keep it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from synthvision.manifest import Record

PARTS = ("train", "val", "test")
TIES = ("patient", "lesion", "siblings")  # columns whose equal values belong together
PRECEDENCE = ("test", "val", "train")  # where a group has images on several sides already, the others go with the first
Group = list[Record]  # all images that belong together
Counts = Mapping[str, Mapping[str, int]]  # label -> split -> number of images
Needs = Counter[tuple[str, str]]  # (label, split) -> number of images
Strata = Mapping[str, str]  # image_id -> its label and subgroup


class ShortageError(ValueError):
    """There are too few images for the counts that were asked for."""


def split(
    records: Sequence[Record],
    counts: Counts,
    seed: int,
    stratify: Sequence[str] = (),
    kept: Mapping[str, str] | None = None,
) -> tuple[Record, ...]:
    """Give records a split, by the counts per label exactly; records that are not needed are left out.

    A record without a patient is its own. The order of the records has no influence, and the result keeps it.

    Args:
        records: images; one that has a split already can go to no other.
        counts: label -> "train" / "val" / "test" -> number of images; a split that is not named gets none.
        seed: of the draw.
        stratify: columns whose values shall be spread over the splits as they are over all images of a label.
        kept: image_id -> split of images that were drawn before: they keep it as long as the counts have room.

    Raises:
        ShortageError: the counts cannot be reached; the message says for which label and split, and by how much.
        ValueError: a split is unknown or a count is negative.
    """
    _check(counts)
    wanted = [record for record in records if record.label in counts]
    sides = {r.image_id: r.split or (kept or {}).get(r.image_id, "") for r in wanted}
    groups = groups_of(wanted)
    drawn = sorted(groups, key=lambda group: _draw(seed, _group_name(group)))
    draw = _Draw(counts, seed, sides, {r.image_id: _stratum(r, stratify) for r in wanted} if stratify else {})
    # In drawn order first: it favours no patient. Where that leaves gaps, large patients go first, as one packs a box.
    for order in (drawn, sorted(drawn, key=len, reverse=True)):
        chosen, missing = draw(order)
        if not missing:
            return tuple(replace(r, split=chosen[r.image_id]) for r in records if r.image_id in chosen)
    raise ShortageError(_explain(missing, counts, groups, sides))


def groups_of(records: Iterable[Record]) -> list[Group]:
    """Return the records that are tied by patient, lesion or as siblings, directly or through others."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = name = root[root[name]]
        return name

    listed = list(records)
    for record in listed:
        own = find(f"image:{record.image_id}")
        for column in TIES:
            if value := getattr(record, column):
                root[find(f"{column}:{value}")] = own = find(own)
    groups: dict[str, Group] = defaultdict(list)
    for record in listed:
        groups[find(f"image:{record.image_id}")].append(record)
    return list(groups.values())


def _check(counts: Counts) -> None:
    for label, parts in counts.items():
        for part, number in parts.items():
            if part not in PARTS:
                raise ValueError(f"counts.{label}: splits must be among {PARTS}; this is not: {part!r}")
            if number < 0:
                raise ValueError(f"counts.{label}.{part} must be 0 or more; it is {number}")


def _group_name(group: Group) -> str:
    return min(f"patient:{r.patient}" if r.patient else f"image:{r.image_id}" for r in group)


def _stratum(record: Record, columns: Sequence[str]) -> str:
    return "\n".join([record.label, *(getattr(record, column) for column in columns)])


def _draw(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


class _Draw:
    """Places groups in a given order."""

    def __init__(self, counts: Counts, seed: int, sides: Mapping[str, str], strata: Strata) -> None:
        self.counts, self.seed, self.sides, self.strata = counts, seed, sides, strata
        self.shares = self._shares()

    def _shares(self) -> dict[tuple[str, str], float]:
        """Return how many images of each stratum each split should have: (stratum, split) -> number."""
        size, of_label = Counter(self.strata.values()), Counter(s.split("\n")[0] for s in self.strata.values())
        return {
            (stratum, part): wanted * number / of_label[label]
            for stratum, number in size.items()
            for label in [stratum.split("\n")[0]]
            for part, wanted in self.counts[label].items()
        }

    def __call__(self, order: Sequence[Group]) -> tuple[dict[str, str], Needs]:
        """Return image_id -> split, and what is missing in the end."""
        self.needs: Needs = Counter({(label, p): n for label, parts in self.counts.items() for p, n in parts.items()})
        self.chosen: dict[str, str] = {}
        self.filled: Counter[tuple[str, str]] = Counter()
        for group in order:  # those whose side is known come first: a new image never takes the place of an old one
            for part in PARTS:
                self._place([r for r in group if self.sides[r.image_id] == part], part)
        open_ = [group for group in order if any(not self.sides[r.image_id] for r in group)]
        for spare in (False, True) if self.strata else (True,):
            open_ = [group for group in open_ if not self._placed(group, spare)]
        return self.chosen, +self.needs

    def _placed(self, group: Group, spare: bool) -> bool:
        """Place a group's open images; without `spare` only where its subgroups are still short."""
        known = {self.sides[r.image_id] for r in group} - {""}
        free = [r for r in group if not self.sides[r.image_id]]
        part = next(p for p in PRECEDENCE if p in known) if known else self._best_part(free)
        if not spare and not known and any(self._room(self.strata[r.image_id], part) < 0.5 for r in free):
            return False
        self._place(free, part)
        return True

    def _place(self, images: Group, part: str) -> None:
        # A patient with more images than are needed gives those that the hash puts first.
        for record in sorted(images, key=lambda r: _draw(self.seed, r.image_id)):
            if self.needs[record.label, part] > 0:
                self.needs[record.label, part] -= 1
                self.chosen[record.image_id] = part
                self.filled[self.strata.get(record.image_id, ""), part] += 1

    def _room(self, stratum: str, part: str) -> float:
        return self.shares.get((stratum, part), 0.0) - self.filled[stratum, part]

    def _best_part(self, group: Group) -> str:
        """Return the split that can use most of the images; among equals the one that is least filled."""
        labels = Counter(record.label for record in group)
        strata = [self.strata[r.image_id] for r in group] if self.strata else []

        def worth(part: str) -> tuple[float, ...]:
            used = sum(min(number, self.needs[label, part]) for label, number in labels.items())
            wanted = sum(self.counts[label].get(part, 0) for label in labels)
            short = sum(self._room(s, part) / max(self.shares.get((s, part), 0.0), 1e-9) for s in strata)
            return used, short, sum(self.needs[label, part] for label in labels) / max(wanted, 1)

        return max(PARTS, key=worth)


def _explain(missing: Needs, counts: Counts, groups: Sequence[Group], sides: Mapping[str, str]) -> str:
    present = Counter(record.label for group in groups for record in group)
    lines = [
        f"label {label!r}, split {part!r}: {counts[label][part]} images wanted, {number} missing"
        f" ({present[label]} usable images for {sum(counts[label].values())} wanted in all splits)"
        for (label, part), number in sorted(missing.items())
    ]
    bound = sum(bool(side) for side in sides.values())
    few = [label for label in sorted({label for label, _ in missing}) if _owners(groups, label) < _parts(counts, label)]
    single = "".join(
        f". {label!r} has images of {owners} patient{'s' * (owners != 1)} for {_parts(counts, label)} splits, "
        "and cannot be both learnt and judged: leave it out of disease.classes, or join it to another by 'labels'"
        for label in few
        for owners in [_owners(groups, label)]
    )
    held = f". {bound} images have a split already, by their source or by an earlier run, and keep it" if bound else ""
    remedy = "Add images or lower the counts; patients are kept whole"
    return f"counts cannot be reached: {'; '.join(lines)}{single}{held}. {remedy}"


def _owners(groups: Sequence[Group], label: str) -> int:
    return sum(any(record.label == label for record in group) for group in groups)


def _parts(counts: Counts, label: str) -> int:
    return sum(number > 0 for number in counts[label].values())
