"""Drawing: splits are drawn from what is usable, and the leak gate stops the run or resolves what leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from synthvision.data.audit import write_sheet
from synthvision.data.cache import ImageCache
from synthvision.data.copies import Item, Left
from synthvision.data.leakage import Leak, LeakError, Ties, find_leaks
from synthvision.data.rules import Rules
from synthvision.data.splits import ShortageError, groups_of, split
from synthvision.manifest import EXTERNAL, Manifest, Record

FIXED = ("guide", "external")  # sides that nothing is moved to: a guide has a caption, an external set is as it came
MOST_TOLD = 20  # leaks in an error message
SHEET = "leaks.png"


@dataclass(frozen=True)
class Drawing:
    """What splits are drawn from, and how leaks are resolved."""

    guides: Sequence[Item]
    pool: Sequence[Item]  # all others, those of external test sets too
    near: Ties
    exact: Sequence[Leak]  # copies that the sources put on two sides; the second of each is not in the pool
    rules: Rules
    before: Mapping[str, str]  # image_id -> split of an earlier run
    root: Path

    def checked(self, out: Path, cache: ImageCache, left: list[Left]) -> tuple[Manifest, list[Leak]]:
        """Return guides and drawn images, and the leaks that were resolved. `leaks.png` in `out` shows leaks.

        Raises:
            LeakError: something leaks, and the rule is "stop".
            ShortageError: too few images for the counts.
        """
        dropped: dict[str, Leak] = {}
        moved: dict[str, tuple[str, Leak]] = {}  # image_id -> side
        try:
            manifest, leaks = self._drawn(dropped, moved)
        except ShortageError as error:
            self._tell(_resolved(dropped, moved), moved.keys() - dropped.keys(), left)
            self._show([*self.exact, *_resolved(dropped, moved)], out, cache)
            raise ShortageError(f"{error}{_missed(dropped, moved, out / SHEET)}") from error
        resolved = _resolved(dropped, moved)
        self._tell(leaks or resolved, {leak.second for leak in leaks} or set(manifest.column("image_id")), left)
        stopping = [*self.exact, *leaks] if self.rules.leaks == "stop" else []
        told = stopping or [*self.exact, *resolved]
        self._show(told, out, cache)
        if stopping:
            raise LeakError(_explained(stopping, out / SHEET))
        return manifest, told

    def _items(self) -> dict[str, Item]:
        return {item.record.image_id: item for item in (*self.guides, *self.pool)}

    def _tell(self, leaks: Sequence[Leak], staying: Set[str], left: list[Left]) -> None:
        """Name the file of each leak's second image, and the one that it is tied to."""
        by_id = self._items()
        for leak in leaks:
            what = "leak" if leak.second in staying else "leak dropped"
            left.append(Left(leak.second, by_id[leak.second].source, what, f"{leak}; {by_id[leak.first].source}"))

    def _show(self, leaks: Sequence[Leak], out: Path, cache: ImageCache) -> None:
        """Draw the pairs; a copy of equal pixels has no item of its own."""
        if leaks:
            pixels, by_id = cache.pixels(), self._items()
            pairs = [(f"{leak.kind} {leak.similarity:.3f}: {leak.sides[0]} / {leak.sides[1]}",
                      pixels[by_id[leak.first].picture.row],
                      pixels[by_id.get(leak.second, by_id[leak.first]).picture.row])
                     for leak in leaks]  # fmt: skip
            write_sheet(out / SHEET, pairs)

    def _drawn(self, dropped: dict[str, Leak], moved: dict[str, tuple[str, Leak]]) -> tuple[Manifest, list[Leak]]:
        """Draw until nothing leaks, or once where leaks shall stop the run.

        Args:
            dropped: gets image_id -> leak of the images that are left out.
            moved: gets image_id -> side and leak of those that are taken to another side.

        Returns:
            the guides and the drawn images, and the leaks that are left.
        """
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
                manifest = self._with_guides(self._split(sided, kept))
                leaks = find_leaks(manifest, self.near)
            if not leaks or self.rules.leaks == "stop":
                return manifest, leaks
            for leak in leaks:
                if self.rules.leaks == "drop" or leak.sides[0] in FIXED or leak.second in moved:
                    dropped[leak.second] = leak
                else:
                    moved |= {r.image_id: (leak.sides[0], leak) for r in groups[leak.second]}

    def _split(self, records: Sequence[Record], kept: Mapping[str, str]) -> list[Record]:
        rules = self.rules
        drawn = split([r for r in records if r.split != EXTERNAL], rules.counts, rules.seed, rules.stratify, kept)
        return [*drawn, *(record for record in records if record.split == EXTERNAL)]

    def _with_guides(self, records: Sequence[Record]) -> Manifest:
        return Manifest((*(item.record for item in self.guides), *records), self.root)

    def elsewhere(self, manifest: Manifest) -> int:
        """Return how many images a draw without a memory would have put elsewhere. Where nothing was added none."""
        if not self.before:
            return 0
        try:
            fresh = self._split([item.record for item in self.pool], {})
        except ShortageError:  # what earlier runs drew is what makes it possible
            return len(self.before)
        sides = {record.image_id: record.split for record in fresh}
        return sum(self.before.get(r.image_id) == r.split != sides.get(r.image_id) for r in manifest)


def _resolved(dropped: Mapping[str, Leak], moved: Mapping[str, tuple[str, Leak]]) -> list[Leak]:
    return [*dropped.values(), *dict.fromkeys(leak for _, leak in moved.values())]


def _explained(leaks: Sequence[Leak], sheet: Path) -> str:
    remedy = (
        f"{sheet} shows them. Remove one of each pair, or let dataset.leaks=drop leave the second out, "
        "or dataset.leaks=move take it, with all that belongs to it, to the first one's side"
    )
    return "\n".join([f"{len(leaks)} leaks:", *_listed(leaks), remedy])


def _missed(dropped: Mapping[str, Leak], moved: Mapping[str, tuple[str, Leak]], sheet: Path) -> str:
    """Return which images a shortage lacks since they would leak; nothing where there are none."""
    lines = []
    if dropped:
        lines += [f"{len(dropped)} were left out as leaks, the second of each pair:", *_listed([*dropped.values()])]
    if moved:
        leaks = _resolved({}, moved)
        lines += [f"{len(leaks)} were moved to the first one's side, with what belongs to them:", *_listed(leaks)]
    return "\n".join(["", *lines, f"{sheet} shows the pairs"]) if lines else ""


def _listed(leaks: Sequence[Leak]) -> list[str]:
    more = [f"and {len(leaks) - MOST_TOLD} more"] if len(leaks) > MOST_TOLD else []
    return [*(str(leak) for leak in leaks[:MOST_TOLD]), *more]
