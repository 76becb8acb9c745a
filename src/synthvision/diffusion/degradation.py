"""Small pictures from large ones: by bicubic alone, or as cameras and the web leave them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from synthvision.data.images import Pixels

FACTOR = 4  # the large picture's sides over the small one's
BLUR = (0.2, 2.5)  # standard deviation in pixels of the large picture
NOISE = (0.0, 8.0)  # standard deviation in grey levels
QUALITY = (40, 95)  # of the JPEG


def shrink(image: Pixels) -> Pixels:
    """Return a quarter of the sides by bicubic with antialiasing: uint8 (4h, 4w, 3) -> uint8 (h, w, 3)."""
    return _resize(image, image.shape[0] // FACTOR, image.shape[1] // FACTOR)


def enlarge(image: Pixels) -> Pixels:
    """Return four times the sides by bicubic, the baseline of every upscaler: uint8 (h, w, 3) -> uint8 (4h, 4w, 3)."""
    return _resize(image, image.shape[0] * FACTOR, image.shape[1] * FACTOR)


def degrade(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur, shrink, add noise and compress, each at random: uint8 (4h, 4w, 3) -> uint8 (h, w, 3)."""
    blur = rng.uniform(*BLUR)
    blurred = gaussian_filter(image.astype(np.float32), (blur, blur, 0), mode="nearest")
    small = shrink(_grey_levels(blurred))
    noisy = small + rng.normal(0, rng.uniform(*NOISE), small.shape)
    file = io.BytesIO()
    Image.fromarray(_grey_levels(noisy)).save(file, "JPEG", quality=int(rng.integers(*QUALITY, endpoint=True)))
    with Image.open(file) as stored:
        return np.array(stored, dtype=np.uint8)


def small_of(image: Pixels, degraded: float, rng: np.random.Generator) -> Pixels:
    """Return the small picture of a pair: degraded in a share `degraded` of the draws, else by bicubic alone."""
    return degrade(image, rng) if rng.random() < degraded else shrink(image)


def _resize(image: Pixels, height: int, width: int) -> Pixels:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _grey_levels(values: np.ndarray) -> Pixels:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)
