"""Pairs of descriptions that are close: of few all are compared, of many those that share a place in a hash table.

A table's number of places grows with the number of descriptions, so the search does not compare all with all.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]
CANDIDATE = 0.8  # cosine of descriptions
ALL_PAIRS = 1000  # descriptions up to which all pairs are compared
TABLES = 8
SPARE_BITS = 2  # a table has four places per description
PROBES = 4  # least certain bits that are also tried the other way round
NEIGHBOURS = 16  # in one place of a table that a description is compared with: thousands of copies are not compared all
BLOCK = 2048  # descriptions at a time, which bounds memory


def compare_all(plain: Floats, asked: Floats) -> tuple[Indices, Indices]:
    """Return all pairs (asked, plain) of different pictures whose descriptions, float32 (N, D) each, are close."""
    first, second = np.nonzero(np.tril(asked @ plain.T, -1) >= CANDIDATE)
    swapped, other = np.nonzero(np.triu(asked @ plain.T, 1) >= CANDIDATE)
    return np.concatenate([first, swapped]), np.concatenate([second, other])


class HashTables:
    """Hash tables of descriptions, float32 (N, D): a place is the signs of some random projections."""

    def __init__(self, plain: Floats) -> None:
        rng = np.random.default_rng(0)
        bits = int(np.ceil(np.log2(len(plain)))) + SPARE_BITS
        self.planes = rng.normal(size=(TABLES, plain.shape[1], bits)).astype(np.float32)
        self.weights = 1 << np.arange(bits, dtype=np.int64)
        self.tables = []
        for planes in self.planes:
            codes = (plain @ planes > 0) @ self.weights
            order = np.argsort(codes, kind="stable")
            self.tables.append((codes[order], order))

    def find(self, plain: Floats, asked: Floats) -> tuple[Indices, Indices]:
        """Return pairs (asked, plain) of different pictures whose descriptions are close."""
        found = [self._in_table(number, plain, asked) for number in range(TABLES)]
        pairs = np.unique(np.concatenate(found), axis=0)
        return pairs[:, 0], pairs[:, 1]

    def _in_table(self, number: int, plain: Floats, asked: Floats) -> Indices:
        codes, order = self.tables[number]
        parts = []
        for start in range(0, len(asked), BLOCK):
            projected = asked[start : start + BLOCK] @ self.planes[number]
            home = (projected > 0) @ self.weights
            unsure = self.weights[np.argpartition(np.abs(projected), PROBES, axis=1)[:, :PROBES]]  # (B, PROBES)
            flips = np.array(list(product((0, 1), repeat=PROBES)))
            places = home[:, None] ^ (unsure @ flips.T)  # (B, 2^PROBES)
            rows, neighbours = _members(places, codes, order)
            rows += start
            close = np.einsum("ij,ij->i", asked[rows], plain[neighbours]) >= CANDIDATE
            close &= rows != neighbours
            parts.append(np.stack([rows[close], neighbours[close]], axis=1))
        return np.concatenate(parts)


def _members(places: Indices, codes: Indices, order: Indices) -> tuple[Indices, Indices]:
    """Return each row beside the pictures in its places, at most NEIGHBOURS of one place."""
    low = np.searchsorted(codes, places.ravel(), "left")
    count = np.minimum(np.searchsorted(codes, places.ravel(), "right") - low, NEIGHBOURS)
    rows = np.repeat(np.arange(len(places)).repeat(places.shape[1]), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return rows, order[np.repeat(low, count) + within]
