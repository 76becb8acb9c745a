"""Images as tensors, and batches whose order depends on seed and epoch alone, so that a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthvision.data.images import load_batch
from synthvision.manifest import Manifest

ORDER = 1  # keeps this module's draws apart from others made with the same seed
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)  # tensors have no single answer to ==
class ImageTensors:
    """Images in memory with their class indices.

    Indexing with a list of indices returns the batch (uint8 (B, 3, H, W), int64 (B,)).

    Raises:
        ValueError: dtype or shape is not as stated, or there are not as many labels as images.
    """

    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,)

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images must be uint8 (N, 3, H, W); got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 (N,); got {self.labels.dtype} {tuple(self.labels.shape)}")

    @classmethod
    def from_manifest(cls, manifest: Manifest, classes: Sequence[str], size: int) -> ImageTensors:
        """Load a manifest's images; a label's index is its place in `classes`.

        Raises:
            ValueError: a label is not among the classes.
        """
        unknown = sorted(set(manifest.column("label")) - set(classes))
        if unknown:
            raise ValueError(f"labels must be among the classes {list(classes)}; these are not: {unknown}")
        index = {label: place for place, label in enumerate(classes)}
        labels = torch.tensor([index[label] for label in manifest.column("label")], dtype=torch.int64)
        images = torch.from_numpy(load_batch(manifest, size)).permute(0, 3, 1, 2).contiguous()  # (N, 3, H, W)
        return cls(images, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def shuffled(number: int, seed: int, epoch: int) -> Indices:
    """Return the indices 0 … number-1 in this epoch's random order, int64."""
    return np.random.default_rng([seed, ORDER, epoch]).permutation(number)


def balanced(labels: Sequence[int], samples: int, seed: int, epoch: int) -> Indices:
    """Return `samples` indices in random order, each class equally often (to within one), int64 (samples,).

    Within a class images are repeated as evenly as possible, which draws with replacement would not do.
    """
    rng = np.random.default_rng([seed, ORDER, epoch])
    members = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
    shares = [samples // len(members) + (place < samples % len(members)) for place in range(len(members))]
    drawn = [_repeated(rng, indices, share) for indices, share in zip(members, shares, strict=True)]
    return rng.permutation(np.concatenate(drawn))


def _repeated(rng: np.random.Generator, indices: Indices, share: int) -> Indices:
    rounds = -(-share // len(indices))
    return np.concatenate([indices[:0], *(rng.permutation(indices) for _ in range(rounds))])[:share]


class EpochBatches:
    """Yields the index lists of one epoch's batches. Lightning calls `set_epoch` before each epoch.

    Args:
        labels: class index of each image.
        batch_size: images per batch; the last batch may be smaller.
        seed: of the order.
        samples: images per epoch, classes balanced; None takes each image once.
    """

    def __init__(self, labels: Sequence[int], batch_size: int, seed: int, samples: int | None = None) -> None:
        if batch_size < 1 or (samples is not None and samples < 1) or not len(labels):
            raise ValueError(
                f"{len(labels)} images, batch_size {batch_size}, samples {samples}: each must be at least 1"
            )
        self.labels, self.batch_size, self.seed, self.samples = list(labels), batch_size, seed, samples
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = (
            shuffled(len(self.labels), self.seed, self.epoch)
            if self.samples is None
            else balanced(self.labels, self.samples, self.seed, self.epoch)
        )
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size].tolist()

    def __len__(self) -> int:
        return -(-(self.samples or len(self.labels)) // self.batch_size)
