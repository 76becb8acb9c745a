"""Near duplicates: the same picture re-encoded, resized, brightened, flipped, turned or cropped a little.

Pictures are described by their low frequencies, whitened over the set they are in, so that what all of them share (a
dark blob in the middle) counts little. Flips and quarter turns only turn such a description, so all eight are looked
for, of the whole picture and of its corners. Candidates come from hash tables whose number of places grows with the
number of pictures: the search does not compare all with all. A candidate is confirmed by the correlation of fine
structure, after the crop between both has been found.

The thresholds were set on microscope images and skin phantoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from synthvision.data.cache import THUMB
from synthvision.data.close_pairs import ALL_PAIRS, BLOCK, HashTables, compare_all
from synthvision.data.decoding import Pixels

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
Crop = tuple[float, float, float]  # share of the side that is left, place down and to the right in 0..1

WHOLE: Crop = (1.0, 0.0, 0.0)
LOOKED_FOR: tuple[Crop, ...] = (WHOLE, *((0.95, y, x) for y in (0.0, 1.0) for x in (0.0, 1.0)))
PLACES = {0.975: 2, 0.95: 3, 0.925: 4, 0.9: 5}  # share that a crop may leave -> places it may have in each direction
LOW, SMALL = 6, 32  # frequencies in each direction that describe a picture, without the mean: 35; and of what side
SHRINK = 0.05  # share of the mean variance added in each direction: what hardly varies is noise
POSITIONS = 2  # in which a pair is looked at closely
PARTNERS = 8  # of a picture that are
BLANK = 1.0  # length, in grey levels, of what a uniform picture has: it resembles nothing
COARSE, FINE = 16, 48  # sides of the grids in which a crop is looked for, and a pair confirmed
BAND = (0.7, 2.0)  # pixels of a grid: finer is noise, coarser is lighting and "a dark blob in the middle"
WORTH = 0.6  # correlation on the coarse grid from which a pair is worth a closer look
CORRELATION = 0.84  # on the fine grid; on a coarser one round cells that are merely alike reach what a crop does


@dataclass(frozen=True)
class Pairs:
    """Pairs of near duplicates, first < second, in order."""

    first: Indices
    second: Indices
    similarity: Floats  # correlation of structure

    def __len__(self) -> int:
        return len(self.first)

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        return zip(self.first.tolist(), self.second.tolist(), self.similarity.tolist(), strict=True)


def near_duplicates(thumbs: Pixels, rows: Indices | None = None) -> Pairs:
    """Return the pairs that show the same.

    Args:
        thumbs: grey thumbnails uint8 (N, THUMB, THUMB), which may be memory-mapped.
        rows: those that are meant, in the order of the pairs' numbers; None means all.
    """
    pictures = _Pictures(thumbs, np.arange(len(thumbs)) if rows is None else rows)
    if len(pictures) < 2:
        none = np.empty(0, dtype=np.int64)
        return Pairs(none, none, np.empty(0, dtype=np.float32))
    describe = _Describer(pictures)
    plain = describe(0, WHOLE)
    find = compare_all if len(pictures) <= ALL_PAIRS else HashTables(plain).find
    found = []
    for view, crop in product(range(8), LOOKED_FOR):
        asked = describe(view, crop)
        first, second = find(plain, asked)
        cosine = np.einsum("ij,ij->i", asked[first], plain[second])
        found.append((np.stack([first, second, np.full(len(first), view)], axis=1), cosine))
    candidates, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _confirmed(pictures, _likeliest(candidates, cosines))


def _likeliest(candidates: Indices, cosines: Floats) -> Indices:
    """Keep each pair in its most alike positions, and of each picture's pairs the most alike.

    Among thousands of copies of one picture each is tied to some of the others, and so all are tied.
    """
    order = np.lexsort((candidates[:, 2], candidates[:, 1], candidates[:, 0], -cosines))
    candidates = candidates[order]
    ends = np.sort(candidates[:, :2], axis=1)
    pair = ends[:, 0] * (ends.max(initial=0) + 1) + ends[:, 1]
    _, pair = np.unique(pair, return_inverse=True)
    place = _rank(pair)
    rank = np.stack([_rank(np.where(place == 0, end, -1 - np.arange(len(end)))) for end in ends.T])
    near = np.zeros(int(pair.max(initial=-1)) + 1, dtype=bool)
    near[pair[(place == 0) & (rank.min(axis=0) < PARTNERS)]] = True
    return candidates[near[pair] & (place < POSITIONS)]


def _rank(keys: Indices) -> Indices:
    """Return how many rows before each have the same key."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.searchsorted(ordered, ordered, "left")
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys)) - first
    return rank


def eight_views(images: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """Return square images (N, S, S) in the eight flips and quarter turns."""
    return [_view(images, view) for view in range(8)]


def _view(images: NDArray[np.generic], view: int) -> NDArray[np.generic]:
    turned = np.rot90(images, view % 4, axes=(1, 2))
    return np.flip(turned, axis=2) if view >= 4 else turned


@dataclass(frozen=True)
class _Pictures:
    """Some rows of an array that need not fit into memory."""

    thumbs: Pixels
    rows: Indices

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Indices | slice) -> Pixels:
        return np.asarray(self.thumbs[self.rows[index]])


class _Describer:
    """Low frequencies of pictures, of unit length, whitened over a set and all its flips and turns."""

    def __init__(self, pictures: _Pictures) -> None:
        self.pictures = pictures
        every = max(1, len(pictures) // 5000)  # a sample tells what pictures have in common
        few = _Pictures(pictures.thumbs, pictures.rows[::every])
        sample = np.concatenate([_frequencies(few, view, WHOLE) for view in range(8)])
        self.mean = sample.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov((sample - self.mean).T))
        self.whiten = vectors / np.sqrt(values + SHRINK * values.mean() + 1e-12) @ vectors.T

    def __call__(self, view: int, crop: Crop) -> Floats:
        """Return float32 (N, LOW² - 1), of unit length."""
        white = (_frequencies(self.pictures, view, crop) - self.mean) @ self.whiten
        return _unit(white).astype(np.float32)


