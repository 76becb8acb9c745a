"""Small random diffusion models of the real classes, saved as folders and loaded with the real code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from synthvision.diffusion.backbone import Backbone, BackboneConfig, load

KINDS = ("tiny", "sd15", "sd21", "sdxl")
SIDE = 16
WIDTH = 16
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def scheduler(kind: str) -> Any:
    """Return the scheduler that a model of this kind is published with."""
    if kind == "sd15":
        return PNDMScheduler(**SCHEDULE, skip_prk_steps=True, prediction_type="epsilon")
    if kind == "sd21":
        return DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    if kind == "sdxl":
        return EulerDiscreteScheduler(**SCHEDULE, prediction_type="epsilon")
    trailing = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DPMSolverMultistepScheduler(**SCHEDULE, **trailing, prediction_type="v_prediction")


def tokenizer(limit: int = 32) -> CLIPTokenizer:
    """Return a CLIP tokenizer that spells: one token per byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=limit)


def save(kind: str, folder: Path) -> Path:
    """Write a random model of a kind as a diffusers folder."""
    torch.manual_seed(KINDS.index(kind))
    xl = kind == "sdxl"
    channels = 8 if kind == "tiny" else 4
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=1,
        mid_block_add_attention=False,
        scaling_factor=1.0 if kind == "tiny" else 0.18215,
        sample_size=SIDE,
    )
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    }
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=2 * WIDTH if xl else WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
        **(added if xl else {}),
    )
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    parts = {"vae": vae, "unet": unet, "text_encoder": CLIPTextModel(text), "tokenizer": words}
    if xl:
        second = {"text_encoder_2": CLIPTextModelWithProjection(text), "tokenizer_2": tokenizer()}
        pipeline = StableDiffusionXLPipeline(**parts, **second, scheduler=scheduler(kind), add_watermarker=False)
    else:
        optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **optional, scheduler=scheduler(kind))
    pipeline.save_pretrained(folder)
    return folder


def config(kind: str, folder: Path) -> BackboneConfig:
    """Return the config of a model that `save` wrote."""
    return BackboneConfig(name=kind, source=str(folder), resolution=SIDE, family="sdxl" if kind == "sdxl" else "sd")


def make(kind: str, folder: Path) -> Backbone:
    """Return a random backbone of a kind by way of a folder."""
    if not folder.exists():
        save(kind, folder)
    return load(config(kind, folder))
