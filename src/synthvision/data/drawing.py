"""Drawing: splits are drawn from what is usable, and the leak gate stops the run or resolves what leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        manifest, leaks, resolved = self._drawn()
        by_id = {item.record.image_id: item for item in (*self.guides, *self.pool)}
        drawn = set(manifest.column("image_id"))
        for leak in leaks or resolved:
            gone = "leak" if leaks or leak.second in drawn else "leak dropped"
            left.append(Left(leak.second, by_id[leak.second].source, gone, f"{leak}; {by_id[leak.first].source}"))
        stopping = [*self.exact, *leaks] if self.rules.leaks == "stop" else []
        told = stopping or [*self.exact, *resolved]
        if told:
            pixels = cache.pixels()
            pairs = [(f"{leak.kind} {leak.similarity:.3f}: {leak.sides[0]} / {leak.sides[1]}",
                      pixels[by_id[leak.first].picture.row],
                      pixels[by_id.get(leak.second, by_id[leak.first]).picture.row])  # an exact copy has no item
                     for leak in told]  # fmt: skip
            write_sheet(out / "leaks.png", pairs)
        if stopping:
            raise LeakError(_explained(stopping, out / "leaks.png"))
        return manifest, told

    def _drawn(self) -> tuple[Manifest, list[Leak], list[Leak]]:
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
                manifest = self._with_guides(self._split(sided, kept))
                leaks = find_leaks(manifest, self.near)
            if not leaks or self.rules.leaks == "stop":
                return manifest, leaks, [*dropped.values(), *{leak for _, leak in moved.values()}]
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


def _explained(leaks: Sequence[Leak], sheet: Path) -> str:
    shown = [str(leak) for leak in leaks[:MOST_TOLD]]
    more = [f"and {len(leaks) - MOST_TOLD} more"] if len(leaks) > MOST_TOLD else []
    remedy = (
        f"{sheet} shows them. Remove one of each pair, or let dataset.leaks=drop leave the second out, "
        "or dataset.leaks=move take it, with all that belongs to it, to the first one's side"
    )
    return "\n".join([f"{len(leaks)} leaks:", *shown, *more, remedy])
