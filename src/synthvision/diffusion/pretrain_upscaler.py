"""Train the embedded `tiny_x4` upscaler, 16 to 64 pixels, on phantoms without the lesion class.

Text encoder, tokenizer and VAE are the tiny backbone's; the UNet is trained as `superres` trains it on guides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from pytorch_lightning.loggers import Logger

from synthvision.data.images import Pixels
from synthvision.data.phantom import draw_pool
from synthvision.data.sheets import contact_sheet
from synthvision.diffusion import backbone
from synthvision.diffusion.backbone import BackboneConfig
from synthvision.diffusion.degradation import FACTOR, enlarge, shrink
from synthvision.diffusion.restoration import psnr
from synthvision.diffusion.superres import SuperResConfig, fit
from synthvision.diffusion.tiny import NOISE_LEVELS, RESOLUTION, SCHEDULER, new_upscaler_unet, rescale_latents
from synthvision.diffusion.upscale import UpscalingConfig, upscale
from synthvision.diffusion.upscaler import SCALING, Upscaler, UpscalerConfig, load

# Of the published upscaler: how the small picture is noised.
LOW_RES_SCHEDULER = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
MAX_NOISE_LEVEL = NOISE_LEVELS - 1  # as diffusers counts
HELD_OUT = 100  # phantoms of another pool that the result is measured on
SAMPLES = 6  # columns of the preview
PREVIEW = UpscalingConfig(
    steps=1, guidance=1.0, noise_level=0, average=1, back_projections=10, tile=None, batch_size=20
)


@dataclass(frozen=True)
class UpscalerPretrainConfig:
    """How the tiny upscaler is trained.

    Raises:
        ValueError: there are no images.
    """

    images: int  # phantoms in the pool
    training: SuperResConfig

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"pretrain.upscaler.images must be at least 1; it is {self.images}")


def pretrain_upscaler(
    config: UpscalerPretrainConfig, base: Path, out: Path, work: Path, seed: int, logger: Logger | None = None
) -> dict[str, float]:
    """Train the upscaler and save it as a diffusers pipeline folder in fp16 under `out`.

    Args:
        config: how.
        base: folder of the tiny backbone.
        out: of the result.
        work: the resumable state.
        seed: of every draw.
        logger: takes the losses; None logs nowhere.
    """
    upscaler = new_upscaler(base, seed)
    pool = draw_pool(config.images, seed)
    losses = fit(upscaler, pool.images, pool.captions, config.training, work, seed, logger)
    for part in (upscaler.vae, upscaler.unet, upscaler.text_encoder):
        part.to(torch.float16)
    upscaler.save(out)
    held_out = draw_pool(HELD_OUT, seed + 1)
    shown = _write_samples(out, held_out.images, held_out.captions)
    loss = float(np.mean(losses[-math.ceil(len(losses) / 10) :]))
    return {"upscaler/loss": loss, "upscaler/held_out": HELD_OUT, **shown}


def _write_samples(folder: Path, large: Pixels, captions: Sequence[str]) -> dict[str, float]:
    """Measure the weights as they ship on large pictures that they have not seen, and write `samples.png`.

    Its rows, from top to bottom: small pictures, bicubic, what the upscaler makes of them, the true ones.
    """
    shipped = load(UpscalerConfig("tiny", str(folder), RESOLUTION, MAX_NOISE_LEVEL))
    small = np.stack([shrink(image) for image in large])
    bicubic = np.stack([enlarge(image) for image in small])
    made = upscale(shipped, PREVIEW, small, captions, range(len(small)))
    squares = small.repeat(FACTOR, 1).repeat(FACTOR, 2)
    rows = [images[:SAMPLES] for images in (squares, bicubic, made, large)]
    contact_sheet(np.concatenate(rows), SAMPLES, folder / "samples.png")
    return {f"upscaler/psnr_{name}": float(psnr(i, large).mean()) for name, i in (("bicubic", bicubic), ("made", made))}


def new_upscaler(base: Path, seed: int) -> Upscaler:
    """Return an upscaler with an untrained UNet and the other parts of the tiny backbone in a folder."""
    tiny = backbone.load(BackboneConfig("tiny", str(base), RESOLUTION, "sd"))
    rescale_latents(tiny.vae, SCALING)
    tiny.vae.register_to_config(_name_or_path="tiny")  # diffusers would ship the folder's path
    torch.manual_seed(seed)  # initial weights
    config = UpscalerConfig("tiny", "untrained", RESOLUTION, MAX_NOISE_LEVEL)
    low_res = dict(DDPMScheduler(**LOW_RES_SCHEDULER).config)
    return Upscaler(
        config=config, vae=tiny.vae, unet=new_upscaler_unet(), text_encoder=tiny.text_encoders[0],
        tokenizer=tiny.tokenizers[0], scheduler_config=SCHEDULER, low_res_config=low_res,
    )  # fmt: skip
