"""From small pictures to large ones: an upscaler's denoising loop, in tiles where memory asks, and colours kept.

A large picture depends on its small one, its prompt, its seed and the settings only: each has its own prompt and its
own noise, whatever else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synthvision.data.images import Pixels
from synthvision.diffusion import objective
from synthvision.diffusion.degradation import FACTOR
from synthvision.diffusion.sampler import derive_seed, to_pixels, to_tensor
from synthvision.diffusion.upscaler import COLOURS, Upscaler

AGAIN = 31  # draw key: the further draws of an average
OVERLAP = 1 / 4  # of two neighbouring tiles, as a share of their side


@dataclass(frozen=True)
class UpscalingConfig:
    """How small pictures are enlarged.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    steps: int  # of denoising. 1: what the model expects on average, closest to the truth and smoothest
    guidance: float  # 1: none
    noise_level: int  # of the noise on the small picture
    average: int  # draws that a large picture is the mean of
    back_projections: int  # rounds that make the large picture, when shrunk, the small one again; 0: none
    tile: int | None  # side of what the model sees at once, in pixels of the small picture; None: all of it
    batch_size: int

    def __post_init__(self) -> None:
        for key in ("steps", "guidance", "average", "batch_size"):
            self._require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("noise_level", "back_projections"):
            self._require(getattr(self, key) >= 0, key, "at least 0")
        self._require(self.tile is None or self.tile >= FACTOR, "tile", f"null or at least {FACTOR}")

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"superres.upscaling.{key} must be {rule}; it is {getattr(self, key)!r}")


def check(config: UpscalingConfig, upscaler: Upscaler) -> None:
    """Refuse settings that do not fit an upscaler.

    Raises:
        ValueError: the noise level is one that it was not trained with, or a tile is not a multiple of what it needs.
    """
    levels = upscaler.config.max_noise_level
    if config.noise_level >= levels:
        raise ValueError(
            f"superres.upscaling.noise_level must be below superres.upscaler.max_noise_level={levels}; "
            f"it is {config.noise_level}"
        )
    if config.tile is not None and config.tile % upscaler.multiple:
        raise ValueError(
            f"superres.upscaling.tile must be a multiple of {upscaler.multiple} for {upscaler.config.source}; "
            f"it is {config.tile}"
        )


def upscale(
    upscaler: Upscaler, config: UpscalingConfig, images: Pixels, prompts: Sequence[str], seeds: Sequence[int]
) -> Pixels:
    """Return large pictures, uint8 (N, 4h, 4w, 3), of small ones, uint8 (N, h, w, 3), whatever their sides.

    Args:
        upscaler: what predicts.
        config: how.
        images: N small pictures.
        prompts: what each shows.
        seeds: of all that is drawn for each.

    Raises:
        ValueError: settings that do not fit the upscaler; see `check`.
    """
    check(config, upscaler)
    parts = []
    for start in range(0, len(images), config.batch_size):
        rows = list(range(start, min(start + config.batch_size, len(images))))
        # A full batch always: the libraries choose their kernels, and with them the last bits, by its size.
        full = rows + [rows[-1]] * (config.batch_size - len(rows))
        large = _upscale(
            upscaler, config, to_tensor(images[full]), [prompts[i] for i in full], [seeds[i] for i in full]
        )
        parts.append(to_pixels(large)[: len(rows)])
    return np.concatenate(parts)


def _upscale(
    upscaler: Upscaler, config: UpscalingConfig, small: Tensor, prompts: Sequence[str], seeds: Sequence[int]
) -> Tensor:
    """Return large pictures, float (B, 3, 4h, 4w), of small ones (B, 3, h, w), both in [-1, 1]."""
    small = small.to(upscaler.device)
    height, width = small.shape[-2:]
    missing = [-side % upscaler.multiple for side in (height, width)]
    padded = F.pad(small, (0, missing[1], 0, missing[0]), mode="replicate")
    text, negative = upscaler.encode_text(prompts), upscaler.encode_text([""] * len(prompts))
    texts = torch.cat([negative, text]) if config.guidance > 1 else text
    total = torch.zeros(())
    for again in range(config.average):
        drawn = [derive_seed(seed, AGAIN, again) for seed in seeds] if again else seeds
        latents = denoise(upscaler, config, padded, texts, drawn)
        total = total.to(latents) + tiled(upscaler.decode, (latents,), config.tile, FACTOR)
    mean = total[..., : FACTOR * height, : FACTOR * width] / config.average
    return back_project(mean, small, config.back_projections).clamp(-1, 1)


