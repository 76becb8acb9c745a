"""The audit: what prepare found in a user's files, as JSON and as a page. No path of a source is in either."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw

from synthvision.artifact import write_json, write_text
from synthvision.data.copies import Item
from synthvision.data.decoding import Pixels
from synthvision.data.images import write_png
from synthvision.data.leakage import Leak
from synthvision.manifest import EXTERNAL, Manifest, Record

TILE, GAP = 160, 8  # pixels of the picture sheet
MOST_PAIRS = 40  # on a sheet
FACTS = ("format", "mode", "width", "height", "bytes", "frames", "quality", "camera", "taken")
PLACES = ("source", "site", "device")


@dataclass(frozen=True)
class Trait:
    """What is known of a usable picture without looking at it, and where its pixels lie."""

    label: str
    group: str  # patient, or else siblings, or else itself: never to be in two folds
    row: int  # of the cache
    facts: Mapping[str, str | float]  # FACTS
    places: Mapping[str, str]  # PLACES


def traits_of(item: Item) -> Trait:
    """Return an item's traits."""
    record, known = item.record, item.picture.facts or {}
    facts = {name: known.get(name, "") for name in FACTS}
    facts["conversions"] = record.conversions
    group = record.patient or record.siblings or record.image_id
    return Trait(record.label, group, item.picture.row, facts, {name: getattr(record, name) for name in PLACES})


@dataclass(frozen=True)
class Audit:
    """What prepare made of the files it was given."""

    manifest: Manifest
    found: int  # files read, guides included
    quarantined: int  # files that gave no usable picture
    reasons: Mapping[str, int]  # why -> number of files
    duplicates: int  # pictures dropped because the same pixels were there already
    two_labels: int  # pictures dropped because their copies have another label
    also_guides: tuple[str, ...]  # guides whose picture also was in a source, and was removed there
    guide_patients: int  # pictures left out because their patient has a guide
    unused: int  # usable pictures beyond the counts
    kept: int  # images that kept the split of an earlier run where a fresh draw would not put them there
    near: tuple[tuple[str, str, float], ...]  # near duplicates: two image_ids and the correlation of their structure
    near_labels: int  # of these, pairs with two labels
    leaks: tuple[Leak, ...]  # leaks that were resolved
    masks: int  # images with a mask
    conversions: Mapping[str, int]  # what was done to stored values -> number of usable pictures
    warnings: tuple[str, ...]
    traits: tuple[Trait, ...]  # of all usable pictures but those of test sets, also of those that no split has room for

    def counts(self) -> dict[str, dict[str, int]]:
        """Return label -> split -> number of images; an external test set's split is "external/" and its name."""
        table: dict[str, dict[str, int]] = defaultdict(dict)
        for (label, part), number in sorted(Counter((r.label, _part(r)) for r in self.manifest).items()):
            table[label][part] = number
        return dict(table)

    def subgroups(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return column -> value -> split -> number of images, for columns that are known of some."""
        table: dict[str, dict[str, dict[str, int]]] = {}
        for column in ("skin_tone", "skin_tone_ita", "body_part", "age_band", "sex", "site", "device"):
            if any(self.manifest.column(column)):
                rows = Counter((getattr(r, column) or "unknown", _part(r)) for r in self.manifest)
                table[column] = defaultdict(dict)
                for (value, part), number in sorted(rows.items()):
                    table[column][value][part] = number
        return table

    def summary(self) -> dict[str, Any]:
        """Return everything but manifest and traits as JSON-able values."""
        values = {key: value for key, value in vars(self).items() if key not in ("manifest", "traits")}
        leaks = [asdict(leak) for leak in self.leaks]
        tables = {"counts": self.counts(), "subgroups": self.subgroups()}
        return {**values, "used": len(self.manifest), "leaks": leaks, **tables}


def _part(record: Record) -> str:
    return f"{record.split}/{record.set}" if record.split == EXTERNAL else record.split


def write_audit(out: Path, audit: Audit, probes: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """Write `audit.json` and `audit.html` and return them.

    Args:
        out: folder.
        audit: what was found.
        probes: what small models reach without seeing the disease: name, question, sentence, auc, low, high, grave.
    """
    content = {**audit.summary(), "probes": list(probes)}
    write_json(out / "audit.json", content)
    external = sorted({part for row in audit.counts().values() for part in row if part.startswith(EXTERNAL)})
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    write_text(out / "audit.html", environment.get_template("audit.html.j2").render(content, external=external))
    return [out / "audit.json", out / "audit.html"]


def write_sheet(file: Path, pairs: Sequence[tuple[str, Pixels, Pixels]]) -> None:
    """Draw pairs of pictures beside one another, each with a line that says what ties them."""
    shown = pairs[:MOST_PAIRS]
    line = 2 * GAP + 12
    sheet = Image.new("RGB", (3 * GAP + 2 * TILE, len(shown) * (TILE + line) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (text, first, second) in enumerate(shown):
        top = GAP + place * (TILE + line)
        pen.text((GAP, top), text, fill="black")
        for column, image in enumerate((first, second)):
            tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (GAP + column * (TILE + GAP), top + 12 + GAP))
    write_png(file, np.asarray(sheet))
