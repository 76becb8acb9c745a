"""Record and Manifest: the table of images that passes between stages, a CSV that anyone can open."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from synthvision.artifact import digest_of, write_text

SCHEMA_VERSION = 3  # 2: mask, and what intake knows; 3: negative_prompt, settings, safety
ORIGINS = ("real", "synthetic")
EXTERNAL = "external"  # a test set from elsewhere: never trained on, never chosen by; `set` holds its name
SPLITS = ("", "guide", "train", "val", "test", EXTERNAL)
DECISIONS = ("", "accept", "reject")
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)  # a dictionary of so many keys would take six times the memory
class Record:
    """One image and all that is known of it. Empty means unknown or not applicable.

    Raises:
        ValueError: a field breaks its rule; the message names image, field, rule and value.
    """

    image_id: str  # unique in the manifest: letters, digits, '_', '.', '-'
    path: str  # relative to the study folder, with '/', without '..'
    sha256: str  # of the file at `path`
    label: str
    origin: str  # one of ORIGINS
    split: str = ""  # one of SPLITS; empty for synthetic candidates
    set: str = ""  # guides: those trained together, e.g. "face-dark"; split "external": the name of the test set
    patient: str = ""
    skin_tone: str = ""
    body_part: str = ""
    caption: str = ""  # guides: what is seen, in clinical words
    mask: str = ""  # guides: where the lesion is, a picture of black and white; relative to the study folder
    prompt: str = ""  # synthetic: what was asked for
    seed: str = ""  # synthetic: seed of this image's own generator
    negative_prompt: str = ""  # synthetic: what was asked not to be there
    mode: str = ""  # synthetic: "noise", "paint" or "img2img"; "autoencoder": a real image passed through it
    settings: str = ""  # synthetic: scheduler, steps, guidance, strength and side
    painted_on: str = ""  # synthetic, all modes but "noise": image_id of the real image that it started from
    safety: str = ""  # synthetic: "passed" or "flagged" where a safety checker was run; it changes no image
    parent_run: str = ""  # synthetic: output digest of the weights that made it
    licence: str = ""
    consent: str = ""
    reference_standard: str = ""  # test / biopsy / expert / opinion / phantom; empty: unknown
    lesion: str = ""  # real: hash of the lesion's number; several pictures may show one
    age_band: str = ""  # ten years, e.g. "30-39"
    sex: str = ""
    site: str = ""  # where it was taken: a hospital, a practice
    device: str = ""
    source: str = ""  # real: which of the study's sources it came from, "guides" or its number
    skin_tone_ita: str = ""  # an estimate from the picture, a proxy for skin_tone and never a replacement
    siblings: str = ""  # images with the same value are edited copies of one another
    conversions: str = ""  # what was done to the stored values, joined by "; "
    decision: str = ""  # one of DECISIONS
    reason: str = ""  # of the decision
    reviewer: str = ""  # who decided; "unattended" where no physician did

    def __post_init__(self) -> None:
        self._require(IDENTIFIER.fullmatch(self.image_id), "image_id", "letters, digits, '_', '.', '-'")
        parts = PurePosixPath(self.path).parts
        self._require(parts and parts[0] != "/" and ".." not in parts, "path", "relative, inside the study folder")
        mask = PurePosixPath(self.mask).parts
        self._require(not mask or (mask[0] != "/" and ".." not in mask), "mask", "relative, inside the study folder")
        self._require(re.fullmatch(r"[0-9a-f]{64}", self.sha256), "sha256", "64 hexadecimal characters")
        self._require(self.label and self.label == self.label.strip(), "label", "not empty, no spaces at its ends")
        self._require(self.origin in ORIGINS, "origin", f"one of {ORIGINS}")
        self._require(self.split in SPLITS, "split", f"one of {SPLITS}")
        self._require(self.decision in DECISIONS, "decision", f"one of {DECISIONS}")
        self._require(self.origin == "real" or self.split in ("", "train"), "split", "synthetic images only train")
        named = self.split != EXTERNAL or IDENTIFIER.fullmatch(self.set)
        self._require(named, "set", "the name of the external test set: letters, digits, '_', '.', '-'")

    def _require(self, holds: object, field: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"image {self.image_id!r}: {field} must be {rule}; it is {getattr(self, field)!r}")


COLUMNS = tuple(field.name for field in fields(Record))


@dataclass(frozen=True)
class Manifest:
    """A table of images. `root` is the study folder that the records' paths are relative to.

    Raises:
        ValueError: two records share an image_id.
    """

    records: tuple[Record, ...]
    root: Path

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(r.image_id for r in self.records).items() if count > 1]
        if twice:
            raise ValueError(f"image_id must be unique in a manifest; these are not: {twice[:5]}")

    @classmethod
    def read(cls, file: Path, root: Path) -> Manifest:
        """Read a manifest written by `write`.

        Raises:
            ValueError: the file's schema version or columns are not this one's, or a record breaks a rule.
        """
        with file.open(newline="", encoding="utf-8") as handle:
            version = handle.readline().strip()
            if version != f"# synthvision manifest {SCHEMA_VERSION}":
                raise ValueError(
                    f"{file}: the first line must be '# synthvision manifest {SCHEMA_VERSION}'; it is {version!r}"
                )
            reader = csv.DictReader(handle)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{file}: columns must be {COLUMNS}; they are {reader.fieldnames}")
            return cls(tuple(Record(**row) for row in reader), root)

    def text(self) -> str:
        """Return the CSV's content."""
        out = io.StringIO()
        out.write(f"# synthvision manifest {SCHEMA_VERSION}\n")
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(record) for record in self.records)
        return out.getvalue()

    def write(self, file: Path) -> None:
        """Write the CSV atomically."""
        write_text(file, self.text())

    def digest(self) -> str:
        """Return a SHA-256 over all records; it does not depend on where the study folder lies."""
        return digest_of([asdict(record) for record in self.records])

    def where(self, keep: Callable[[Record], bool] | None = None, **equal: str) -> Manifest:
        """Return the records that have these column values and for which `keep` holds."""
        chosen = (r for r in self.records if all(getattr(r, key) == value for key, value in equal.items()))
        return Manifest(tuple(r for r in chosen if keep is None or keep(r)), self.root)

    def with_values(self, change: Callable[[Record], dict[str, Any]]) -> Manifest:
        """Return a copy with `change(record)`'s values set in each record."""
        return Manifest(tuple(replace(r, **change(r)) for r in self.records), self.root)

    def file(self, record: Record) -> Path:
        """Return where a record's image lies."""
        return self.root / record.path

    def column(self, name: str) -> list[str]:
        """Return one column's values in the order of the records."""
        return [getattr(record, name) for record in self.records]

    def __add__(self, other: Manifest) -> Manifest:
        return Manifest(self.records + other.records, self.root)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)


def kind_of_reason(reason: str) -> str:
    """Return a decision's reason without what was measured: "near copy of guide x: similarity 0.97" is "near copy"."""
    return reason.split(":")[0].split(" of ")[0]


def labels_of(records: Iterable[Record]) -> list[str]:
    """Return the distinct labels, sorted."""
    return sorted({record.label for record in records})