@torch.no_grad()
def denoise(upscaler: Upscaler, config: UpscalingConfig, small: Tensor, texts: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return clean latents (B, C, h, w) of small pictures (B, 3, h, w) by DPM-Solver++ 2M.

    Tiles are blended in each step, so that they lie on one trajectory and neighbours agree.

    Args:
        upscaler: what predicts.
        config: how.
        small: in [-1, 1].
        texts: of the prompts, (B, L, D); with guidance, of the empty ones before them, (2B, L, D).
        seeds: of each picture's noise.
    """
    scheduler = upscaler.sampler()
    scheduler.set_timesteps(config.steps)
    noises = [_noises(seed, upscaler.channels, small) for seed in seeds]
    on_small, z = (torch.stack(each).to(small) for each in zip(*noises, strict=True))
    level = torch.full((len(small),), config.noise_level)
    seen = objective.add_noise(small, on_small, level, upscaler.low_res_alphas_cumprod().to(small)).to(small)
    z = z * scheduler.init_noise_sigma
    repeats = len(texts) // len(small)
    levels, seen = level.repeat(repeats).to(small.device), seen.repeat(repeats, 1, 1, 1)
    for t in scheduler.timesteps:

        def predict(noisy: Tensor, picture: Tensor, t: Tensor = t) -> Tensor:
            return upscaler.predict(noisy, picture, t.to(noisy.device), levels, texts).float()

        prediction = tiled(predict, (z.repeat(repeats, 1, 1, 1), seen), config.tile, 1)
        if repeats == 2:
            away, towards = prediction.chunk(2)
            prediction = away + config.guidance * (towards - away)
        z = scheduler.step(prediction, t, z, return_dict=False)[0]
    latents: Tensor = z
    return latents


def _noises(seed: int, channels: int, small: Tensor) -> tuple[Tensor, Tensor]:
    """Return standard normals of the shapes of one small picture and of its latents, drawn in this order on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    height, width = small.shape[-2:]
    on_small = torch.randn((COLOURS, height, width), generator=generator)
    return on_small, torch.randn((channels, height, width), generator=generator)


def tiled(function: Callable[..., Tensor], inputs: Sequence[Tensor], tile: int | None, scale: int) -> Tensor:
    """Apply a function to overlapping squares of pictures and blend what it returns.

    Args:
        function: takes squares of all inputs, (B, C, s, s), and returns (B, D, scale * s, scale * s).
        inputs: pictures of one height and width, (B, C, h, w).
        tile: largest side of the squares; None: the whole pictures at once.
        scale: sides of what comes out over those of what goes in.
    """
    height, width = inputs[0].shape[-2:]
    if tile is None or max(height, width) <= tile:
        return function(*inputs)
    total, weight = torch.zeros(()), torch.zeros(())
    for top in _starts(height, tile):
        for left in _starts(width, tile):
            part = function(*(each[..., top : top + tile, left : left + tile] for each in inputs))
            if not total.ndim:
                total = part.new_zeros((*part.shape[:2], scale * height, scale * width))
                weight = part.new_zeros(total.shape[-2:])
            rows, columns = (_ramp(side, tile * scale).to(part) for side in part.shape[-2:])
            place = slice(scale * top, scale * top + len(rows)), slice(scale * left, scale * left + len(columns))
            ramp = rows[:, None] * columns
            total[..., place[0], place[1]] += ramp * part
            weight[place] += ramp
    return total / weight


def _starts(length: int, tile: int) -> list[int]:
    """Return where the fewest tiles begin that cover a length and overlap by OVERLAP or more."""
    if length <= tile:
        return [0]
    stride = tile - math.ceil(OVERLAP * tile)
    count = 1 + math.ceil((length - tile) / stride)
    return [round(k * (length - tile) / (count - 1)) for k in range(count)]


def _ramp(length: int, tile: int) -> Tensor:
    """Return weights, float32 (length,), that rise from both ends over the overlap and are 1 between."""
    place = torch.arange(length) + 0.5
    return (torch.minimum(place, length - place) / (OVERLAP * tile)).clamp(max=1)


def back_project(large: Tensor, small: Tensor, rounds: int) -> Tensor:
    """Return large pictures (B, 3, 4h, 4w) changed so that they come closer to small ones (B, 3, h, w) when shrunk.

    Each round adds what is missing, enlarged [Irani & Peleg 1991]. Colour and brightness, which diffusion upscalers may
    shift, are the small picture's afterwards; finer detail stays as it is.
    """
    for _ in range(rounds):
        shrunk = F.interpolate(large, small.shape[-2:], mode="bicubic", antialias=True)
        large = large + F.interpolate(small - shrunk, large.shape[-2:], mode="bicubic", antialias=True)
    return large
