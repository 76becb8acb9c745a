"""Low-rank adapters (LoRA) beside the attention's weights: added before training, saved for others, merged after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save
from torch import Tensor, nn

from synthvision.artifact import write_bytes
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.sampler import derive_seed

LORA_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
INITIAL = 15  # draw key


def add_adapters(backbone: Backbone, rank: int, text: bool, seed: int) -> None:
    """Freeze the backbone and add adapters to the UNet and, where `text`, to the text encoders; in place.

    They begin without effect: one factor is drawn from `seed`, the other is zero.
    """
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(derive_seed(seed, INITIAL))
        _add(backbone.unet, rank, UNET_TARGETS)
        for encoder in backbone.text_encoders if text else ():
            _add(encoder, rank, TEXT_TARGETS)


def _add(model: Any, rank: int, targets: tuple[str, ...]) -> None:
    device = model.device
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
    model.add_adapter(config)
    model.to(device)


def has_adapters(model: nn.Module) -> bool:
    """Tell whether a model has adapters beside its weights."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def save_adapters(backbone: Backbone, folder: Path) -> Path:
    """Write the adapters as one safetensors file in kohya's format, which diffusers' `load_lora_weights` reads too.

    Keys are `lora_unet_*`, `lora_te_*` (SDXL: `lora_te1_*`, `lora_te2_*`) with `.lora_down.weight`, `.lora_up.weight`
    and `.alpha`. Nothing but weights is in the file: no path, no caption, no name.
    """
    layers = {f"unet.{name}": value for name, value in _adapters_of(backbone.unet).items()}
    for number, encoder in enumerate(backbone.text_encoders):
        if has_adapters(encoder):
            prefix = "text_encoder" if number == 0 else f"text_encoder_{number + 1}"
            # CLIPTextModel has lost its inner `text_model`; files and other programs keep it.
            named = {name.removeprefix("text_model."): value for name, value in _adapters_of(encoder).items()}
            layers |= {f"{prefix}.text_model.{name}": value for name, value in named.items()}
    kohya = convert_state_dict_to_kohya(layers)
    if len(backbone.text_encoders) == 1:
        kohya = {name.replace("lora_te1_", "lora_te_"): value for name, value in kohya.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in sorted(kohya.items())}
    write_bytes(folder / LORA_FILE, save(tensors, metadata={"format": "pt"}))
    return folder / LORA_FILE


def _adapters_of(model: nn.Module) -> dict[str, Tensor]:
    # Without embeddings, which are not trained: to look for them, peft would ask the Hub.
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def merge_adapters(backbone: Backbone) -> None:
    """Add the adapters' product to the weights and take them away: what is left is a plain backbone; in place."""
    for model in (backbone.unet, *backbone.text_encoders):
        if has_adapters(model):
            for module in model.modules():
                if isinstance(module, BaseTunerLayer):
                    module.merge()
            recurse_remove_peft_layers(model)
            model._hf_peft_config_loaded = False
            del model.peft_config
