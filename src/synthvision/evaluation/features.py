"""Simple statistics of images and of columns: what a model could use that knows nothing of disease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from synthvision.evaluation.metrics import Floats

Images = npt.NDArray[np.uint8]
RINGS = 12  # of the radial power spectrum
CORNER = 4  # a corner patch's side is the image's divided by this
FRAME = 16  # the frame's width is the image's divided by this
SMALLEST = 16


def colour_statistics(images: Images) -> Floats:
    """Return mean, spread, three quantiles and correlation of the channels.

    Args:
        images: (N, H, W, 3), 0..255.

    Returns:
        (N, 18)
    """
    pixels = _checked(images).reshape(len(images), -1, 3).astype(np.float64) / 255  # (N, H * W, 3)
    quantiles = np.quantile(pixels, [0.05, 0.5, 0.95], axis=1)  # (3, N, 3)
    centred = pixels - pixels.mean(axis=1, keepdims=True)
    spread = pixels.std(axis=1)  # (N, 3)
    pairs = ((0, 1), (0, 2), (1, 2))
    together = [(centred[..., a] * centred[..., b]).mean(1) / (spread[:, a] * spread[:, b] + 1e-9) for a, b in pairs]
    return np.concatenate([pixels.mean(axis=1), spread, *quantiles, np.stack(together, axis=1)], axis=1)


def mean_colour(images: Images) -> Floats:
    """Return the mean of each channel and its share of all: light and white balance, not what is seen.

    Args:
        images: (N, H, W, 3), 0..255.

    Returns:
        (N, 6)
    """
    means = _checked(images).reshape(len(images), -1, 3).mean(axis=1) / 255  # (N, 3)
    return np.concatenate([means, means / (means.sum(axis=1, keepdims=True) + 1e-9)], axis=1)


def texture_statistics(images: Images) -> Floats:
    """Return the radial power spectrum of lightness, the fine-grain energy of each channel and their correlation.

    Generators betray themselves in the high frequencies: too little sensor noise, a decoder's grid, smoothed hair.

    Args:
        images: (N, H, W, 3), 0..255.

    Returns:
        (N, RINGS + 9)
    """
    pixels = _checked(images).astype(np.float64) / 255
    return np.concatenate([_spectrum(pixels.mean(axis=3)), _grain(pixels)], axis=1)


def _spectrum(grey: Floats) -> Floats:
    height, width = grey.shape[1:]
    window = np.hanning(height)[:, None] * np.hanning(width)[None, :]  # no power leaks from the image's edges
    power = np.abs(np.fft.fft2((grey - grey.mean(axis=(1, 2), keepdims=True)) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    ring = np.minimum((radius / 0.5 * RINGS).astype(int), RINGS - 1).ravel()
    inside = np.eye(RINGS)[ring]  # (H * W, RINGS)
    result: Floats = np.log(power.reshape(len(grey), -1) @ inside / np.maximum(inside.sum(0), 1) + 1e-9)
    return result


def _grain(pixels: Floats) -> Floats:
    across, down = np.diff(pixels, axis=2), np.diff(pixels, axis=1)
    fine = np.diff(pixels, 2, axis=2)[:, 1:-1] + np.diff(pixels, 2, axis=1)[:, :, 1:-1]  # Laplacian (N, H-2, W-2, 3)
    energy = [np.log((part**2).mean(axis=(1, 2)) + 1e-9) for part in (across, down, fine)]  # three of (N, 3)
    return np.concatenate(energy, axis=1)


def border_patches(images: Images) -> Floats:
    """Return colour and texture statistics of the four corners, averaged: where there is seldom anything to diagnose.

    Args:
        images: (N, H, W, 3), 0..255.
    """
    mean: Floats = np.mean(_corners(images), axis=0)
    return mean


def corner_patches(images: Images) -> Floats:
    """Return colour and texture statistics of each corner, and of the frame around the picture: a stamp is in one.

    Args:
        images: (N, H, W, 3), 0..255.
    """
    thin = max(min(_checked(images).shape[1:3]) // FRAME, 1)
    edges = (images[:, :thin], images[:, -thin:], images[:, :, :thin], images[:, :, -thin:])
    return np.concatenate([*_corners(images), *(_colour_of_patch(edge) for edge in edges)], axis=1)


def _corners(images: Images) -> list[Floats]:
    height, width = (max(side // CORNER, SMALLEST // 2) for side in _checked(images).shape[1:3])
    rows, columns = (slice(None, height), slice(-height, None)), (slice(None, width), slice(-width, None))
    corners = [images[:, row, column] for row in rows for column in columns]
    return [np.concatenate([_colour_of_patch(corner), _grain(corner / 255.0)], axis=1) for corner in corners]


def _colour_of_patch(patch: Images) -> Floats:
    pixels = patch.reshape(len(patch), -1, 3) / 255.0
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


def _checked(images: Images) -> Images:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or min(images.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"images must be uint8 (N, H, W, 3), sides at least {SMALLEST}; they are {images.dtype} {images.shape}"
        )
    return images


def column_features(columns: Mapping[str, Sequence[str | float]]) -> Floats:
    """Return any columns (file size, width, skin tone, ...) as numbers: numeric ones as they are, others one-hot.

    Returns:
        (N, F); a missing number (an empty cell) becomes the column's median beside a flag that it is missing.
    """
    parts = [part for cells in columns.values() for part in _column(list(cells))]
    return np.stack(parts, axis=1)


def _column(cells: list[str | float]) -> list[Floats]:
    try:
        numbers = np.array([np.nan if cell == "" else float(cell) for cell in cells])
    except ValueError:
        values = np.array([str(cell) for cell in cells])
        return [(values == value).astype(np.float64) for value in sorted(set(values.tolist()))]
    missing = ~np.isfinite(numbers)
    middle = float(np.median(numbers[~missing])) if (~missing).any() else 0.0
    return [np.where(missing, middle, numbers), missing.astype(np.float64)]
