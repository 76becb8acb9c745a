"""Train the embedded tiny ViT on phantoms without the lesion class: which benign marks are where.

The papers' ViTs start from ImageNet weights; this is the tiny one's counterpart. Labels are benign marks: of the whole
picture at the class token, of each quarter of a patch at its own token. Dense labels teach a small network more from
each picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pixel_shuffle
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.functional.classification import multilabel_auroc

from synthvision.classification.model import ModelConfig, as_input, build, save_weights
from synthvision.data.phantom import Pool, draw_pool
from synthvision.data.skin import MARKS
from synthvision.training import fit_steps

HELD_OUT = 500  # phantoms outside the pool


@dataclass(frozen=True)
class VitPretrainConfig:
    """How the tiny ViT is trained.

    Raises:
        ValueError: a number is not positive.
    """

    model: ModelConfig
    images: int  # phantoms in the pool
    steps: int
    lr: float
    batch_size: int
    checkpoint_every: int  # steps

    def __post_init__(self) -> None:
        for name in ("images", "steps", "lr", "batch_size", "checkpoint_every"):
            if getattr(self, name) <= 0:
                raise ValueError(f"pretrain_vit.{name} must be positive; it is {getattr(self, name)}")


def pretrain_vit(
    config: VitPretrainConfig, out: Path, work: Path, seed: int, logger: Logger | None = None
) -> dict[str, float]:
    """Train the ViT and save it as `out/model.safetensors` in fp16.

    Returns:
        AUC of each mark's presence in phantoms outside the pool.
    """
    torch.manual_seed(seed)  # initial weights
    module = MarkTraining(config, draw_pool(config.images, seed), seed)
    # bf16 halves the time on processors that have it; the master weights stay fp32.
    fit_steps(module, config.steps, work, config.checkpoint_every, logger, precision="bf16-mixed", gradient_clip=1.0)
    save_weights(module.vit, out, half=True)
    return module.presence_auc(draw_pool(HELD_OUT, seed + 1))


class MarkTraining(LightningModule):
    """Predicts marks from the class token (B, kinds) and, as 2x2 cells, from each patch token (B, kinds, 16, 16)."""

    def __init__(self, config: VitPretrainConfig, pool: Pool, seed: int) -> None:
        super().__init__()
        self.config, self.pool, self.seed = config, pool, seed
        vit: Any = build(config.model, len(MARKS))
        for layer in vit.modules():
            if hasattr(layer, "fused_attn"):
                layer.fused_attn = False  # on a CPU the fused kernel's backward is slow in bf16
        self.vit, self.patch_head = vit, nn.Linear(vit.num_features, 4 * len(MARKS))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.vit.forward_features(images)  # (B, 1 + 64, width)
        patches = self.patch_head(tokens[:, 1:]).transpose(1, 2).unflatten(2, (8, 8))  # (B, 4 * kinds, 8, 8)
        return self.vit.forward_head(tokens), pixel_shuffle(patches, 2)

    def training_step(self, _: Any) -> Tensor:
        rng = np.random.default_rng([self.seed, 3, self.global_step])
        chosen = rng.integers(len(self.pool.images), size=self.config.batch_size)
        images, where = pixels(self.pool.images[chosen]), torch.from_numpy(self.pool.where[chosen]).float()
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        images, where = (torch.rot90(x.flip(3) if mirrored else x, turns, (2, 3)) for x in (images, where))
        gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 3, 1, 1))).float()
        present, patches = self(as_input((images * gain).clamp(0, 1), self.vit))
        loss = binary_cross_entropy_with_logits(present, where.amax((2, 3)))
        loss = loss + binary_cross_entropy_with_logits(patches, where)
        self.log("vit/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config.lr, weight_decay=0.05)

        def factor(step: int) -> float:
            done = min(step / self.config.steps, 1)
            return min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    @torch.no_grad()
    def presence_auc(self, pool: Pool) -> dict[str, float]:
        """Return for each kind of mark the AUC of its presence."""
        self.eval()
        scores = torch.cat([self(as_input(batch, self.vit))[0] for batch in torch.split(pixels(pool.images), 100)])
        present = torch.from_numpy(pool.where.max((2, 3))).long()
        values = multilabel_auroc(scores, present, num_labels=len(MARKS), average="none")
        return {f"auc/{kind.replace(' ', '_')}": float(value) for kind, value in zip(MARKS, values, strict=True)}


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