def _frequencies(pictures: _Pictures, view: int, crop: Crop) -> Floats:
    down, right = _resampling(crop[0], crop[1], SMALL), _resampling(crop[0], crop[2], SMALL)
    down, right = _cosines() @ down, _cosines() @ right  # (LOW, THUMB): resample, then transform
    parts = []
    for start in range(0, len(pictures), BLOCK):
        turned = _view(pictures[start : start + BLOCK], view).astype(np.float32)
        parts.append((down @ turned @ right.T).reshape(len(turned), LOW * LOW)[:, 1:])
    return _unit(np.concatenate(parts), BLANK)


def _unit(rows: Floats, least: float = 1e-6) -> Floats:
    length: Floats = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > least, rows / np.maximum(length, least), 0.0)


@cache
def _cosines() -> Floats:
    """Return the lowest rows of the orthonormal cosine transform (DCT-II), (LOW, SMALL)."""
    frequency, place = np.arange(LOW)[:, None], np.arange(SMALL)[None]
    scale = np.sqrt(np.where(frequency == 0, 1.0, 2.0) / SMALL)
    rows: Floats = (scale * np.cos(np.pi / SMALL * (place + 0.5) * frequency)).astype(np.float32)
    return rows


@cache
def _resampling(share: float, place: float, side: int) -> Floats:
    """Return the matrix that cuts `share` of a line of THUMB pixels at `place` and averages it into `side` pixels."""
    start, width = (1 - share) * place * THUMB, share * THUMB / side
    edges = start + width * np.arange(side + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(THUMB)[None]
    overlap = np.clip(np.minimum(right, pixel + 1) - np.maximum(left, pixel), 0, None)
    rows: Floats = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows


def _confirmed(pictures: _Pictures, candidates: Indices) -> Pairs:
    """Keep the candidates (asked, plain, view) whose fine structure agrees."""
    similarity = np.concatenate(
        [np.empty(0, dtype=np.float32)]
        + [_agreement(pictures, candidates[start : start + BLOCK]) for start in range(0, len(candidates), BLOCK)]
    )
    best: dict[tuple[int, int], float] = {}
    for (i, j, _), alike in zip(candidates.tolist(), similarity.tolist(), strict=True):
        pair = (min(i, j), max(i, j))
        if alike >= CORRELATION:
            best[pair] = max(alike, best.get(pair, 0.0))
    pairs = sorted(best)
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Pairs(ends[:, 0], ends[:, 1], np.array([best[pair] for pair in pairs], dtype=np.float32))


def _agreement(pictures: _Pictures, candidates: Indices) -> Floats:
    """Return the largest correlation over crops of either picture, float32 (B,)."""
    asked = np.empty((len(candidates), THUMB, THUMB), dtype=np.float32)
    for view in np.unique(candidates[:, 2]):
        of_view = candidates[:, 2] == view
        asked[of_view] = _view(pictures[candidates[of_view, 0]], int(view))
    plain = pictures[candidates[:, 1]].astype(np.float32)
    best: Floats = (_structure(asked, WHOLE, FINE) * _structure(plain, WHOLE, FINE)).sum(axis=1)
    open_ = np.nonzero(best < CORRELATION)[0]  # the others are copies as they are
    if len(open_):
        best[open_] = np.maximum(best[open_], _agreement_of_crops(asked[open_], plain[open_]))
    return best


def _agreement_of_crops(asked: Floats, plain: Floats) -> Floats:
    best = np.full(len(asked), -1.0, dtype=np.float32)
    for one, other in ((asked, plain), (plain, asked)):
        whole = _structure(other, WHOLE, COARSE)
        rough = np.stack([(_structure(one, crop, COARSE) * whole).sum(axis=1) for crop in _crops()])
        for place in np.argsort(rough, axis=0)[-3:]:  # the three likeliest crops
            for crop in np.unique(place):
                rows = np.nonzero((place == crop) & (rough[crop] >= WORTH))[0]
                fine = _structure(one[rows], _crops()[crop], FINE) * _structure(other[rows], WHOLE, FINE)
                best[rows] = np.maximum(best[rows], fine.sum(axis=1))
    return best


@cache
def _crops() -> tuple[Crop, ...]:
    lines = {share: np.linspace(0, 1, places).tolist() for share, places in PLACES.items()}
    return (WHOLE, *((share, y, x) for share, line in lines.items() for y in line for x in line))


def _structure(thumbs: Floats, crop: Crop, side: int) -> Floats:
    """Return band-passed crops as vectors of zero mean and unit length: (N, THUMB, THUMB) -> (N, side²)."""
    down, right = _resampling(crop[0], crop[1], side), _resampling(crop[0], crop[2], side)
    fine, coarse = (_blur(sigma, side) for sigma in BAND)
    band = (fine @ down) @ thumbs @ (fine @ right).T - (coarse @ down) @ thumbs @ (coarse @ right).T
    rows = band.reshape(len(thumbs), side * side)
    return _unit(rows - rows.mean(axis=1, keepdims=True), BLANK)


@cache
def _blur(sigma: float, side: int) -> Floats:
    """Return the matrix that blurs a line of `side` pixels with a Gaussian."""
    distance = np.subtract.outer(np.arange(side), np.arange(side))
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    rows: Floats = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    return rows
