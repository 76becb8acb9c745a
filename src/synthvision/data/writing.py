"""Writing: the used pictures in one form with their masks, and the list of what was left out."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from synthvision.artifact import write_bytes, write_text
from synthvision.data.cache import ImageCache, Picture, place_of
from synthvision.data.copies import Item, Left
from synthvision.data.images import encode_png
from synthvision.data.masks import fit_mask, read_mask, write_mask
from synthvision.data.rules import Rules
from synthvision.data.tone import ita_group
from synthvision.manifest import Manifest, Record


def written(
    chosen: Manifest, by_id: Mapping[str, Item], rules: Rules, cache: ImageCache, left: list[Left]
) -> Iterator[Record]:
    """Write the used pictures and their masks; yield their records.

    What is written is entered into the cache: who trains on it at this size has nothing to decode.
    """
    pixels = cache.pixels()
    entries: list[tuple[str, Picture]] = []
    for record in chosen:
        item, file = by_id[record.image_id], chosen.file(record)
        image = cache.row(pixels, item.picture)
        png = encode_png(image)
        sha256 = hashlib.sha256(png).hexdigest()
        write_bytes(file, png, durable=False)
        known = Picture(sha256, item.picture.row, height=rules.size, width=rules.size, checksum=item.picture.checksum)
        entries.append((place_of(file), known))
        tone = ita_group(image) if rules.estimate_tone and not record.skin_tone else ""
        mask = _written_mask(file.parents[1] / "masks", item, rules.size, left)
        yield replace(
            record,
            sha256=sha256,
            mask=(Path(record.path).parents[1] / "masks" / mask).as_posix() if mask else "",
            skin_tone_ita=tone,
        )
    cache.keep_written(entries)


def _written_mask(folder: Path, item: Item, size: int, left: list[Left]) -> str:
    """Write an image's mask, if it has one, and return its name. One that cannot be used is left out, but a guide's."""
    if item.mask is None:
        return ""
    try:
        mask = fit_mask(read_mask(item.mask, item.picture.height, item.picture.width), size)
        if not mask.any():
            raise ValueError(
                f"{item.mask} marks nothing within the central square of its image; move the crop or the mask"
            )
    except ValueError as error:
        if item.record.split == "guide":
            raise
        left.append(Left(item.record.image_id, item.mask, "mask", str(error)))
        return ""
    file = folder / f"{item.record.image_id}.png"
    write_mask(file, mask)
    return file.name


def write_left(file: Path, left: Sequence[Left]) -> None:
    """Write the list of files that are not in the manifest, or not as they are, and why."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("image_id", "file", "what", "reason"))
    # Names that are not UTF-8 are shown as far as they can be.
    writer.writerows((each.image_id, _shown(str(each.file)), each.what, _shown(each.reason)) for each in left)
    write_text(file, out.getvalue())


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
