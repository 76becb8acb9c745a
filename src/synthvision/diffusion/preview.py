"""Sample grids at fixed seeds: what a model paints for the prompts that it is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from synthvision.data.images import Pixels
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.recipe import DreamBoothConfig
from synthvision.diffusion.sampler import (
    denoise,
    derive_seed,
    draw_noise,
    encode_negatives,
    encode_prompts,
    to_pixels,
)

GRID = 14  # draw key
GRID_COLUMNS = 4


def sample_grid(backbone: Backbone, prompts: Sequence[str], config: DreamBoothConfig, seed: int) -> Pixels:
    """Return one image per prompt, uint8 (N, S, S, 3); image i's noise depends on (seed, i) alone."""
    with torch.no_grad():
        latents = denoise(
            backbone,
            draw_noise([derive_seed(seed, GRID, index) for index in range(len(prompts))], backbone.latent_size),
            encode_prompts(backbone, prompts).of(prompts),
            encode_negatives(backbone, [""]).of([""] * len(prompts)),
            config.sample_steps,
            config.guidance,
        )
        return to_pixels(backbone.decode(latents))


def spread(prompts: Sequence[str]) -> list[str]:
    """Return GRID_COLUMNS of the prompts, evenly spread over the distinct ones, repeated where there are fewer."""
    distinct = list(dict.fromkeys(prompts))
    return [distinct[column * max(1, len(distinct) // GRID_COLUMNS) % len(distinct)] for column in range(GRID_COLUMNS)]
