"""What DreamBooth draws its batches from: pictures encoded once, and an order that depends on the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthvision.data.images import Pixels
from synthvision.diffusion.backbone import Backbone, Latents
from synthvision.diffusion.sampler import to_tensor


@dataclass(frozen=True)
class Examples:
    """Encoded pictures to draw from, and for each the row of its prompt."""

    latents: Latents
    prompt: Tensor  # int64 (N,)

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of the encoder's Gaussian for rows (B,), from standard normal noise (B, C, h, w)."""
        return self.latents.mean[rows] + self.latents.std[rows] * noise


def encode(backbone: Backbone, images: Pixels, captions: Sequence[str], prompts: Sequence[str], views: int) -> Examples:
    """Encode the first `views` flips and rotations of images uint8 (N, S, S, 3), one image's views in a row."""
    latents, rows = [], []
    for image, caption in zip(images, captions, strict=True):
        latents.append(backbone.encode_images(to_tensor(np.stack(_views(image)[:views]))))
        rows += [prompts.index(caption)] * views
    mean, std = (torch.cat([getattr(part, name) for part in latents]) for name in ("mean", "std"))
    return Examples(Latents(mean, std), torch.tensor(rows))


def draw_rows(count: int, size: int, step: int, seed: int, key: int) -> Tensor:
    """Return the rows, int64 (size,), that a step draws of `count`: all once in random order, then all again."""
    positions = range(step * size, (step + 1) * size)
    orders: dict[int, NDArray[np.int64]] = {}
    for lap in {position // count for position in positions}:
        orders[lap] = np.random.default_rng([seed, key, lap]).permutation(count)
    return torch.tensor([int(orders[position // count][position % count]) for position in positions])


def _views(image: Pixels) -> list[Pixels]:
    """Return the image, its mirror image, and the quarter turns of both: eight, uint8 (S, S, 3) each."""
    return [np.rot90(side, turns) for turns in range(4) for side in (image, image[:, ::-1])]
