"""Features of images that need no trained network: what is where, and how it looks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthvision.data.images import Pixels

Floats = NDArray[np.float64]
SIDE = 64  # at which features are taken
CELLS = 4  # a picture is divided into CELLS x CELLS parts
DIRECTIONS = 8  # of edges, over a half turn
SCALES = 3  # of the look: each halves the picture
SOFT = 0.02  # of black to white: an edge much weaker than this counts little; sensor noise is no structure


def structure(images: Pixels) -> Floats:
    """Return where edges of which direction lie: unit vectors, float64 (N, CELLS * CELLS * DIRECTIONS).

    Brightness, contrast and colour do not change it; compression and a shift of a few pixels hardly do. It depends on
    how a picture is turned.

    Args:
        images: uint8 (N, H, W, 3).
    """
    grey = np.stack([_resized(image).mean(axis=2) for image in images])  # (N, SIDE, SIDE)
    down, across = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(down, across)
    direction = (np.arctan2(down, across) % np.pi) / np.pi * DIRECTIONS  # [0, DIRECTIONS)
    lower = np.floor(direction).astype(int) % DIRECTIONS
    share = direction - np.floor(direction)  # an edge between two directions counts for both
    parts = [
        strength * ((lower == k) * (1 - share) + ((lower + 1) % DIRECTIONS == k) * share) for k in range(DIRECTIONS)
    ]
    cells = _cells(np.stack(parts, axis=-1))  # (N, CELLS, CELLS, DIRECTIONS)
    cells = np.sqrt(cells / (cells.sum(axis=-1, keepdims=True) + SOFT))
    flat = cells.reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    unit: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    return unit


def look(images: Pixels) -> Floats:
    """Return colour, contrast and grain by place and scale: float64 (N, CELLS * CELLS * (3 + SCALES)).

    Args:
        images: uint8 (N, H, W, 3).
    """
    small = np.stack([_resized(image) for image in images])  # (N, SIDE, SIDE, 3)
    parts = [_cells(small)]  # mean colour
    for _ in range(SCALES):
        half = small.reshape(len(small), small.shape[1] // 2, 2, -1, 2, 3).mean(axis=(2, 4))
        fine = (small - half.repeat(2, axis=1).repeat(2, axis=2)).mean(axis=3, keepdims=True)
        parts.append(np.log(_cells(fine**2) + 1e-6))  # energy of what is lost at half the size
        small = half
    return np.concatenate([part.reshape(len(images), -1) for part in parts], axis=1)


def _cells(values: Floats) -> Floats:
    """Return means over CELLS x CELLS parts: (N, S, S, F) -> (N, CELLS, CELLS, F)."""
    count, side, _, width = values.shape
    means: Floats = values.reshape(count, CELLS, side // CELLS, CELLS, side // CELLS, width).mean(axis=(2, 4))
    return means


def _resized(image: Pixels) -> Floats:
    picture = Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(picture, dtype=np.float64) / 255
