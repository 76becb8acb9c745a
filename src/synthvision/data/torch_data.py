"""Images as tensors, and batches whose order depends on seed and epoch alone, so that a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthvision.data.cache import ImageCache
from synthvision.data.cached import cached_batch
from synthvision.data.images import Pixels, load_batch
from synthvision.manifest import Manifest, Record

ORDER = 1  # keeps this module's draws apart from others made with the same seed
Indices = NDArray[np.int64]
Kind = tuple[int | str, ...]  # of an image: its class, then its origin


@dataclass(frozen=True, eq=False)  # tensors have no single answer to ==
class ImageTensors:
    """Images in memory with their class indices.

    Indexing with a list of indices returns the batch (uint8 (B, 3, H, W), int64 (B,)).

    Raises:
        ValueError: dtype or shape is not as stated, or there are not as many labels or origins as images.
    """

    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,)
    origins: Sequence[str]  # (N,): "guide", "real" or "synthetic"

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W); got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 (N,); got {self.labels.dtype} {tuple(self.labels.shape)}")
        if len(self.origins) != len(self.labels):
            raise ValueError(f"origins must be (N,) with N={len(self.labels)}; there are {len(self.origins)}")

    @classmethod
    def from_manifest(
        cls, manifest: Manifest, classes: Sequence[str], size: int, cache: ImageCache | None = None
    ) -> ImageTensors:
        """Load a manifest's images, through a cache of that size if there is one.

        A label's index is its place in `classes`.

        Raises:
            ValueError: a label is not among the classes.
        """
        unknown = sorted(set(manifest.column("label")) - set(classes))
        if unknown:
            raise ValueError(f"labels must be among the classes {list(classes)}; these are not: {unknown}")
        index = {label: place for place, label in enumerate(classes)}
        labels = torch.tensor([index[label] for label in manifest.column("label")], dtype=torch.int64)
        pixels = load_batch(manifest, size) if cache is None else cached_batch(manifest, cache)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
        return cls(images, labels, [_origin(record) for record in manifest])

    def pixels(self) -> Pixels:
        """Return the images as files hold them: uint8 (N, H, W, 3)."""
        return np.ascontiguousarray(self.images.permute(0, 2, 3, 1).numpy())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def _origin(record: Record) -> str:
    return "guide" if record.split == "guide" else record.origin


def shuffled(number: int, seed: int, epoch: int) -> Indices:
    """Return the indices 0 … number-1 in this epoch's random order, int64."""
    return np.random.default_rng([seed, ORDER, epoch]).permutation(number)


def balanced(kinds: Sequence[Kind], samples: int, seed: int, epoch: int) -> Indices:
    """Return `samples` indices in random order, int64 (samples,).

    Every first entry of `kinds`, the class, comes equally often (to within one), and with it every second, the origin:
    ten guides beside five hundred synthetic images are half of what is seen of their class. Within a kind images are
    repeated as evenly as possible, which draws with replacement would not do.
    """
    rng = np.random.default_rng([seed, ORDER, epoch])
    return rng.permutation(_shared(rng, kinds, np.arange(len(kinds)), samples, 0))


def _shared(rng: np.random.Generator, kinds: Sequence[Kind], indices: Indices, samples: int, entry: int) -> Indices:
    if entry == len(kinds[0]):
        return _repeated(rng, indices, samples)
    values = np.array([kinds[index][entry] for index in indices])
    members = [indices[values == value] for value in np.unique(values)]
    shares = [samples // len(members) + (place < samples % len(members)) for place in range(len(members))]
    drawn = [_shared(rng, kinds, each, share, entry + 1) for each, share in zip(members, shares, strict=True)]
    return np.concatenate(drawn)


def _repeated(rng: np.random.Generator, indices: Indices, share: int) -> Indices:
    rounds = -(-share // len(indices))
    return np.concatenate([indices[:0], *(rng.permutation(indices) for _ in range(rounds))])[:share]


class EpochBatches:
    """Yields the index lists of one epoch's batches. Lightning calls `set_epoch` before each epoch.

    Args:
        kinds: class and origin of each image.
        batch_size: images per batch; the last batch may be smaller.
        seed: of the order.
        samples: images per epoch, classes balanced, and within each its origins; None takes each image once.
    """

    def __init__(self, kinds: Sequence[Kind], batch_size: int, seed: int, samples: int | None = None) -> None:
        if batch_size < 1 or (samples is not None and samples < 1) or not len(kinds):
            raise ValueError(
                f"{len(kinds)} images, batch_size {batch_size}, samples {samples}: each must be at least 1"
            )
        self.kinds, self.batch_size, self.seed, self.samples = list(kinds), batch_size, seed, samples
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = (
            shuffled(len(self.kinds), self.seed, self.epoch)
            if self.samples is None
            else balanced(self.kinds, self.samples, self.seed, self.epoch)
        )
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()

    def __len__(self) -> int:
        return -(-(self.samples or len(self.kinds)) // self.batch_size)
