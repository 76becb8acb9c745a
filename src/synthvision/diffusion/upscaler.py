"""One face for every x4 upscaler: the differences between the real one and tiny live here and nowhere else.

A latent diffusion model whose UNet sees, beside the noisy latents, the small picture itself with some noise on it, and
is told how much. The latents of the large picture have the small picture's sides: its autoencoder's factor is 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from synthvision.diffusion.backbone import (
    Latents,
    Parts,
    alphas_of,
    find_source,
    load_part,
    remedy,
    tokens_of,
)
from synthvision.diffusion.degradation import FACTOR

COLOURS = 3
SCALING = 0.08333  # of the latents; diffusers' pipeline of upscalers knows no other
UNSET_SCALING = 0.18215  # what diffusers assumes where a VAE's config names none, as the published one once did
PARTS: dict[str, type] = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
}
SCHEDULERS = ("scheduler", "low_res_scheduler")


@dataclass(frozen=True)
class UpscalerConfig:
    """Which upscaler, and where it lies.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    name: str
    source: str  # a diffusers folder, a Hub id, or "package:NAME" for weights shipped with synthvision
    resolution: int  # side of the large squares it is trained on, in pixels; the small ones have a quarter of it
    max_noise_level: int  # the noise on the small picture is below this level of its schedule
    revision: str | None = None  # of a Hub id: pin a commit
    key: ClassVar[str] = "superres.upscaler"  # of this group in the configuration

    def __post_init__(self) -> None:
        if not self.name or not self.source:
            raise ValueError(f"{self.key}.name and {self.key}.source must not be empty")
        for name in ("resolution", "max_noise_level"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{self.key}.{name} must be above 0; it is {getattr(self, name)!r}")


@dataclass(frozen=True)
class Upscaler(Parts):
    """The parts of an upscaler; its VAE is float32 always, for it overflows in half precision. Trained in place."""

    config: UpscalerConfig
    text_encoder: nn.Module
    tokenizer: CLIPTokenizer
    low_res_config: dict[str, Any]

    def __post_init__(self) -> None:
        self.vae.requires_grad_(False).eval()
        self.text_encoder.requires_grad_(False).eval()
        self.lay_out(torch.channels_last)
        multiple = FACTOR * self.multiple
        if self.config.resolution % multiple:
            raise ValueError(
                f"{self.config.key}.resolution must be a multiple of {multiple} for {self.config.source}; "
                f"it is {self.config.resolution}"
            )

    @property
    def multiple(self) -> int:
        """What the UNet needs the sides of a small picture to be a multiple of."""
        return int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config.latent_channels)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All networks."""
        return self.vae, self.unet, self.text_encoder

    def low_res_alphas_cumprod(self) -> Tensor:
        """Return the cumulative alphas of the small picture's noise: float32 (levels,), on the CPU."""
        return alphas_of(self.low_res_config)[: self.config.max_noise_level]

    def sampler(self) -> DPMSolverMultistepScheduler:
        """Return a fresh DPM-Solver++ 2M that begins at the schedule's last timestep, however few its steps."""
        # Karras spacing starts from the schedule's last sigma, which is infinite at zero terminal SNR.
        karras = not self.scheduler_config.get("rescale_betas_zero_snr", False)
        return DPMSolverMultistepScheduler.from_config(
            self.scheduler_config,
            algorithm_type="dpmsolver++",
            solver_order=2,
            use_karras_sigmas=karras,
            timestep_spacing="trailing",
        )

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Return the text encoder's states, float (B, L, D), one row per prompt.

        Each distinct prompt is encoded alone, so that its states do not depend on its neighbours.
        """
        states = {
            prompt: self.text_encoder(tokens_of(self.tokenizer, [prompt]).to(self.device))[0]
            for prompt in dict.fromkeys(prompts)
        }
        return torch.cat([states[prompt] for prompt in prompts])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Latents:
        """Return the latents' mean and deviation for large pictures, float (B, 3, H, W) in [-1, 1]; in float32."""
        with torch.autocast(self.device.type, enabled=False):
            distribution = self.vae.encode(images.to(self.device).float()).latent_dist
        return Latents(distribution.mean * SCALING, distribution.std * SCALING)  # (B, C, H/4, W/4)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return large pictures, float32 (B, 3, 4h, 4w), from latents (B, C, h, w); not clamped."""
        with torch.autocast(self.device.type, enabled=False):
            decoded: Tensor = self.vae.decode(latents.float() / SCALING, return_dict=False)[0]
        return decoded

    def predict(self, noisy: Tensor, small: Tensor, timestep: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """Return what the UNet predicts for noisy latents, float (B, C, h, w).

        Args:
            noisy: (B, C, h, w).
            small: the small pictures with noise of `level` on them, (B, 3, h, w).
            timestep: of the latents, int64 (B,) or ().
            level: of the small pictures' noise, int64 (B,).
            text: states of `encode_text`, (B, L, D).
        """
        seen = torch.cat([noisy, small], dim=1)  # (B, C + 3, h, w)
        prediction: Tensor = self.unet(seen, timestep, text, class_labels=level, return_dict=False)[0]
        return prediction

    def pipeline(self, scheduler: Any = None) -> StableDiffusionUpscalePipeline:
        """Return a diffusers pipeline that shares these parts; without a scheduler, it gets `sampler()`."""
        return StableDiffusionUpscalePipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler or self.sampler(),
            low_res_scheduler=DDPMScheduler.from_config(self.low_res_config),
            # They would put black images, or a mark that only synthetic images carry, into a data set.
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            max_noise_level=self.config.max_noise_level,
        )


