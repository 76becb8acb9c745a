"""What DreamBooth draws its batches from: pictures encoded once, and an order that depends on the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthvision.data.images import Pixels, UnusableImage, fit, read_rgb
from synthvision.data.masks import Mask, bounding_square
from synthvision.diffusion.backbone import Backbone, Latents
from synthvision.diffusion.sampler import to_tensor
from synthvision.manifest import Manifest

MARGIN = 0.25  # of a lesion crop, beside the lesion, as a share of its longer side
SMALLEST = 0.25  # side of a lesion crop, as a share of the picture's


@dataclass(frozen=True)
class Picture:
    """One picture as the backbone shall see it."""

    image_id: str
    pixels: Pixels  # uint8 (S, S, 3), S the backbone's resolution
    caption: str
    mask: Mask | None = None  # bool (S, S): where the lesion is
    # What SDXL is told of it: the stored picture's side, and where the view begins once that is resized; in pixels.
    original: int | None = None  # None: S
    corner: tuple[int, int] = (0, 0)  # (top, left)


@dataclass(frozen=True)
class Examples:
    """Encoded pictures to draw from, one row per view; and for each row its prompt's row and its picture."""

    latents: Latents
    prompt: Tensor  # int64 (N,), on the CPU
    image_ids: tuple[str, ...]
    time_ids: Tensor  # float32 (N, 6): original (h, w), crop (top, left), target (h, w)
    lesion: Tensor | None = None  # float32 (N, 1, h, w): share of each latent cell that is lesion; None: no masks

    def draw(self, rows: Tensor, noise: Tensor) -> Tensor:
        """Return a sample of the encoder's Gaussian for rows (B,), from standard normal noise (B, C, h, w)."""
        return self.latents.mean[rows] + self.latents.std[rows] * noise

    def to(self, device: torch.device | str) -> Examples:
        """Return these on a device; prompts stay on the CPU."""
        lesion = None if self.lesion is None else self.lesion.to(device)
        latents = Latents(self.latents.mean.to(device), self.latents.std.to(device))
        return replace(self, latents=latents, time_ids=self.time_ids.to(device), lesion=lesion)


def pictures_of(manifest: Manifest, captions: Sequence[str], side: int, lesion_view: str = "whole") -> list[Picture]:
    """Return a manifest's pictures in the order of its records, captioned, at (side, side) pixels.

    Args:
        manifest: images that are there.
        captions: one per record.
        side: the backbone's resolution.
        lesion_view: of pictures with a mask: "whole", the square around the lesion ("crop"), or "both", one after the
            other.

    Raises:
        UnusableImage: an image is missing or damaged.
    """
    pictures = []
    for record, caption in zip(manifest, captions, strict=True):
        try:
            stored = read_rgb(manifest.file(record))
            mask = read_rgb(manifest.root / record.mask)[..., 0] > 127 if record.mask else None
        except UnusableImage as error:
            raise UnusableImage(f"image {record.image_id!r} ({record.path}): {error}; make it again") from error
        pixels = fit(stored, min(stored.shape[:2]))
        if mask is None or lesion_view != "crop":
            pictures.append(_view(record.image_id, pixels, caption, mask, (0, 0, len(pixels)), side))
        if mask is not None and lesion_view != "whole":
            square = bounding_square(mask, MARGIN, round(SMALLEST * len(mask)))
            pictures.append(_view(record.image_id, pixels, caption, mask, square, side))
    return pictures


def _view(
    image_id: str, pixels: Pixels, caption: str, mask: Mask | None, square: tuple[int, int, int], side: int
) -> Picture:
    top, left, length = square
    window = slice(top, top + length), slice(left, left + length)
    shown = None
    if mask is not None:
        shown = np.array(Image.fromarray(mask[window]).resize((side, side), Image.Resampling.NEAREST), dtype=np.bool_)
    corner = round(top * side / length), round(left * side / length)
    return Picture(image_id, fit(pixels[window], side), caption, shown, len(pixels), corner)


def encode(backbone: Backbone, pictures: Sequence[Picture], prompts: Sequence[str], views: int) -> Examples:
    """Encode the first `views` flips and rotations of each picture, one picture's views in a row."""
    latents, rows, ids, times, lesions = [], [], [], [], []
    side = backbone.config.resolution
    for picture in pictures:
        latents.append(backbone.encode_images(to_tensor(np.stack(_views(picture.pixels)[:views]))))
        rows += [prompts.index(picture.caption)] * views
        ids += [picture.image_id] * views
        original = picture.original or side
        times += [[original, original, *picture.corner, side, side]] * views
        mask = np.zeros((side, side), np.bool_) if picture.mask is None else picture.mask
        lesions.append(torch.from_numpy(np.stack(_views(mask)[:views])).float()[:, None])
    mean, std = (torch.cat([getattr(part, name) for part in latents]) for name in ("mean", "std"))
    lesion = None
    if any(picture.mask is not None for picture in pictures):
        lesion = F.adaptive_avg_pool2d(torch.cat(lesions), backbone.latent_size[1:]).to(mean.device)
    time_ids = torch.tensor(times, dtype=torch.float32, device=mean.device)
    return Examples(Latents(mean, std), torch.tensor(rows), tuple(ids), time_ids, lesion)


def draw_rows(count: int, size: int, step: int, seed: int, key: int) -> Tensor:
    """Return the rows, int64 (size,), that a step draws of `count`: all once in random order, then all again."""
    positions = range(step * size, (step + 1) * size)
    orders: dict[int, NDArray[np.int64]] = {}
    for lap in {position // count for position in positions}:
        orders[lap] = np.random.default_rng([seed, key, lap]).permutation(count)
    return torch.tensor([int(orders[position // count][position % count]) for position in positions])


def _views(image: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """Return the image, its mirror image, and the quarter turns of both: eight, (S, S, ...) each."""
    return [np.rot90(side, turns) for turns in range(4) for side in (image, image[:, ::-1])]
