"""Masks: where in an image the lesion is."""

from __future__ import annotations

import numpy as np
from PIL import Image

from synthvision.data.decoding import Pixels, decode_file
from synthvision.data.images import fit
from synthvision.data.unusable import UnusableImage

MIDDLE = 127  # brighter is lesion; label maps of several grey levels count from here on too


def prepared_mask(data: bytes, shape: tuple[int, ...], size: int) -> Pixels:
    """Return a mask in the form of its prepared image: uint8 (size, size), 255 where the lesion is and 0 elsewhere.

    Args:
        data: the mask file's bytes.
        shape: of its image as it was decoded, (H, W, 3).
        size: side of the prepared images.

    Raises:
        UnusableImage: no picture, another size than its image, or empty.
    """
    pixels = decode_file(data).pixels
    if pixels.shape != shape:
        raise UnusableImage(
            f"the mask has {pixels.shape[1]} x {pixels.shape[0]} pixels and its image {shape[1]} x {shape[0]}"
        )
    lesion = np.repeat(np.where(pixels.max(axis=2, keepdims=True) > MIDDLE, 255, 0), 3, axis=2).astype(np.uint8)
    if not lesion.any():
        raise UnusableImage("the mask is empty: nothing in it is white")
    grey = np.asarray(Image.fromarray(fit(lesion, size)).convert("L"))
    return np.where(grey > MIDDLE, 255, 0).astype(np.uint8)
