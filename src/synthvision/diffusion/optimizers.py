"""The optimizers that training may choose among, and what each costs in memory."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 1}  # per trained parameter; Adafactor's is less than one


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimizer that cannot run here.

    Raises:
        ValueError: 8-bit AdamW without a GPU or without bitsandbytes.
    """
    if name != "adamw8bit":
        return
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "dreambooth.optimizer=adamw8bit needs the package bitsandbytes: pip install 'synthvision[gpu]', "
            "or choose adafactor or adamw"
        )
    if device.type != "cuda":
        raise ValueError("dreambooth.optimizer=adamw8bit needs a GPU; there is none. Choose adafactor or adamw")


def new_optimizer(name: str, groups: Sequence[dict[str, Any]], weight_decay: float) -> Optimizer:
    """Return an optimizer over groups of {"params", "lr"}."""
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # The learning rate is the config's: neither relative to the step nor scaled by the weights.
        fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        return Adafactor(groups, weight_decay=weight_decay, **fixed)  # type: ignore[no-any-return]  # transformers'
    if name == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, weight_decay=weight_decay)  # type: ignore[no-any-return]  # an extra
    # One fused kernel per step instead of a dozen per parameter.
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def clip(parameters: Sequence[nn.Parameter], norm: float) -> Tensor:
    """Bound the norm of all gradients together; return what it was, float ()."""
    total = nn.utils.clip_grad_norm_(parameters, norm)
    return total.full_tensor() if hasattr(total, "full_tensor") else total
