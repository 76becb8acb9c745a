"""Write Stable Diffusion 1.5 and SDXL with random weights: the real shapes, or the same made narrower.

Speed and memory depend on shapes, not on what was learnt; nothing has to be downloaded. Shapes are those of the
published configs. The tokenizer is the tiny backbone's, whose words are fewer; the text encoders' tables have their
real size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from synthvision.diffusion.backbone import PACKAGE_WEIGHTS

KINDS = {"sd15": "sd", "sdxl": "sdxl"}  # kind -> family
TOKENS = 77
GROUPS = 32  # that channels are normalised in
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
HIDDEN, LAYERS, HEADS = (768, 1280), (12, 32), (12, 20)  # of SDXL's text encoders; SD1.5 has the first alone


def write(kind: str, folder: Path, narrower: int = 1) -> Path:
    """Write a diffusers folder, float32.

    Args:
        kind: a key of KINDS.
        folder: its name.
        narrower: what all widths are divided by, a power of two up to 16; depths, tokens and latents stay.
    """
    torch.manual_seed(0)
    xl = kind == "sdxl"
    words = CLIPTokenizer.from_pretrained(PACKAGE_WEIGHTS / "tiny" / "tokenizer", model_max_length=TOKENS)
    texts = [_text(words, number, narrower) for number in range(2 if xl else 1)]
    noise = DDPMScheduler(**SCHEDULE, clip_sample=False)
    parts: dict[str, Any] = {"vae": _vae(xl, narrower), "unet": _unet(xl, texts, narrower), "scheduler": noise}
    parts |= {"text_encoder": CLIPTextModel(texts[0]), "tokenizer": words}
    if xl:
        second = CLIPTextModelWithProjection(texts[1])
        StableDiffusionXLPipeline(
            **parts, text_encoder_2=second, tokenizer_2=words, add_watermarker=False
        ).save_pretrained(folder)
    else:
        StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ).save_pretrained(folder)
    return folder


def _text(words: CLIPTokenizer, number: int, narrower: int) -> CLIPTextConfig:
    width = HIDDEN[number] // narrower
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=LAYERS[number], num_attention_heads=HEADS[number] if narrower == 1 else 4,
        max_position_embeddings=TOKENS, hidden_act="gelu" if number else "quick_gelu",
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip


def _vae(xl: bool, narrower: int) -> AutoencoderKL:
    widths = tuple(width // narrower for width in (128, 256, 512, 512))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths, layers_per_block=2, latent_channels=4, norm_num_groups=GROUPS // narrower,
        sample_size=1024 if xl else 512, scaling_factor=0.13025 if xl else 0.18215,
    )  # fmt: skip


def _unet(xl: bool, texts: list[CLIPTextConfig], narrower: int) -> UNet2DConditionModel:
    plain, crossed = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    kinds = [plain, crossed, crossed] if xl else [crossed, crossed, crossed, plain]
    widths = tuple(width // narrower for width in ((320, 640, 1280) if xl else (320, 640, 1280, 1280)))
    more: dict[str, Any] = {"attention_head_dim": 8}  # diffusers' name for the number of heads
    if xl:
        more = {
            "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
            "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + texts[-1].projection_dim,
        }  # fmt: skip
    return UNet2DConditionModel(
        sample_size=128 if xl else 64, down_block_types=tuple(down for down, _ in kinds),
        up_block_types=tuple(up for _, up in reversed(kinds)), block_out_channels=widths, layers_per_block=2,
        cross_attention_dim=sum(text.hidden_size for text in texts), norm_num_groups=GROUPS // narrower, **more,
    )  # fmt: skip
