"""DreamBooth: teach a backbone one subject from a few captioned guides, and keep what it knew of the class.

Every draw is keyed by (seed, step) and none comes from a global generator, so that a training that was killed at any
step and resumed ends, on the CPU, with the same bits as one that was not.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from synthvision.artifact import write_text
from synthvision.data.images import Pixels, load_batch
from synthvision.diffusion import objective
from synthvision.diffusion.backbone import Backbone, Conditioning
from synthvision.diffusion.examples import Examples, draw_rows, encode
from synthvision.diffusion.generate import GenerationConfig, contact_sheet, generate
from synthvision.diffusion.prompts import Prompt
from synthvision.diffusion.sampler import (
    denoise,
    derive_seed,
    draw_noise,
    encode_negatives,
    encode_prompts,
    to_pixels,
)
from synthvision.manifest import Manifest
from synthvision.training import SCHEDULES, best_device, fit_steps, lr_factor

GUIDES, CLASSES, NOISE, GRID = 11, 12, 13, 14  # draw keys
CLIP_NORM = 1.0
GRID_COLUMNS = 4
PRECISIONS = ("32-true", "bf16-mixed")
LOSSES = ("total", "instance", "prior")


@dataclass(frozen=True)
class DreamBoothConfig:
    """How a backbone is personalised. No steps at all is the control: the base itself.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    unet_steps: int
    unet_lr: float
    text_steps: int  # after these the text encoder is frozen for good
    text_lr: float
    batch_size: int  # guides per step; as many class images come on top
    prior_weight: float  # 0: no prior preservation
    class_images: int
    checkpoint_every: int
    sample_every: int
    warmup_steps: int
    schedule: str  # after the warm-up: "constant", or "cosine" down to 0 at each part's last step
    min_snr_gamma: float | None  # None: all timesteps weigh the same
    augment: bool  # the 8 flips and rotations of each guide, and class images mirrored
    weight_decay: float
    precision: str  # one of PRECISIONS
    guidance: float  # of class images and sample grids
    sample_steps: int  # of class images and sample grids

    def __post_init__(self) -> None:
        for key in ("unet_steps", "text_steps", "warmup_steps", "class_images", "prior_weight", "weight_decay"):
            self._require(getattr(self, key) >= 0, key, "at least 0")
        for key in ("batch_size", "checkpoint_every", "sample_every", "sample_steps", "guidance"):
            self._require(getattr(self, key) >= 1, key, "at least 1")
        for key in ("unet_lr", "text_lr"):
            self._require(getattr(self, key) > 0, key, "above 0")
        self._require(self.text_steps <= self.unet_steps, "text_steps", f"at most unet_steps={self.unet_steps}")
        self._require(self.min_snr_gamma is None or self.min_snr_gamma > 0, "min_snr_gamma", "null or above 0")
        self._require(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
        self._require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}")
        self._require(self.class_images > 0 or not self.prior_weight, "class_images", "above 0, or prior_weight 0")

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"dreambooth.{key} must be {rule}; it is {getattr(self, key)!r}")


@dataclass(frozen=True)
class Subject:
    """What is taught, in words.

    Raises:
        ValueError: the prompts break a rule; the message names key, rule and value.
    """

    identifier: str  # a word the backbone attaches no meaning to, e.g. "sks"
    instance_prompt: str
    class_prompt: str

    def __post_init__(self) -> None:
        if not self.identifier.strip():
            raise ValueError("subject.identifier must be a rare word such as 'sks'; it is empty")
        if not self.names(self.instance_prompt):
            raise ValueError(
                f"subject.instance_prompt must contain the identifier {self.identifier!r}; "
                f"it is {self.instance_prompt!r}"
            )
        self.check_class_prompt(self.class_prompt)

    def names(self, text: str) -> bool:
        """Tell whether the identifier is one of a text's words."""
        return re.search(rf"(?<!\w){re.escape(self.identifier)}(?!\w)", text, re.IGNORECASE) is not None

    def check_class_prompt(self, prompt: str) -> None:
        """Refuse a class prompt that is empty or speaks of the subject itself."""
        if not prompt.strip() or self.names(prompt):
            raise ValueError(
                f"a class prompt must describe the class without the identifier {self.identifier!r}; it is {prompt!r}"
            )

    def caption(self, text: str) -> str:
        """Return a guide's caption with the subject named: as it is, or after the instance prompt."""
        return text if self.names(text) else f"{self.instance_prompt}, {text}"


@dataclass(frozen=True)
class DreamBoothResult:
    """What training left: the weights folder, the loss curve and the sample grids, oldest first."""

    weights: Path
    losses: Path | None  # CSV: step, total, instance, prior; None for the control
    grids: tuple[Path, ...]
    final: dict[str, float]  # mean of each loss over the last tenth of the steps; empty for the control


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


def train(
    backbone: Backbone,
    guides: Manifest,
    subject: Subject,
    class_prompts: Sequence[str],
    config: DreamBoothConfig,
    out: Path,
    work: Path,
    seed: int,
    logger: Logger | None = None,
) -> DreamBoothResult:
    """Personalise a backbone, in place, and write `out/weights`, `out/losses.csv` and `out/samples/step_*.png`.

    Args:
        backbone: moved to the GPU where there is one.
        guides: real images with captions; order does not matter.
        subject: the identifier and its prompts.
        class_prompts: for the class images, in turn; empty: the subject's class prompt alone.
        config: how.
        out: the stage's folder.
        work: its resumable state; class images and the last checkpoint. Must lie in it between calls to resume.
        seed: of every draw.
        logger: takes losses and learning rates; None logs nowhere.

    Raises:
        ValueError: no guides, a guide without caption, or a class prompt that names the identifier.
        FloatingPointError: a loss was not finite.
    """
    captions = _captions(guides, subject)
    class_prompts = list(class_prompts) or [subject.class_prompt]
    for prompt in class_prompts:
        subject.check_class_prompt(prompt)
    if not config.unet_steps:
        backbone.save(out / "weights")
        return DreamBoothResult(out / "weights", None, (), {})
    backbone.to(best_device())
    pictures = _class_pictures(backbone, class_prompts, config, work, seed) if config.prior_weight else None
    prompts = list(dict.fromkeys([*captions, *(pictures.column("prompt") if pictures else ())]))
    side = backbone.config.resolution
    instance = encode(backbone, load_batch(_in_order(guides), side), captions, prompts, 8 if config.augment else 1)
    prior = None
    if pictures:
        views = 2 if config.augment else 1
        prior = encode(backbone, load_batch(pictures, side), pictures.column("prompt"), prompts, views)
    module = DreamBooth(backbone, instance, prior, prompts, config, seed, out / "samples")
    module.train()
    fit_steps(module, config.unet_steps, work, config.checkpoint_every, logger, best_device().type, config.precision)
    module.eval()
    return _finish(module, out)


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


def _in_order(guides: Manifest) -> Manifest:
    return Manifest(tuple(sorted(guides, key=lambda record: record.image_id)), guides.root)


def _captions(guides: Manifest, subject: Subject) -> list[str]:
    if not len(guides):
        raise ValueError("no guides to train on; put 10 to 15 captioned images in the folder that disease.guides names")
    for record in guides:
        if not record.caption.strip():
            raise ValueError(f"guide {record.image_id} has no caption; write one line into the .txt beside the image")
    return [subject.caption(record.caption.strip()) for record in _in_order(guides)]


def _class_pictures(
    backbone: Backbone, class_prompts: Sequence[str], config: DreamBoothConfig, work: Path, seed: int
) -> Manifest:
    """Generate the class images once; a resumed training finds them, and takes up where they end."""
    prompts = [Prompt(class_prompts[index % len(class_prompts)]) for index in range(config.class_images)]
    # The largest batch that a 16 GB card bears at 512 pixels; small pictures are drawn faster in larger ones.
    batch = 4 if backbone.config.resolution > 128 else 16
    settings = GenerationConfig("noise", len(prompts), config.sample_steps, config.guidance, batch, (1.0, 1.0), 1.0)
    return generate(backbone, prompts, settings, "class image", "", seed, work, work / "class_images")


def _spread(prompts: Sequence[str]) -> list[str]:
    """Return GRID_COLUMNS of the prompts, evenly spread over the distinct ones, repeated where there are fewer."""
    distinct = list(dict.fromkeys(prompts))
    return [distinct[column * max(1, len(distinct) // GRID_COLUMNS) % len(distinct)] for column in range(GRID_COLUMNS)]


def _finish(module: DreamBooth, out: Path) -> DreamBoothResult:
    module.check_losses()
    module.sample(module.config.unet_steps)
    module.backbone.save(out / "weights")
    values = module.losses.cpu()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("step", *LOSSES))
    writer.writerows((step + 1, *(f"{value:.6g}" for value in row)) for step, row in enumerate(values.tolist()))
    write_text(out / "losses.csv", text.getvalue())
    last = values[-math.ceil(len(values) / 10) :].mean(dim=0).tolist()
    grids = tuple(sorted((out / "samples").glob("step_*.png")))
    return DreamBoothResult(out / "weights", out / "losses.csv", grids, dict(zip(LOSSES, last, strict=True)))
