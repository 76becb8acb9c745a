"""DreamBooth's training step. Every draw is keyed by (seed, step) and none comes from a global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from synthvision.data.sheets import contact_sheet
from synthvision.diffusion import objective
from synthvision.diffusion.adapters import save_adapters
from synthvision.diffusion.backbone import Backbone, Conditioning
from synthvision.diffusion.checkpoints import export
from synthvision.diffusion.examples import Examples, draw_rows
from synthvision.diffusion.half import quicken
from synthvision.diffusion.optimizers import clip, new_optimizer
from synthvision.diffusion.parallel import Sendable
from synthvision.diffusion.parameters import rebuilt
from synthvision.diffusion.preview import GRID_COLUMNS, sample_grid, spread
from synthvision.diffusion.recipe import DreamBoothConfig
from synthvision.diffusion.sampler import derive_seed
from synthvision.diffusion.sharding import shard, whole_backbone
from synthvision.training import LAST, is_logged, lr_factor, warn_if_emulated

GUIDES, CLASSES, NOISE, OFFSET, VALID = 11, 12, 13, 16, 17  # draw keys
CLIP_NORM = 1.0
LOSSES = ("total", "instance", "prior")
LOOK_EVERY = 10  # steps; a look at the losses makes a GPU wait
LEVELS = 8  # timesteps at which each held-out guide is judged
CHECKPOINTS, BASE = "checkpoints", "base"


@dataclass(frozen=True)
class Batch:
    """What a step trains on: guides first, class images after."""

    x_0: Tensor  # (B, C, h, w)
    noise: Tensor  # (B, C, h, w)
    t: Tensor  # int64 (B,)
    prompt: Tensor  # int64 (B,): rows of prompts, on the CPU
    time_ids: Tensor  # float32 (B, 6)
    cells: Tensor | None  # float (B, 1, h, w); see `objective.lesion_weights`
    image_ids: tuple[str, ...]


class DreamBooth(Sendable):
    """Trains UNet and text encoder on guides and class images in one batch, towards `objective.dreambooth_loss`.

    The backbone comes from `parameters.prepare`: what wants a gradient is trained. `out` takes sample grids and
    checkpoints.
    """

    def __init__(
        self,
        backbone: Backbone,
        guides: Examples,
        classes: Examples | None,
        held_out: Examples | None,
        prompts: Sequence[str],
        config: DreamBoothConfig,
        seed: int,
        out: Path,
        work: Path,
    ) -> None:
        super().__init__()
        self.backbone, self.guides, self.classes, self.held_out = backbone, guides, classes, held_out
        self.config, self.seed, self.out, self.work, self.prompts = config, seed, out, work, list(prompts)
        self.unet = backbone.unet
        # Only what is trained becomes part of the module, and so of its checkpoints.
        self.text_encoders = nn.ModuleList(backbone.text_encoders if config.text_steps else ())
        self.kept = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.strict_loading = False  # frozen weights are not in a checkpoint
        self.tokens = backbone.tokenize(prompts)
        self.alphas_cumprod = backbone.alphas_cumprod()
        objective.check_schedule(self.alphas_cumprod, backbone.prediction_type)
        self.embeddings: Conditioning | None = None  # of all prompts, once the text encoder is frozen
        self.ema = EMAModel(self.trained(), config.ema_decay, foreach=True) if config.ema_decay else None
        self.whole: Backbone | None = None  # after training on shards, on rank 0: all weights together
        self.register_buffer("losses", torch.zeros(config.unet_steps, len(LOSSES)))
        self.losses: Tensor
        self.register_buffer("validation", torch.full((self.looks(config.unet_steps) + 1,), torch.nan))
        self.validation: Tensor

    def on_cpu(self) -> None:
        """Bring everything to the CPU, to be sent to other processes; training brings it back."""
        self.cpu()
        self.backbone.to("cpu")
        self.guides = self.guides.to("cpu")
        self.classes = self.classes and self.classes.to("cpu")
        self.held_out = self.held_out and self.held_out.to("cpu")

    def arrive(self) -> None:
        """Become fit for use in a process that this was sent to."""
        encoders = tuple(rebuilt(encoder, self.config) for encoder in self.backbone.text_encoders)
        self.backbone = replace(self.backbone, text_encoders=encoders)
        self.text_encoders = nn.ModuleList(encoders if self.config.text_steps else ())

    def keep_average(self) -> None:
        """Put the average in place of the last weights for good, where there is one."""
        if self.ema is not None:
            self.ema.copy_to(self.trained())
            self.ema = None

    def settle(self, device: torch.device) -> None:
        """Bring all that training left to a device: Lightning leaves the module on the CPU, and shards in pieces."""
        if self.whole is not None:
            self.backbone = self.whole
            self.unet = self.whole.unet
            self.text_encoders = nn.ModuleList(self.whole.text_encoders if self.config.text_steps else ())
        self.to(device)
        self.backbone.to(device)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of the UNet and then of the text encoders that training began with."""
        return [parameter for name, parameter in self.named_parameters() if name in self.kept]

    def configure_model(self) -> None:
        """Spread the weights over the processes where the strategy asks for it."""
        if self.config.devices > 1 and self.config.strategy == "fsdp":
            shard([self.unet, *self.text_encoders], self.device_mesh)

    def configure_optimizers(self) -> Any:
        """An optimizer with a group for the UNet and one for the text encoder, each with its own rate."""
        unet, text = (
            [parameter for name, parameter in part.named_parameters(prefix) if name in self.kept]
            for prefix, part in (("unet", self.unet), ("text_encoders", self.text_encoders))
        )
        groups: list[dict[str, Any]] = [{"params": unet, "lr": self.config.unet_lr}]
        if self.config.text_steps:
            groups.append({"params": text, "lr": self.config.text_lr})
        optimizer = new_optimizer(self.config.optimizer, groups, self.config.weight_decay)
        totals = (self.config.unet_steps, self.config.text_steps)[: len(groups)]
        warmup, kind = self.config.warmup_steps, self.config.schedule
        factors: list[Callable[[int], float]] = [
            partial(lr_factor, warmup=warmup, total=total, schedule=kind) for total in totals
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    def on_fit_start(self) -> None:
        """Bring the schedule and the cached latents to where the model is."""
        warn_if_emulated(self.config.precision, self.device)
        self.backbone.to(self.device)
        self.alphas_cumprod = self.alphas_cumprod.to(self.device)
        self.guides = self.guides.to(self.device)
        self.classes = self.classes and self.classes.to(self.device)
        self.held_out = self.held_out and self.held_out.to(self.device)
        if self.ema is not None:
            self.ema.to(self.device)
        if self.device.type == "cpu" and self.config.precision == "bf16-mixed":
            quicken(self.unet, self.text_encoders)
        if self.config.compile:
            self.unet.compile()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's names)
        """Draw the last step's grid, and freeze the text encoder after its last step; after a resume as well.

        A grid is drawn here and not when a step ends: then the checkpoint may be written before it, and a run that is
        killed in between would never draw it.
        """
        step, config = self.global_step, self.config
        if self.embeddings is None and step >= config.text_steps:
            self._freeze_text()
        if step % config.sample_every == 0:
            self.look(step)
            if self.held_out is not None:
                self.log("val/instance_loss", self.validation[self.looks(step)])
        if step and config.export_every and step % config.export_every == 0:
            self.check_losses()
            self.export(step)

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
        drawn = self.draw(step)
        kind = self.backbone.prediction_type
        asked = objective.noised(drawn.x_0, drawn.noise, drawn.t, self.alphas_cumprod, kind)
        prediction = self.backbone.predict(asked.x_t, drawn.t, self._conditioning(drawn.prompt), drawn.time_ids)
        weights = None
        if config.min_snr_gamma is not None:
            weights = objective.min_snr_weight(drawn.t, self.alphas_cumprod, config.min_snr_gamma, kind)
        guides = config.batch_size // config.devices
        losses = objective.dreambooth_loss(prediction, asked.target, guides, config.prior_weight, weights, drawn.cells)
        values = torch.stack((losses.total, losses.instance, losses.prior)).detach()
        self.losses[step] = self.trainer.strategy.reduce(values, reduce_op="mean")
        if is_logged(step):
            self.log_dict(dict(zip((f"train/{name}_loss" for name in LOSSES), self.losses[step], strict=True)))
        return losses.total

    def draw(self, step: int) -> Batch:
        """Return this process's share of a step's batch; the batch itself does not depend on how many share it."""
        parts = [(self.guides, GUIDES)] + ([(self.classes, CLASSES)] if self.classes else [])
        size, timesteps = self.config.batch_size, len(self.alphas_cumprod)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, NOISE, step))
        normal = torch.randn((2, len(parts) * size, *self.backbone.latent_size), generator=generator).to(self.device)
        # One timestep from each of `size` equal ranges, for either half: the same mean, less scatter than free draws.
        uniform = torch.rand((len(parts), size), generator=generator, dtype=torch.float64)
        t = ((torch.arange(size) + uniform) / size * timesteps).long().clamp(max=timesteps - 1).to(self.device)
        mine = self._share(size)
        drawn = []
        for part, (examples, key) in enumerate(parts):
            rows = draw_rows(len(examples.prompt), size, step, self.seed, key)[mine]
            noise = normal[:, part * size : (part + 1) * size][:, mine]
            drawn.append(self._batch(examples, rows, noise, t[part, mine]))
        noise = torch.cat([each.noise for each in drawn])
        if self.config.offset_noise:
            noise = objective.offset_noise(noise, self._offset(step, len(parts), mine), self.config.offset_noise)
        cells = None
        if self.config.lesion_weight and self.guides.lesion is not None:
            cells = torch.cat([self._cells(each) for each in drawn])
        return Batch(
            x_0=torch.cat([each.x_0 for each in drawn]),
            noise=noise,
            t=torch.cat([each.t for each in drawn]),
            prompt=torch.cat([each.prompt for each in drawn]),
            time_ids=torch.cat([each.time_ids for each in drawn]),
            cells=cells,
            image_ids=sum((each.image_ids for each in drawn), ()),
        )

    def _batch(self, examples: Examples, rows: Tensor, noise: Tensor, t: Tensor) -> Batch:
        there = rows.to(self.device)
        cells = None
        if examples.lesion is not None:
            cells = objective.lesion_weights(examples.lesion[there], self.config.lesion_weight)
        ids = tuple(examples.image_ids[row] for row in rows.tolist())
        x_0 = examples.draw(there, noise[0])
        return Batch(x_0, noise[1], t, examples.prompt[rows], examples.time_ids[there], cells, ids)

    def _cells(self, batch: Batch) -> Tensor:
        return torch.ones_like(batch.x_0[:, :1]) if batch.cells is None else batch.cells

    def _share(self, size: int) -> slice:
        """Return which of `size` rows are this process's."""
        each = size // self.config.devices
        rank = self.global_rank if self.config.devices > 1 else 0
        return slice(rank * each, (rank + 1) * each)

    def _offset(self, step: int, parts: int, mine: slice) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, OFFSET, step))
        shape = (parts, self.config.batch_size, self.backbone.latent_size[0])
        return torch.randn(shape, generator=generator)[:, mine].flatten(0, 1).to(self.device)

    def _conditioning(self, prompt: Tensor) -> Conditioning:
        if self.embeddings is not None:
            return self.embeddings.rows(prompt.to(self.device))
        distinct, row = torch.unique(prompt, return_inverse=True)  # each prompt of the batch is encoded once
        encoded = self.backbone.encode_tokens([tokens[distinct] for tokens in self.tokens])
        return encoded.rows(row.to(self.device))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Bound the gradient's norm over all that is trained. Lightning's own way refuses fused optimisers in bf16."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = clip(parameters, CLIP_NORM)
        if is_logged(self.global_step):
            self.log("train/gradient_norm", norm)

    def optimizer_step(self, *given: Any, **named: Any) -> None:
        """Step, then average. Here and not when the batch ends: the checkpoint may be written before that."""
        super().optimizer_step(*given, **named)
        if self.ema is not None:
            self.ema.step(self.trained())

    def on_train_batch_end(self, *_: Any) -> None:
        """Look at the losses now and then."""
        if self.global_step % LOOK_EVERY == 0:
            self.check_losses()

    def on_train_end(self) -> None:
        """Gather what lies on other processes."""
        if self.config.devices > 1 and self.config.strategy == "fsdp":
            self.whole = whole_backbone(self.backbone)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averaged weights in place of the last ones, where there is an average."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.trained())
        self.ema.copy_to(self.trained())
        try:
            yield
        finally:
            self.ema.restore(self.trained())

    def look(self, step: int) -> None:
        """Draw the grid of a step, but the first, and judge the held-out guides."""
        with self.averaged():
            if step:
                self.sample(step)
            if self.held_out is not None:
                self.validation[self.looks(step)] = self.validate(self.held_out)

    def looks(self, step: int) -> int:
        """Return how many looks there were before that of a step: one at 0, every `sample_every`, and at the end."""
        return math.ceil(step / self.config.sample_every)

    def sample(self, step: int) -> None:
        """Write `step_00350.png`: guides' prompts above, class prompts below, the same noise in every grid."""
        shown = spread([self.prompts[row] for row in self.guides.prompt.tolist()])
        if self.classes is not None:
            shown += spread([self.prompts[row] for row in self.classes.prompt.tolist()])
        images = sample_grid(self.backbone, shown, self.config, self.seed)
        if self.global_rank == 0:
            contact_sheet(images, GRID_COLUMNS, self.out / "samples" / f"step_{step:05}.png")

    @torch.no_grad()
    def validate(self, examples: Examples) -> Tensor:
        """Return the mean squared error of examples at fixed timesteps under fixed noise, float ()."""
        timesteps, errors = len(self.alphas_cumprod), []
        t = ((torch.arange(LEVELS) + 0.5) / LEVELS * timesteps).long().to(self.device)
        for row in range(len(examples.prompt)):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, VALID, row))
            noise = torch.randn((LEVELS, *self.backbone.latent_size), generator=generator).to(self.device)
            x_0 = examples.latents.mean[row].expand_as(noise)
            kind = self.backbone.prediction_type
            asked = objective.noised(x_0, noise, t, self.alphas_cumprod, kind)
            prompt = examples.prompt[row].expand(LEVELS)
            time_ids = examples.time_ids[row].expand(LEVELS, -1)
            prediction = self.backbone.predict(asked.x_t, t, self._conditioning(prompt), time_ids)
            errors.append((prediction.float() - asked.target).square().mean())
        return torch.stack(errors).mean()

    def export(self, step: int) -> None:
        """Write `checkpoints/step_00500`, which loads as a pipeline; see `checkpoints`."""
        folder = self.out / CHECKPOINTS
        sharded = self.config.devices > 1 and self.config.strategy == "fsdp"
        whole = whole_backbone(self.backbone) if sharded else self.backbone
        if self.global_rank or whole is None:
            return
        here = folder / f"step_{step:05}"
        with self.averaged():
            if self.config.method == "lora":
                export(whole, here, (), folder / BASE)
                save_adapters(whole, here)
            else:
                export(whole, here, self.parts(), self.first_export(here))

    def first_export(self, other_than: Path) -> Path | None:
        """Return the oldest checkpoint there is, whose frozen parts the later ones share."""
        return next((each for each in sorted(self.out.glob(f"{CHECKPOINTS}/step_*")) if each != other_than), None)

    def parts(self) -> list[str]:
        """Return the names of the pipeline's parts that are trained."""
        names = ["text_encoder", "text_encoder_2"][: len(self.text_encoders)]
        return ["unet", *names]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Never replace a good checkpoint by one with lost numbers; keep what is trained and no more."""
        self.check_losses()
        names = self.kept | {"losses", "validation"}
        checkpoint["state_dict"] = {name: v for name, v in checkpoint["state_dict"].items() if name in names}
        if self.ema is not None:
            checkpoint["ema"] = {"step": self.ema.optimization_step, "shadow": self.ema.shadow_params}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the average where it was."""
        if self.ema is not None:
            self.ema.optimization_step = checkpoint["ema"]["step"]
            for own, kept in zip(self.ema.shadow_params, checkpoint["ema"]["shadow"], strict=True):
                own.data.copy_(kept)

    def check_losses(self) -> None:
        """Raise FloatingPointError where a loss so far is not finite; name the step, its pictures and what is left."""
        lost = (~torch.isfinite(self.losses[: self.global_step])).any(dim=1).nonzero()
        if not len(lost):
            return
        step = int(lost[0])
        exported = sorted((self.out / CHECKPOINTS).glob("step_*"))
        good = [str(file) for file in (self.work / LAST, *exported[-1:]) if file.exists()]
        raise FloatingPointError(
            f"the loss at step {step} is not finite; its pictures were {', '.join(self.draw(step).image_ids)}. Lower "
            "dreambooth.unet_lr or dreambooth.text_lr. The last good checkpoint is kept: "
            f"{' and '.join(good) if good else 'none was written yet'}"
        )
