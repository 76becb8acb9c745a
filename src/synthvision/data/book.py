"""The book of splits: which image went where, so that an image keeps its split when others are added."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from synthvision.artifact import digest_of, write_text
from synthvision.data.splits import PARTS, Counts
from synthvision.manifest import Record


class SplitBook:
    """What earlier runs of one study drew with the same rule: counts, seed and subgroups.

    Another rule has another book, so that runs of a sweep over counts do not depend on which came first.
    """

    def __init__(self, study: Path, counts: Counts, seed: int, stratify: Sequence[str]) -> None:
        rule = digest_of([{label: dict(parts) for label, parts in counts.items()}, seed, list(stratify)])[:16]
        self.file = study / "splits" / f"{rule}.csv"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.file.with_suffix(".lock"))

    def read(self) -> dict[str, str]:
        """Return image_id -> split.

        Raises:
            ValueError: the book was edited and holds no split; delete it to draw anew.
        """
        if not self.file.is_file():
            return {}
        rows = list(csv.DictReader(io.StringIO(self.file.read_text())))
        if any(row.get("split") not in PARTS or not row.get("image_id") for row in rows):
            raise ValueError(f"{self.file}: each row must be an image_id and one of {PARTS}; delete it to draw anew")
        return {row["image_id"]: row["split"] for row in rows}

    def add(self, before: Mapping[str, str], drawn: Sequence[Record]) -> None:
        """Enter the images that were drawn; those that are not among them now may come back and keep their place."""
        known = {**before, **{record.image_id: record.split for record in drawn}}
        if known != before:
            rows = "".join(f"{image_id},{split}\n" for image_id, split in sorted(known.items()))
            write_text(self.file, f"image_id,split\n{rows}")
