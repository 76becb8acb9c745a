"""Leakage: the same picture, nearly the same picture, or the same patient on two sides of a study.

Near duplicates are found with perceptual hashes under the eight flips and quarter turns, and confirmed by the
correlation of fine structure. The thresholds were set on microscope images and skin phantoms: re-encoded, resized,
brightened, flipped and turned copies are found, different cells of one kind are not. Crops are not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from synthvision.data.images import HASH_GRID, Pixels, grey_thumbnails, hashes_of
from synthvision.manifest import Manifest

SIDES = ("guide", "test", "val", "train")  # the order in which sides keep their image when a leak is resolved
HASH_DISTANCE = 10  # bits of 64
CORRELATION = 0.9
BAND = (0.7, 2.0)  # pixels of the thumbnail: finer is noise, coarser is lighting and "a dark blob in the middle"
BLOCK = 512  # rows compared at a time, which bounds memory

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Leak:
    """Two images that tie two sides together. The first lies on the side that keeps its image (order of `SIDES`)."""

    kind: str  # "exact", "near" or "patient"
    first: str  # image_id
    second: str
    sides: tuple[str, str]
    similarity: float  # correlation of structure; 1 for exact and patient

    def __str__(self) -> str:
        """Return what a user needs to find the pair."""
        return f"{self.kind}: {self.first} ({self.sides[0]}) and {self.second} ({self.sides[1]}), {self.similarity:.3f}"


class LeakError(ValueError):
    """The same picture or patient lies on two sides of guide / train / validation / test."""


def find_leaks(manifest: Manifest, images: Pixels) -> list[Leak]:
    """Find what ties guide, training, validation and test images together.

    Args:
        manifest: records without a split are on no side.
        images: uint8 (N, S, S, 3), in the order of the records; thumbnails of 32 pixels suffice.

    Returns:
        exact duplicates (same file or same pixels), near duplicates, and one pair per patient and pair of sides.
    """
    if len(images) != len(manifest):
        raise ValueError(f"one image per record is needed; there are {len(images)} for {len(manifest)} records")
    side = np.array([SIDES.index(record.split) if record.split else -1 for record in manifest], dtype=np.int64)
    leaks = [*_copies(manifest, images, side), *_patients(manifest, side)]
    return sorted(leaks, key=lambda leak: (leak.kind, leak.first, leak.second))


def _copies(manifest: Manifest, images: Pixels, side: NDArray[np.int64]) -> Iterator[Leak]:
    if not len(images):
        return
    thumbnails = grey_thumbnails(images)
    rows, columns = _candidates(thumbnails, side)
    similarity = _similarity(thumbnails, rows, columns)
    for i, j, alike in zip(rows.tolist(), columns.tolist(), similarity.tolist(), strict=True):
        same_file = manifest.records[i].sha256 == manifest.records[j].sha256
        if same_file or np.array_equal(images[i], images[j]):
            yield _leak("exact", manifest, side, i, j, 1.0)
        elif alike >= CORRELATION:
            yield _leak("near", manifest, side, i, j, round(alike, 4))


def _candidates(thumbnails: Floats, side: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the pairs i < j on different sides whose hashes are close in one of the eight positions."""
    plain = hashes_of(thumbnails)
    turned = np.stack([hashes_of(view) for view in eight_views(thumbnails)])  # (8, N)
    pairs = []
    for start in range(0, len(plain), BLOCK):
        block = slice(start, start + BLOCK)
        distance = np.bitwise_count(plain[None, block, None] ^ turned[:, None, :]).min(axis=0)  # (B, N)
        apart = (side[block, None] != side[None]) & (side[block, None] >= 0) & (side[None] >= 0)
        rows, columns = np.nonzero((distance <= HASH_DISTANCE) & apart)
        ordered = rows + start < columns
        pairs.append((rows[ordered] + start, columns[ordered]))
    return np.concatenate([rows for rows, _ in pairs]), np.concatenate([columns for _, columns in pairs])


def _similarity(thumbnails: Floats, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
    """Return for each pair the largest correlation of fine structure over the eight positions, in [-1, 1]."""
    plain = _structure(thumbnails)[rows]
    best = np.full(len(rows), -1.0)
    for view in eight_views(thumbnails):
        best = np.maximum(best, (plain * _structure(view)[columns]).sum(axis=1))
    return best


def _structure(thumbnails: Floats) -> Floats:
    """Return band-passed thumbnails as vectors of zero mean and unit length: (N, 32, 32) -> (N, 1024)."""
    fine, coarse = (_blur(sigma) for sigma in BAND)
    band = (fine @ thumbnails @ fine.T - coarse @ thumbnails @ coarse.T).reshape(len(thumbnails), -1)
    band -= band.mean(axis=1, keepdims=True)
    length = np.linalg.norm(band, axis=1, keepdims=True)
    unit: Floats = band / np.maximum(length, 1e-6)  # a uniform picture resembles nothing
    return unit


def _blur(sigma: float) -> Floats:
    """Return the matrix that blurs a column of the thumbnail with a Gaussian, (32, 32)."""
    distance = np.subtract.outer(np.arange(HASH_GRID), np.arange(HASH_GRID))
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    rows: Floats = kernel / kernel.sum(axis=1, keepdims=True)
    return rows


def eight_views(images: Floats) -> list[Floats]:
    """Return square images (N, S, S) in the eight flips and quarter turns."""
    turns = [np.rot90(images, quarter, axes=(1, 2)) for quarter in range(4)]
    return [*turns, *(np.flip(turn, axis=2) for turn in turns)]


def _patients(manifest: Manifest, side: NDArray[np.int64]) -> Iterator[Leak]:
    seen: dict[str, dict[int, int]] = {}  # patient -> side -> index of its first image there
    for index, record in enumerate(manifest):
        if record.patient and side[index] >= 0:
            seen.setdefault(record.patient, {}).setdefault(int(side[index]), index)
    for by_side in seen.values():
        for first, second in combinations(by_side.values(), 2):
            yield _leak("patient", manifest, side, first, second, 1.0)


def _leak(kind: str, manifest: Manifest, side: NDArray[np.int64], i: int, j: int, similarity: float) -> Leak:
    first, second = sorted((i, j), key=lambda index: int(side[index]))
    ids = (manifest.records[first].image_id, manifest.records[second].image_id)
    return Leak(kind, *ids, (SIDES[side[first]], SIDES[side[second]]), similarity)
