"""Where the lesion is in a guide: a mask picture or a box beside it, so that training can look there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthvision.data.images import Pixels, fit, read_rgb
from synthvision.data.unusable import UnusableImage

MASK, BOX = ".mask.png", ".box.txt"  # beside guide NAME.jpg: NAME.mask.png or NAME.box.txt
Mask = NDArray[np.bool_]


def is_mask(file: Path) -> bool:
    """Tell whether a file is a mask or box and neither a guide nor a caption."""
    return file.name.lower().endswith((MASK, BOX))


def mask_of(guide: Path) -> Path | None:
    """Return the mask or box file beside a guide, or None where there is none.

    Raises:
        ValueError: there are both.
    """
    there = [file for file in (guide.with_suffix(ending) for ending in (MASK, BOX)) if file.is_file()]
    if len(there) > 1:
        raise ValueError(f"guide {guide} has a mask and a box; remove {there[0].name} or {there[1].name}")
    return there[0] if there else None


def read_mask(file: Path, height: int, width: int) -> Mask:
    """Return where the lesion is in a guide of (height, width) pixels: bool of that shape.

    Raises:
        ValueError: the file is damaged, of another size than its guide, or marks nothing.
    """
    mask = _box(file, height, width) if file.name.lower().endswith(BOX) else _picture(file, height, width)
    if not mask.any():
        raise ValueError(f"{file} marks nothing; paint the lesion white in it, or remove the file")
    return mask


def fit_mask(mask: Mask, size: int) -> Mask:
    """Cut and resize a mask as `images.fit` does its guide: bool (H, W) -> bool (size, size)."""
    grey = np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)
    fitted: Mask = fit(grey, size)[..., 0] > 127
    return fitted


def bounding_square(mask: Mask, margin: float, smallest: int) -> tuple[int, int, int]:
    """Return (top, left, side) of the smallest square around a mask, bool (S, S), that has a margin and fits in.

    Args:
        mask: marks something.
        margin: beside the lesion, as a share of its longer side.
        smallest: least side in pixels.
    """
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    whole = len(mask)
    side = min(whole, max(smallest, round(longer * (1 + 2 * margin))))
    top, left = (round((lines[0] + lines[-1] + 1 - side) / 2) for lines in (rows, columns))
    return min(max(top, 0), whole - side), min(max(left, 0), whole - side), side


def write_mask(file: Path, mask: Mask) -> None:
    """Write bool (S, S) as a PNG of black and white."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask * np.uint8(255)).save(file, "PNG")


def _picture(file: Path, height: int, width: int) -> Mask:
    try:
        pixels: Pixels = read_rgb(file)
    except UnusableImage as error:
        raise ValueError(f"{file}: {error}; make the mask again, or remove it") from error
    rows, columns = pixels.shape[:2]
    if (rows, columns) != (height, width):
        raise ValueError(f"{file} must have its guide's size, {width} x {height} pixels; it has {columns} x {rows}")
    white: Mask = pixels[..., 0] > 127
    return white


def _box(file: Path, height: int, width: int) -> Mask:
    text = file.read_text(encoding="utf-8-sig")
    numbers = [int(number) for number in re.findall(r"-?\d+", text)]
    rule = f"four whole numbers, left top right bottom, in pixels of the guide ({width} x {height})"
    if len(numbers) != 4:
        raise ValueError(f"{file} must hold {rule}; it holds {text.strip()!r}")
    left, top, right, bottom = numbers
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"{file} must hold {rule}, inside the guide; it holds {numbers}")
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask
