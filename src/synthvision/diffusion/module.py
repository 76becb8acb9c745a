"""DreamBooth's training step. Every draw is keyed by (seed, step) and none comes from a global generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from synthvision.data.images import Pixels
from synthvision.diffusion import objective
from synthvision.diffusion.backbone import Backbone, Conditioning
from synthvision.diffusion.examples import Examples, draw_rows
from synthvision.diffusion.generate import contact_sheet
from synthvision.diffusion.recipe import DreamBoothConfig
from synthvision.diffusion.sampler import (
    denoise,
    derive_seed,
    draw_noise,
    encode_negatives,
    encode_prompts,
    to_pixels,
)
from synthvision.training import lr_factor

GUIDES, CLASSES, NOISE, GRID = 11, 12, 13, 14  # draw keys
CLIP_NORM = 1.0
GRID_COLUMNS = 4
LOSSES = ("total", "instance", "prior")


class DreamBooth(LightningModule):
    """Trains UNet and text encoder on guides and class images in one batch, towards `objective.dreambooth_loss`."""

    def __init__(
        self,
        backbone: Backbone,
        guides: Examples,
        classes: Examples | None,
        prompts: Sequence[str],
        config: DreamBoothConfig,
        seed: int,
        samples: Path,
    ) -> None:
        super().__init__()
        self.backbone, self.guides, self.classes, self.config = backbone, guides, classes, config
        self.seed, self.samples, self.prompts = seed, samples, list(prompts)
        self.unet = backbone.unet
        # Only what is trained becomes part of the module, and so of its checkpoints.
        self.text_encoders = nn.ModuleList(backbone.text_encoders if config.text_steps else ())
        self.tokens = backbone.tokenize(prompts)
        self.alphas_cumprod = backbone.alphas_cumprod()
        objective.check_schedule(self.alphas_cumprod, backbone.prediction_type)
        self.embeddings: Conditioning | None = None  # of all prompts, once the text encoder is frozen
        self.register_buffer("losses", torch.zeros(config.unet_steps, len(LOSSES)))
        self.losses: Tensor

    def configure_optimizers(self) -> Any:
        """AdamW with a group for the UNet and one for the text encoder, each with its own rate."""
        groups = [{"params": list(self.unet.parameters()), "lr": self.config.unet_lr}]
        if self.config.text_steps:
            groups.append({"params": list(self.text_encoders.parameters()), "lr": self.config.text_lr})
        # One fused kernel per step instead of a dozen per parameter.
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay, fused=True)
        totals = (self.config.unet_steps, self.config.text_steps)[: len(groups)]
        warmup, kind = self.config.warmup_steps, self.config.schedule
        factors: list[Callable[[int], float]] = [
            partial(lr_factor, warmup=warmup, total=total, schedule=kind) for total in totals
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Bring the schedule and the cached latents to where the model is."""
        self.backbone.to(self.device)
        self.alphas_cumprod = self.alphas_cumprod.to(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's names)
        """Draw the last step's grid, and freeze the text encoder after its last step; after a resume as well.

        A grid is drawn here and not when a step ends: then the checkpoint may be written before it, and a run that is
        killed in between would never draw it.
        """
        if self.global_step and self.global_step % self.config.sample_every == 0:
            self.sample(self.global_step)
        if self.embeddings is None and self.global_step >= self.config.text_steps:
            self._freeze_text()

    def _freeze_text(self) -> None:
        """Stop the text encoder for good. Zero gradients would not: momentum and decay still move weights."""
        optimizer: Any = self.optimizers()
        for encoder in self.backbone.text_encoders:
            encoder.requires_grad_(False)
            for parameter in encoder.parameters():
                parameter.grad = None
                optimizer.state.pop(parameter, None)
        with torch.no_grad():
            self.embeddings = self.backbone.encode_tokens(self.tokens)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's names)
        """One UNet call for guides and class images together."""
        step, config = self.global_step, self.config
        x_0, t, noise, prompt = self._draw(step)
        asked = objective.noised(x_0, noise, t, self.alphas_cumprod, self.backbone.prediction_type)
        prediction = self.backbone.predict(asked.x_t, t, self._conditioning(prompt))
        weights = None
        if config.min_snr_gamma is not None:
            kind = self.backbone.prediction_type
            weights = objective.min_snr_weight(t, self.alphas_cumprod, config.min_snr_gamma, kind)
        losses = objective.dreambooth_loss(prediction, asked.target, config.batch_size, config.prior_weight, weights)
        values = (losses.total, losses.instance, losses.prior)
        self.losses[step] = torch.stack(values).detach()
        self.log_dict(dict(zip((f"train/{name}_loss" for name in LOSSES), values, strict=True)))
        return losses.total

    def _draw(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_0 and noise (B, C, h, w), timesteps and rows of prompts (B,): guides first, class images after."""
        parts = [(self.guides, GUIDES)] + ([(self.classes, CLASSES)] if self.classes else [])
        size, timesteps = self.config.batch_size, len(self.alphas_cumprod)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, NOISE, step))
        normal = torch.randn((2, len(parts) * size, *self.backbone.latent_size), generator=generator).to(self.device)
        # One timestep from each of `size` equal ranges, for either half: the same mean, less scatter than free draws.
        uniform = torch.rand((len(parts), size), generator=generator, dtype=torch.float64)
        t = ((torch.arange(size) + uniform) / size * timesteps).long().clamp(max=timesteps - 1).flatten()
        x_0, prompts = [], []
        for part, (examples, key) in enumerate(parts):
            rows = draw_rows(len(examples.prompt), size, step, self.seed, key)
            x_0.append(examples.draw(rows.to(self.device), normal[0, part * size : (part + 1) * size]))
            prompts.append(examples.prompt[rows])
        return torch.cat(x_0), t.to(self.device), normal[1], torch.cat(prompts)

    def _conditioning(self, prompt: Tensor) -> Conditioning:
        if self.embeddings is not None:
            return self.embeddings.rows(prompt.to(self.device))
        distinct, row = torch.unique(prompt, return_inverse=True)  # each prompt of the batch is encoded once
        encoded = self.backbone.encode_tokens([tokens[distinct] for tokens in self.tokens])
        return encoded.rows(row.to(self.device))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Bound the gradient's norm over all that is trained. Lightning's own way refuses fused optimisers in bf16."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.log("train/gradient_norm", nn.utils.clip_grad_norm_(parameters, CLIP_NORM))

    def sample(self, step: int) -> None:
        """Write `step_00350.png`: guides' prompts above, class prompts below, the same noise in every grid."""
        shown = _spread([self.prompts[row] for row in self.guides.prompt.tolist()])
        if self.classes is not None:
            shown += _spread([self.prompts[row] for row in self.classes.prompt.tolist()])
        images = sample_grid(self.backbone, shown, self.config, self.seed)
        contact_sheet(images, GRID_COLUMNS, self.samples / f"step_{step:05}.png")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002 (Lightning's name)
        """Never replace a good checkpoint by one with lost numbers."""
        self.check_losses()

    def check_losses(self) -> None:
        """Raise FloatingPointError where a loss so far is not finite."""
        lost = (~torch.isfinite(self.losses[: self.global_step])).any(dim=1).nonzero()
        if len(lost):
            raise FloatingPointError(
                f"the loss at step {int(lost[0])} is not finite; lower dreambooth.unet_lr or dreambooth.text_lr. "
                "The last good checkpoint is kept"
            )


def sample_grid(backbone: Backbone, prompts: Sequence[str], config: DreamBoothConfig, seed: int) -> Pixels:
    """Return one image per prompt, uint8 (N, S, S, 3); image i's noise depends on (seed, i) alone."""
    with torch.no_grad():
        latents = denoise(
            backbone,
            draw_noise([derive_seed(seed, GRID, index) for index in range(len(prompts))], backbone.latent_size),
            encode_prompts(backbone, prompts).of(prompts),
            encode_negatives(backbone, [""]).of([""] * len(prompts)),
            config.sample_steps,
            config.guidance,
        )
        return to_pixels(backbone.decode(latents))


def _spread(prompts: Sequence[str]) -> list[str]:
    """Return GRID_COLUMNS of the prompts, evenly spread over the distinct ones, repeated where there are fewer."""
    distinct = list(dict.fromkeys(prompts))
    return [distinct[column * max(1, len(distinct) // GRID_COLUMNS) % len(distinct)] for column in range(GRID_COLUMNS)]
