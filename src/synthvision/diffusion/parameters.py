"""What of a backbone is trained, and what its training keeps in memory."""

from __future__ import annotations

from typing import Any

from synthvision.diffusion.adapters import add_adapters, has_adapters
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


def rebuilt(encoder: Any, config: DreamBoothConfig) -> Any:
    """Return an equal text encoder made by its constructor.

    transformers registers a model there, and one that was sent from another process, and so was not constructed in this
    one, gives no hidden states.
    """
    new = type(encoder)(encoder.config)
    if has_adapters(encoder):
        new.add_adapter(encoder.peft_config["default"])
    new.load_state_dict(encoder.state_dict())
    for ours, theirs in zip(new.parameters(), encoder.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    if config.gradient_checkpointing and config.text_steps:
        _checkpoint(new)
    return new


def _freeze_unused(encoder: Any) -> None:
    """SDXL reads the first encoder's last state but one: what comes after gets no gradient, and would only decay."""
    inner = getattr(encoder, "text_model", encoder)
    inner.encoder.layers[-1].requires_grad_(False)
    inner.final_layer_norm.requires_grad_(False)


def _checkpoint(encoder: Any) -> None:
    # Newer versions of transformers warn of the older name.
    enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})
