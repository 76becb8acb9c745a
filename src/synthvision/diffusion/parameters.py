"""What of a backbone is trained, and what its training keeps in memory."""

from __future__ import annotations

from typing import Any

from synthvision.diffusion.adapters import add_adapters
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.recipe import DreamBoothConfig


def prepare(backbone: Backbone, config: DreamBoothConfig, seed: int) -> None:
    """Let the parameters that are trained want a gradient, and no other; in place."""
    if config.method == "lora":
        add_adapters(backbone, config.lora_rank, config.text_steps > 0, seed)
    else:
        backbone.unet.requires_grad_(True)
        for encoder in backbone.text_encoders:
            encoder.requires_grad_(config.text_steps > 0)
    if backbone.config.family == "sdxl":
        _freeze_unused(backbone.text_encoders[0])
    if config.gradient_checkpointing:
        backbone.unet.enable_gradient_checkpointing()
        for encoder in backbone.text_encoders if config.text_steps else ():
            _checkpoint(encoder)


def _freeze_unused(encoder: Any) -> None:
    """SDXL reads the first encoder's last state but one: what comes after gets no gradient, and would only decay."""
    inner = getattr(encoder, "text_model", encoder)
    inner.encoder.layers[-1].requires_grad_(False)
    inner.final_layer_norm.requires_grad_(False)


def _checkpoint(encoder: Any) -> None:
    # Newer versions of transformers warn of the older name.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})
