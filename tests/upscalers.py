"""Small random upscalers of the real classes, saved as folders and loaded with the real code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from backbones import WIDTH, tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from synthvision.diffusion.upscaler import Upscaler, UpscalerConfig, load

KINDS = ("tiny", "x4")
SIDE = 32  # of the large picture
LEVELS = 20


def scheduler(kind: str) -> Any:
    """Return the scheduler that an upscaler of this kind is published with."""
    schedule = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    if kind == "x4":
        return DDIMScheduler(**schedule, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DPMSolverMultistepScheduler(**schedule, **trailing, prediction_type="v_prediction")


def save(kind: str, folder: Path, scaling_factor: float = 0.08333) -> Path:
    """Write a random upscaler of a kind as a diffusers folder: 7 channels in and 4 out; tiny has 11 and 8."""
    torch.manual_seed(KINDS.index(kind))
    channels = 8 if kind == "tiny" else 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=channels,
        norm_num_groups=1,
        mid_block_add_attention=kind == "x4",
        scaling_factor=scaling_factor,
        sample_size=SIDE,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        in_channels=channels + 3,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        num_class_embeds=LEVELS + 1,
    )
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    parts = {"vae": vae, "unet": unet, "text_encoder": CLIPTextModel(text), "tokenizer": words}
    low_res = DDPMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")
    for name, part in {**parts, "scheduler": scheduler(kind), "low_res_scheduler": low_res}.items():
        part.save_pretrained(folder / name)  # a pipeline would mend a wrong scaling factor
    if scaling_factor == 0.08333:
        pipeline = StableDiffusionUpscalePipeline(
            **parts, scheduler=scheduler(kind), low_res_scheduler=low_res, max_noise_level=LEVELS
        )
        pipeline.save_pretrained(folder)
    return folder


def config(kind: str, folder: Path) -> UpscalerConfig:
    """Return the config of an upscaler that `save` wrote."""
    return UpscalerConfig(name=kind, source=str(folder), resolution=SIDE, max_noise_level=LEVELS)


def make(kind: str, folder: Path) -> Upscaler:
    """Return a random upscaler of a kind by way of a folder."""
    if not folder.exists():
        save(kind, folder)
    return load(config(kind, folder))
