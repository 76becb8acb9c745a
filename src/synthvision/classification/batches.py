"""Batches of images in memory. Each says which epoch and step it is, so that what is drawn for it can be keyed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from synthvision.data.torch_data import EpochBatches, ImageTensors


class Batch(NamedTuple):
    """Images uint8 (B, 3, S, S) and labels int64 (B,); `epoch` and `step` are the key of this batch's draws."""

    images: Tensor
    labels: Tensor
    epoch: int
    step: int


class TrainBatches:
    """Shuffled batches: every image once per epoch, or `samples` images with equal classes and, within each, origins.

    No DataLoader: whole batches are indexed at once from memory, which worker processes could only slow down.
    """

    def __init__(self, data: ImageTensors, batch_size: int, samples: int | None, seed: int) -> None:
        self.data = data
        # Lightning calls `sampler.set_epoch` before each epoch, with the right number after a resume too.
        kinds = list(zip(data.labels.tolist(), data.origins, strict=True))
        self.sampler = EpochBatches(kinds, batch_size, seed, samples)

    def __iter__(self) -> Iterator[Batch]:
        for step, chosen in enumerate(self.sampler):
            images, labels = self.data[chosen]
            yield Batch(images, labels, self.sampler.epoch, step)

    def __len__(self) -> int:
        return len(self.sampler)


class EvalBatches:
    """Batches in the data's own order."""

    def __init__(self, data: ImageTensors, batch_size: int) -> None:
        self.images, self.labels = torch.split(data.images, batch_size), torch.split(data.labels, batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for step, (images, labels) in enumerate(zip(self.images, self.labels, strict=True)):
            yield Batch(images, labels, 0, step)

    def __len__(self) -> int:
        return len(self.labels)
