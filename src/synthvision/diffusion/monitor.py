"""What a run says of itself: what it chose, how fast it is, and how much memory it took at its peak."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console

from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.optimizers import STATE_BYTES
from synthvision.diffusion.recipe import DreamBoothConfig
from synthvision.training import LOG_EVERY

FIRST = 1  # steps that are not timed: kernels are chosen and compiled in them


class Monitor(Callback):
    """Logs learning rates, samples per second and memory; keeps the peak and the mean speed.

    On a GPU memory is what torch had reserved at its peak since training began; on a CPU, the process's own.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch  # samples per step, over all processes
        self.peak = 0.0  # GB
        self.speed = 0.0  # samples per second, after the first step
        self._begin: tuple[float, int] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002 (Lightning's names)
        """Forget what encoding and class images took."""
        if pl_module.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log, now and then."""
        step, now = trainer.global_step, time.monotonic()
        if self._begin is None:
            self._begin = now, step
        elif step > self._begin[1]:
            self.speed = self.batch * (step - self._begin[1]) / max(now - self._begin[0], 1e-9)
        self.peak = max(self.peak, memory(pl_module.device))
        if step % LOG_EVERY == 0:
            rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
            named = zip(("unet", "text_encoder"), rates, strict=False)
            pl_module.log_dict({f"train/lr_{name}": rate for name, rate in named})
            pl_module.log_dict({"train/memory_gb": self.peak, "train/samples_per_second": self.speed})

    def metrics(self) -> dict[str, float]:
        """Return what the run reached."""
        return {"peak_memory_gb": round(self.peak, 3), "samples_per_second": round(self.speed, 3)}


def memory(device: torch.device) -> float:
    """Return GB in use: a GPU's peak so far, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9


def choices(backbone: Backbone, config: DreamBoothConfig) -> dict[str, str]:
    """Return in words what was chosen that bears on memory and speed."""
    parameters = [p for module in (backbone.unet, *backbone.text_encoders) for p in module.parameters()]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    per_weight = 4 + 4 + STATE_BYTES[config.optimizer]  # weight, gradient, optimizer's state
    return {
        "method": config.method if config.method == "full" else f"lora of rank {config.lora_rank}",
        "trained_parameters": f"{trained:,}",
        "static_memory_gb": f"{trained * per_weight / 1e9:.2f}",
        "optimizer": config.optimizer + (" (fused)" if config.optimizer == "adamw" else ""),
        "precision": "float32" if config.precision == "32-true" else "bfloat16 autocast over float32 weights",
        "gradient_checkpointing": "on" if config.gradient_checkpointing else "off",
        "compile": "on" if config.compile else "off",
        "ema": "off" if config.ema_decay is None else f"decay {config.ema_decay}",
        "caches": "latents; text embeddings from step " + str(config.text_steps),
        "devices": "1" if config.devices == 1 else f"{config.devices} ({config.strategy})",
    }


def say(chosen: dict[str, str]) -> None:
    """Print the choices in one line."""
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items())
    Console(stderr=True).print(f"training with {text}", highlight=False)
