"""From noise to images: one denoising loop with classifier-free guidance for every mode of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from synthvision.data.images import Pixels
from synthvision.diffusion.backbone import DPM, Backbone, Conditioning

SEED_LIMIT = 2**63  # torch takes seeds below it


@dataclass(frozen=True)
class Known:
    """What is there already when a picture is painted into another.

    Attributes:
        latents: of the real pictures, (B, C, h, w).
        mask: float (B, 1, h, w) in [0, 1]; 1 is painted anew, 0 keeps the picture.
        strength: share of the steps that are run, in (0, 1]; 1 starts from pure noise.
    """

    latents: Tensor
    mask: Tensor
    strength: float


@dataclass(frozen=True)
class Levels:
    """What the solver's latents are made of at each of its steps: `signal * clean + noise * Gaussian`."""

    signal: Tensor  # (steps,)
    noise: Tensor  # (steps,)

    def mix(self, clean: Tensor, gaussian: Tensor, step: int) -> Tensor:
        """Return latents (B, C, h, w) at a step's level."""
        return self.signal[step] * clean + self.noise[step] * gaussian


def levels_of(scheduler: Any) -> Levels:
    """Return the levels of a scheduler whose timesteps are set."""
    if isinstance(scheduler, DDIMScheduler):
        alphas = scheduler.alphas_cumprod[scheduler.timesteps.cpu()]
        return Levels(alphas.sqrt(), (1 - alphas).sqrt())
    sigmas = scheduler.sigmas.cpu()  # noise over signal
    if isinstance(scheduler, EulerDiscreteScheduler):
        return Levels(torch.ones_like(sigmas), sigmas)
    alpha = 1 / (sigmas**2 + 1).sqrt()  # the model sees both scaled to unit variance
    return Levels(alpha, alpha * sigmas)


@dataclass(frozen=True)
class Texts:
    """The conditioning of distinct prompts, each encoded once."""

    row: dict[str, int]
    conditioning: Conditioning

    def of(self, prompts: Sequence[str]) -> Conditioning:
        """Return one row per prompt."""
        rows = torch.tensor([self.row[prompt] for prompt in prompts])
        return self.conditioning.rows(rows.to(self.conditioning.embeds.device))


def encode_prompts(backbone: Backbone, prompts: Sequence[str]) -> Texts:
    """Encode each distinct prompt once."""
    distinct = list(dict.fromkeys(prompts))
    return Texts({prompt: row for row, prompt in enumerate(distinct)}, backbone.encode_text(distinct))


def encode_negatives(backbone: Backbone, prompts: Sequence[str]) -> Texts:
    """Encode each distinct negative prompt once."""
    distinct = list(dict.fromkeys(prompts))
    return Texts({prompt: row for row, prompt in enumerate(distinct)}, backbone.encode_negative(distinct))


def derive_seed(*key: int) -> int:
    """Return the seed that belongs to a key of non-negative integers, in [0, SEED_LIMIT)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) % SEED_LIMIT


def draw_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return standard normal float32 (len(seeds), *shape), each row from its own seed, drawn on the CPU."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)


@torch.no_grad()
def denoise(
    backbone: Backbone,
    noise: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    steps: int,
    guidance: float,
    known: Known | None = None,
    kind: str = DPM,
) -> Tensor:
    """Return clean latents (B, C, h, w) from standard normal noise of that shape.

    Args:
        backbone: what predicts.
        noise: float32; the same noise also takes `known` to each step's level, so that both lie on one trajectory.
        positive: of the prompts, one row per image.
        negative: of the negative prompts, one row per image.
        steps: of the whole schedule.
        guidance: classifier-free guidance; at 1 the negative prompt has no effect and is not computed.
        known: real pictures to start from; None generates from noise alone.
        kind: of the scheduler, one of SCHEDULERS.
    """
    scheduler = backbone.sampler(kind)
    scheduler.set_timesteps(steps)
    levels = levels_of(scheduler)
    noise = noise.to(backbone.device)
    start = 0 if known is None else min(steps - 1, round(steps * (1 - known.strength)))
    if hasattr(scheduler, "set_begin_index"):  # DDIM keeps no count of its steps
        scheduler.set_begin_index(start)
    z = noise * scheduler.init_noise_sigma if known is None else levels.mix(known.latents, noise, start)
    guided = guidance > 1
    text = negative.join(positive) if guided else positive
    for step, t in enumerate(scheduler.timesteps[start:], start):
        if known is not None:
            z = known.mask * z + (1 - known.mask) * levels.mix(known.latents, noise, step)
        seen = scheduler.scale_model_input(z, t)
        prediction = backbone.predict(torch.cat([seen, seen]) if guided else seen, t.to(z.device), text).float()
        if guided:
            away, towards = prediction.chunk(2)
            prediction = away + guidance * (towards - away)
        z = scheduler.step(prediction, t, z, return_dict=False)[0]
    return z if known is None else known.mask * z + (1 - known.mask) * known.latents


def to_tensor(images: Pixels) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_grey_levels(images: Tensor) -> Tensor:
    """Float (B, 3, H, W) in [-1, 1] -> float32 (B, H, W, 3) in [0, 255], on the CPU, not rounded."""
    return (images.float().cpu().permute(0, 2, 3, 1) + 1) * 127.5


def to_pixels(images: Tensor) -> Pixels:
    """Float (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3)."""
    pixels: Pixels = to_grey_levels(images).round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels
