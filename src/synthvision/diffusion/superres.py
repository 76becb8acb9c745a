"""Teach an x4 upscaler how a subject's small pictures are to be enlarged, from pairs made of its guides.

A pair is a large picture and a small one made from it, by bicubic or as a camera would leave it. The small one gets
noise of a random level below `max_noise_level`, which the UNet is told as its class label; the latents of the large one
get noise of a random timestep; the UNet learns the target of the scheduler, v in the published upscaler. Text encoder
and VAE are frozen.

Every draw is keyed by (seed, step) and none comes from a global generator, so that a training that was killed at any
step and resumed ends, on the CPU, with the same bits as one that was not.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from synthvision.artifact import write_text
from synthvision.data.images import Pixels, read_rgb
from synthvision.diffusion import objective
from synthvision.diffusion.backbone import Latents
from synthvision.diffusion.degradation import small_of
from synthvision.diffusion.examples import draw_rows
from synthvision.diffusion.sampler import derive_seed, to_tensor
from synthvision.diffusion.upscaler import Upscaler
from synthvision.manifest import Manifest
from synthvision.training import SCHEDULES, best_device, fit_steps, lr_factor

ROWS, NOISE, SMALL = 21, 22, 23  # draw keys
CLIP_NORM = 1.0
ENCODED = 2**20  # pixels encoded at once: four pictures of 512 x 512
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class SuperResConfig:
    """How an upscaler is trained.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    steps: int
    lr: float
    batch_size: int
    warmup_steps: int
    schedule: str  # after the warm-up: "constant", or "cosine" down to 0 at the last step
    weight_decay: float
    degraded: float  # share of the pairs whose small picture is blurred, noisy and compressed; the others are bicubic
    empty_captions: float  # share trained without a caption, for classifier-free guidance
    augment: bool  # the 8 flips and rotations of each picture
    checkpoint_every: int
    precision: str  # one of PRECISIONS

    def __post_init__(self) -> None:
        for key in ("warmup_steps", "weight_decay"):
            self._require(getattr(self, key) >= 0, key, "at least 0")
        for key in ("steps", "batch_size", "checkpoint_every"):
            self._require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("degraded", "empty_captions"):
            self._require(0 <= getattr(self, key) <= 1, key, "a share between 0 and 1")
        self._require(self.lr > 0, "lr", "above 0")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        self._require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"superres.training.{key} must be {rule}; it is {getattr(self, key)!r}")


@dataclass(frozen=True)
class Pairs:
    """Large pictures, encoded once per picture and view; their small ones are made anew in each step."""

    large: Pixels  # (N, S, S, 3)
    latents: Latents  # (N, C, S/4, S/4)
    caption: Tensor  # int64 (N,): row of its text; row 0 is the empty one


@dataclass(frozen=True)
class SuperResResult:
    """What training left: the weights folder, the loss curve, and the loss's mean over the last tenth of the steps."""

    weights: Path
    losses: Path  # CSV: step, loss
    final: float


class SuperRes(LightningModule):
    """Trains an upscaler's UNet towards the scheduler's target."""

    def __init__(self, upscaler: Upscaler, pairs: Pairs, texts: Tensor, config: SuperResConfig, seed: int) -> None:
        super().__init__()
        self.upscaler, self.pairs, self.texts, self.config, self.seed = upscaler, pairs, texts, config, seed
        self.unet = upscaler.unet  # only what is trained becomes part of the module, and so of its checkpoints
        self.alphas_cumprod = upscaler.alphas_cumprod()
        self.levels = upscaler.low_res_alphas_cumprod()
        objective.check_schedule(self.alphas_cumprod, upscaler.prediction_type)
        self.register_buffer("losses", torch.zeros(config.steps))
        self.losses: Tensor

    def configure_optimizers(self) -> Any:
        """AdamW with one fused kernel per step instead of a dozen per parameter."""
        config = self.config
        decay = config.weight_decay
        optimizer = torch.optim.AdamW(self.unet.parameters(), lr=config.lr, weight_decay=decay, fused=True)
        factor = partial(lr_factor, warmup=config.warmup_steps, total=config.steps, schedule=config.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Bring schedules and texts to where the model is."""
        self.upscaler.to(self.device)
        self.alphas_cumprod, self.levels = self.alphas_cumprod.to(self.device), self.levels.to(self.device)
        self.texts = self.texts.to(self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's names)
        """Mean squared error of the UNet's prediction."""
        step, size, timesteps = self.global_step, self.config.batch_size, len(self.alphas_cumprod)
        rows = draw_rows(len(self.pairs.large), size, step, self.seed, ROWS)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, NOISE, step))
        uniform = torch.rand((3, size), generator=generator, dtype=torch.float64)
        # One timestep from each of `size` equal ranges: the same mean, less scatter than free draws.
        t = ((torch.arange(size) + uniform[0]) / size * timesteps).long().clamp(max=timesteps - 1).to(self.device)
        level = (uniform[1] * len(self.levels)).long().to(self.device)
        caption = torch.where(uniform[2] < self.config.empty_captions, 0, self.pairs.caption[rows])
        x_0, noise = self._latents(rows, generator)
        small = self._small(rows, level, generator)
        asked = objective.noised(x_0, noise, t, self.alphas_cumprod, self.upscaler.prediction_type)
        prediction = self.upscaler.predict(asked.x_t, small, t, level, self.texts[caption.to(self.device)])
        loss = (prediction.float() - asked.target).square().mean()
        self.losses[step] = loss.detach()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _latents(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a sample of the encoder's Gaussian and as much noise, float32 (B, C, h, w) each."""
        mean, std = self.pairs.latents.mean[rows], self.pairs.latents.std[rows]
        normal = torch.randn((2, *mean.shape), generator=generator)
        return (mean + std * normal[0]).to(self.device), normal[1].to(self.device)

    def _small(self, rows: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        """Return small pictures with noise of each one's level, float32 (B, 3, h, w)."""
        draws = [np.random.default_rng([self.seed, SMALL, self.global_step, place]) for place in range(len(rows))]
        pictures = [
            small_of(self.pairs.large[row], self.config.degraded, rng)
            for row, rng in zip(rows.tolist(), draws, strict=True)
        ]
        small = to_tensor(np.stack(pictures))
        noise = torch.randn(small.shape, generator=generator)
        return objective.add_noise(small.to(self.device), noise.to(self.device), level, self.levels)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002 (Lightning's name)
        """Bound the gradient's norm. Lightning's own way refuses fused optimisers in bf16."""
        self.log("train/gradient_norm", nn.utils.clip_grad_norm_(self.unet.parameters(), CLIP_NORM))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002 (Lightning's name)
        """Never replace a good checkpoint by one with lost numbers."""
        self.check_losses()

    def check_losses(self) -> None:
        """Raise FloatingPointError where a loss so far is not finite."""
        lost = (~torch.isfinite(self.losses[: self.global_step])).nonzero()
        if len(lost):
            raise FloatingPointError(
                f"the loss at step {int(lost[0])} is not finite; lower superres.training.lr. The last good checkpoint "
                "is kept"
            )


def train(
    upscaler: Upscaler,
    guides: Manifest,
    config: SuperResConfig,
    out: Path,
    work: Path,
    seed: int,
    logger: Logger | None = None,
) -> SuperResResult:
    """Fine-tune an upscaler, in place, and write `out/weights` and `out/losses.csv`.

    Args:
        upscaler: moved to the GPU where there is one.
        guides: real images with captions; order does not matter. Larger ones than the upscaler's resolution are cut
            into squares of it, which overlap where they must.
        config: how.
        out: the stage's folder.
        work: its resumable state.
        seed: of every draw.
        logger: takes losses and gradient norms; None logs nowhere.

    Raises:
        ValueError: no guides, a guide without caption, or guides smaller than the upscaler's resolution.
        FloatingPointError: a loss was not finite.
    """
    check_guides(guides, upscaler.config.resolution)
    large, captions = _crops(guides, upscaler.config.resolution)
    losses = fit(upscaler, large, captions, config, work, seed, logger)
    upscaler.save(out / "weights")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", "loss"))
    writer.writerows((step + 1, f"{value:.6g}") for step, value in enumerate(losses))
    write_text(out / "losses.csv", text.getvalue())
    return SuperResResult(out / "weights", out / "losses.csv", float(np.mean(losses[-math.ceil(len(losses) / 10) :])))


def fit(
    upscaler: Upscaler,
    large: Pixels,
    captions: Sequence[str],
    config: SuperResConfig,
    work: Path,
    seed: int,
    logger: Logger | None = None,
) -> list[float]:
    """Train an upscaler's UNet, in place, on large pictures, uint8 (N, S, S, 3), and return each step's loss."""
    device = best_device()
    upscaler.to(device)
    if config.augment:
        large = np.concatenate([np.stack(_views(image)) for image in large])
        captions = [caption for caption in captions for _ in range(8)]
    texts = list(dict.fromkeys(["", *captions]))
    pairs = Pairs(large, _encode(upscaler, large), torch.tensor([texts.index(caption) for caption in captions]))
    module = SuperRes(upscaler, pairs, upscaler.encode_text(texts), config, seed)
    module.train()
    fit_steps(module, config.steps, work, config.checkpoint_every, logger, device.type, config.precision)
    module.eval()
    module.check_losses()
    values: list[float] = module.losses.tolist()
    return values


def _encode(upscaler: Upscaler, large: Pixels) -> Latents:
    """Return the latents of large pictures, on the CPU."""
    batch = max(1, ENCODED // large.shape[1] ** 2)
    encoded = [upscaler.encode_images(to_tensor(large[i : i + batch])) for i in range(0, len(large), batch)]
    mean, std = (torch.cat([getattr(part, name).cpu() for part in encoded]) for name in ("mean", "std"))
    return Latents(mean, std)


def check_guides(guides: Manifest, side: int) -> None:
    """Refuse guides that large pictures with sides of `side` pixels cannot be cut from.

    Raises:
        ValueError: there are none, one has no caption, or one is too small.
    """
    if not len(guides):
        raise ValueError("no guides to train on; put 10 to 15 captioned images in the folder that disease.guides names")
    for record in guides:
        if not record.caption.strip():
            raise ValueError(f"guide {record.image_id} has no caption; write one line into the .txt beside the image")
        height, width = read_rgb(guides.file(record)).shape[:2]
        if min(height, width) < side:
            raise ValueError(
                f"guide {record.image_id} is {width} x {height} pixels; superres needs large pictures of at least "
                f"superres.upscaler.resolution={side}. Set dataset.size to {side} or more, from files that are as large"
            )


def _crops(guides: Manifest, side: int) -> tuple[Pixels, list[str]]:
    """Return squares that cover every guide, uint8 (N, side, side, 3), and each one's caption."""
    squares, captions = [], []
    for record in sorted(guides, key=lambda record: record.image_id):
        image = read_rgb(guides.file(record))
        found = [image[top : top + side, left : left + side] for top, left in _corners(image, side)]
        squares += found
        captions += [record.caption.strip()] * len(found)
    return np.stack(squares), captions


def _corners(image: Pixels, side: int) -> list[tuple[int, int]]:
    """Return the upper left corners of the fewest squares that cover a picture, evenly spread."""
    tops, lefts = (
        np.linspace(0, length - side, math.ceil(length / side)).round().astype(int).tolist()
        for length in image.shape[:2]
    )
    return [(top, left) for top in tops for left in lefts]


def _views(image: Pixels) -> list[Pixels]:
    """Return the image, its mirror image, and the quarter turns of both: eight, uint8 (S, S, 3) each."""
    return [np.rot90(side, turns) for turns in range(4) for side in (image, image[:, ::-1])]
