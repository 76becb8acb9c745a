"""Weights spread over processes (PyTorch's FSDP2), and gathered again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from synthvision.diffusion.backbone import Backbone


def shard(models: Sequence[nn.Module], mesh: Any) -> None:
    """Spread each model's weights over the processes of a device mesh, block by block; in place."""
    for model in models:
        for name, block in model.named_modules():
            if name.count(".") == 1 and name.split(".")[0] in ("down_blocks", "up_blocks"):
                fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(model, mesh=mesh["data_parallel"])


def whole_backbone(backbone: Backbone) -> Backbone | None:
    """Return a copy with all weights, on the CPU, on rank 0; None on the others, which must call this too."""
    unet = _gathered(backbone.unet)
    texts = [_gathered(encoder) for encoder in backbone.text_encoders]
    if torch.distributed.get_rank():
        return None
    new_unet = type(backbone.unet).from_config(backbone.unet.config)
    encoders = []
    for encoder, state in zip(backbone.text_encoders, texts, strict=True):
        encoders.append(type(encoder)(encoder.config))
        encoders[-1].load_state_dict(state)
    new_unet.load_state_dict(unet)
    return replace(backbone, unet=new_unet, text_encoders=tuple(encoders))


def _gathered(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for name, value in model.state_dict().items()
    }