def load(config: UpscalerConfig, dtype: torch.dtype = torch.float32) -> Upscaler:
    """Load an upscaler from a folder, the package or the Hub; `dtype` is that of UNet and text encoder.

    Raises:
        FileNotFoundError: a part is missing, or the Hub cannot be reached; the message says what to put where.
        ValueError: the weights are no x4 upscaler, their scaling factor is wrong, or the resolution or the noise level
            does not fit them.
    """
    wanted = (*PARTS, *SCHEDULERS)
    source = find_source(config, wanted)
    try:
        schedules = [DDPMScheduler.load_config(source, subfolder=name, revision=config.revision) for name in SCHEDULERS]
        parts = {
            name: load_part(kind, source, name, config.revision, torch.float32 if name == "vae" else dtype)
            for name, kind in PARTS.items()
        }
    except OSError as error:
        raise FileNotFoundError(remedy(config, wanted, str(error).splitlines()[0])) from error
    _check_family(config, parts["unet"], parts["vae"])
    _set_scaling(config, parts["vae"])
    noise, low_res = map(dict, schedules)
    return Upscaler(config=config, **parts, scheduler_config=noise, low_res_config=low_res)


def _check_family(config: UpscalerConfig, unet: UNet2DConditionModel, vae: AutoencoderKL) -> None:
    latents, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    if unet.config.in_channels != latents + COLOURS or factor != FACTOR or not unet.config.num_class_embeds:
        raise ValueError(
            f"{config.source} is no x{FACTOR} upscaler: its UNet must take {latents} + {COLOURS} channels and a noise "
            f"level, and its autoencoder shrink by {FACTOR}; the UNet takes {unet.config.in_channels} channels and "
            f"{unet.config.num_class_embeds or 'no'} levels, and the autoencoder shrinks by {factor}. Set "
            f"{config.key}.source to an upscaler, such as stabilityai/stable-diffusion-x4-upscaler"
        )
    if unet.config.num_class_embeds < config.max_noise_level:
        raise ValueError(
            f"{config.key}.max_noise_level must be at most {unet.config.num_class_embeds}, the levels that the UNet in "
            f"{config.source} knows; it is {config.max_noise_level}"
        )


def _set_scaling(config: UpscalerConfig, vae: AutoencoderKL) -> None:
    """Set the scaling factor where the VAE's config lacks it, and refuse another."""
    stated = vae.config.scaling_factor
    if stated not in (SCALING, UNSET_SCALING):
        raise ValueError(
            f"scaling_factor in {config.source}/vae/config.json must be {SCALING}, as in every x{FACTOR} upscaler; it "
            f"is {stated}. If the UNet was trained with {SCALING}, correct the file; else set {config.key}.source to "
            "other weights"
        )
    vae.register_to_config(scaling_factor=SCALING)
