"""Augmentation of whole batches as tensors, the same for every image whatever its origin.

An operation that touched only real or only synthetic images would tell the classifier which is which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
LEAST_BLUR = 1e-3  # pixels; below it the Gaussian is exactly the identity in float32


@dataclass(frozen=True)
class AugmentConfig:
    """How strong each operation is at most; 0 turns it off. Each image draws its own strengths.

    Args:
        flips: the eight flips and quarter turns, each equally likely.
        rotation: degrees, either way.
        shift: share of the side, either way, along both axes.
        scale: zoom between 1 / (1 + scale) and 1 + scale.
        brightness, contrast, saturation: a factor between 1 - value and 1 + value.
        colour: a factor for each channel between 1 - value and 1 + value, as of another white balance.
        blur: standard deviation of a Gaussian, as a share of the side.
        noise: standard deviation of Gaussian noise, as a share of the range.

    Raises:
        ValueError: a value is out of its range; the message names key, rule and value.
    """

    flips: bool = False
    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    colour: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        highest = {"rotation": 180.0, "shift": 0.5, "blur": 0.5}
        for field in fields(self):
            value, top = getattr(self, field.name), highest.get(field.name, 1.0)
            if not 0 <= value <= top:
                raise ValueError(f"classifier.augment.{field.name} must be in [0, {top:g}]; it is {value!r}")


@dataclass(frozen=True)
class _Chances:
    """Uniform draws in [-1, 1), all made at once: the strength of one operation does not change another's draws."""

    turn: Tensor  # (B,) in [0, 4): quarter turns
    mirror: Tensor  # (B,) -1 or 1
    rotation: Tensor  # (B,)
    shift: Tensor  # (B, 2)
    scale: Tensor  # (B,)
    tone: Tensor  # (B, 3) brightness, contrast, saturation
    colour: Tensor  # (B, 3)
    blur: Tensor  # (B,) in [0, 1)
    noise: Tensor  # (B,) in [0, 1)


def augment(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Return a changed copy of a batch.

    Args:
        images: float32 (B, 3, S, S) in [0, 1].
        config: the strengths.
        generator: on the images' device; the only source of chance.

    Returns:
        float32 (B, 3, S, S) in [0, 1].
    """
    chances = _draw(len(images), generator)
    if config.flips or config.rotation or config.shift or config.scale:
        images = _move(images, config, chances)
    if config.brightness or config.contrast or config.saturation or config.colour:
        images = _recolour(images, config, chances)
    if config.blur:
        images = _blur(images, config.blur * images.shape[-1] * chances.blur)
    if config.noise:
        white = torch.randn(images.shape, generator=generator, device=images.device)
        images = images + config.noise * chances.noise[:, None, None, None] * white
    return images.clamp(0, 1)


def _draw(count: int, generator: torch.Generator) -> _Chances:
    u = torch.rand((count, 14), generator=generator, device=generator.device)
    v = 2 * u - 1
    return _Chances(
        turn=(4 * u[:, 0]).floor(),
        mirror=v[:, 1].sign(),
        rotation=v[:, 2],
        shift=v[:, 3:5],
        scale=v[:, 5],
        tone=v[:, 6:9],
        colour=v[:, 9:12],
        blur=u[:, 12],
        noise=u[:, 13],
    )


def _move(images: Tensor, config: AugmentConfig, chances: _Chances) -> Tensor:
    """Flip, turn, rotate, zoom and shift in one resampling, so that pixels are interpolated once only."""
    angle = math.radians(config.rotation) * chances.rotation
    mirror = torch.ones_like(angle)
    if config.flips:
        angle = angle + math.pi / 2 * chances.turn
        mirror = torch.where(chances.mirror < 0, -1.0, 1.0)
    zoom = (1 + config.scale) ** -chances.scale
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    shift = 2 * config.shift * chances.shift  # the grid's side is 2
    rows = [torch.stack([mirror * cos, -mirror * sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Reflection: a black border would show how far an image was moved.
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recolour(images: Tensor, config: AugmentConfig, chances: _Chances) -> Tensor:
    """Apply white balance, saturation, contrast (about the mean luma) and brightness as one affine map of RGB."""
    luma = images.new_tensor(LUMA)
    strengths = images.new_tensor([config.brightness, config.contrast, config.saturation])
    brightness, contrast, saturation = (1 + strengths * chances.tone).unbind(1)
    gain = 1 + config.colour * chances.colour  # (B, 3)
    mean = (images.mean((2, 3)) * gain) @ luma  # (B,)
    grey = (1 - saturation)[:, None, None] * luma.expand(3, 3)
    mix = (saturation[:, None, None] * torch.eye(3, device=images.device) + grey) * gain[:, None, :]
    mix = (brightness * contrast)[:, None, None] * mix  # (B, 3, 3)
    offset = (brightness * (1 - contrast) * mean)[:, None, None].expand(-1, 3, 1)
    return torch.baddbmm(offset, mix, images.flatten(2)).view_as(images)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own `sigma` (B,) in pixels: two products with a banded matrix."""
    count, channels, side, _ = images.shape
    position = torch.arange(side, device=images.device, dtype=images.dtype)
    squared = (position[:, None] - position[None, :]) ** 2
    band = torch.exp(-squared / (2 * sigma.clamp_min(LEAST_BLUR)[:, None, None] ** 2))  # (B, S, S), symmetric
    band = band / band.sum(2, keepdim=True)  # rows sum to 1: edges keep their brightness
    rows = torch.bmm(images.reshape(count, channels * side, side), band.transpose(1, 2))
    columns = rows.view(count, channels, side, side).transpose(2, 3).reshape(count, channels * side, side)
    return torch.bmm(columns, band.transpose(1, 2)).view(count, channels, side, side).transpose(2, 3)
