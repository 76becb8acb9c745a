"""Pretraining of the upscaler: what it saves is small, opens as a pipeline, and shares the backbone's parts."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline
from safetensors.torch import load_file
from test_superres import CONFIG

from synthvision.data.images import read_rgb
from synthvision.diffusion.backbone import PACKAGE_WEIGHTS
from synthvision.diffusion.pretrain_upscaler import UpscalerPretrainConfig, pretrain_upscaler

TINY = PACKAGE_WEIGHTS / "tiny"


def test_saves_a_pipeline_in_half_precision_of_at_most_6_mb(tmp_path: Path) -> None:
    config = UpscalerPretrainConfig(8, CONFIG)
    metrics = pretrain_upscaler(config, TINY, tmp_path / "out", tmp_path / "work", seed=3)
    pipeline = StableDiffusionUpscalePipeline.from_pretrained(tmp_path / "out", dtype=torch.float16)
    assert (pipeline.unet.dtype, pipeline.vae.config.scaling_factor) == (torch.float16, 0.08333)
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*")) <= 6e6
    assert read_rgb(tmp_path / "out" / "samples.png").shape == (4 * 64, 6 * 64, 3)
    assert metrics["upscaler/psnr_bicubic"] > 35
    assert 0 < metrics["upscaler/loss"] < 2
    text = "text_encoder/model.safetensors"
    kept, base = load_file(tmp_path / "out" / text), load_file(TINY / text)
    assert all(torch.equal(kept[name], value) for name, value in base.items())


def test_there_must_be_images() -> None:
    with pytest.raises(ValueError, match=r"pretrain\.upscaler\.images must be at least 1; it is 0"):
        UpscalerPretrainConfig(0, CONFIG)
