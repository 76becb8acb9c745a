"""Predictions: one probability per class for each image, a CSV that anyone can open."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synthvision.artifact import write_text

SCHEMA_VERSION = 1
HEADER = f"# synthvision predictions {SCHEMA_VERSION}"
PREFIX = "p_"  # a class's column is named p_<class>
SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of N images and C classes, beside what they truly are.

    `image_id` and `label` have N entries, `classes` has C; a label is one of the classes or empty where unknown.
    `probability` is float64 (N, C), each row in [0, 1] and summing to 1; it is copied and made read-only.

    Raises:
        ValueError: a rule is broken; the message names field, rule and value.
    """

    image_id: tuple[str, ...]
    label: tuple[str, ...]
    classes: tuple[str, ...]
    probability: NDArray[np.float64]

    def __post_init__(self) -> None:
        probability = np.array(self.probability, dtype=np.float64)
        probability.setflags(write=False)
        object.__setattr__(self, "probability", probability)
        n, c = len(self.image_id), len(self.classes)
        _require(len(set(self.image_id)) == n, "image_id", "unique", self.image_id)
        _require(c >= 2 and len(set(self.classes)) == c, "classes", "two or more different names", self.classes)
        _require(len(self.label) == n, "label", f"one per image ({n})", len(self.label))
        unknown = sorted(set(self.label) - set(self.classes) - {""})
        _require(not unknown, "label", f"one of {self.classes} or empty", unknown)
        _require(probability.shape == (n, c), "probability", f"of shape {(n, c)}", probability.shape)
        bad = ~((probability >= 0) & (probability <= 1)).all(axis=1)  # NaN compares false, so it is caught too
        bad |= ~(np.abs(probability.sum(axis=1) - 1) <= SUM_TOLERANCE)
        first = [(self.image_id[i], probability[i].tolist()) for i in np.flatnonzero(bad)[:3]]
        _require(not first, "probability", "in [0, 1] with rows that sum to 1", first)

    def of(self, name: str) -> NDArray[np.float64]:
        """Return the probability of one class, float64 (N,).

        Raises:
            ValueError: `name` is not one of the classes.
        """
        if name not in self.classes:
            raise ValueError(f"class must be one of {self.classes}; it is {name!r}")
        return self.probability[:, self.classes.index(name)]

    def text(self) -> str:
        """Return the CSV's content; numbers are written so that reading gives the same bits."""
        out = io.StringIO()
        out.write(HEADER + "\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["image_id", "label", *(PREFIX + name for name in self.classes)])
        for name, label, row in zip(self.image_id, self.label, self.probability.tolist(), strict=True):
            writer.writerow([name, label, *map(repr, row)])
        return out.getvalue()

    def write(self, file: Path) -> None:
        """Write the CSV atomically."""
        write_text(file, self.text())

    @classmethod
    def read(cls, file: Path) -> Predictions:
        """Read a CSV written by `write`.

        Raises:
            ValueError: the file's schema version or columns are not this one's, or the values break a rule.
        """
        with file.open(newline="", encoding="utf-8") as handle:
            version = handle.readline().strip()
            _require(version == HEADER, f"{file}: the first line", repr(HEADER), version)
            columns, *rows = list(csv.reader(handle)) or [[]]
        named = columns[:2] == ["image_id", "label"] and all(c.startswith(PREFIX) for c in columns[2:])
        _require(named, f"{file}: columns", f"image_id, label, {PREFIX}<class>, ...", columns)
        ragged = [number for number, row in enumerate(rows, start=3) if len(row) != len(columns)]
        _require(not ragged, f"{file}: lines", f"of {len(columns)} cells", ragged[:5])
        classes = tuple(column.removeprefix(PREFIX) for column in columns[2:])
        values = np.array([row[2:] for row in rows], dtype=np.float64).reshape(len(rows), len(classes))
        return cls(tuple(row[0] for row in rows), tuple(row[1] for row in rows), classes, values)

    def __len__(self) -> int:
        return len(self.image_id)


def _require(holds: object, field: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"predictions: {field} must be {rule}; got {value!r}")
