"""DreamBooth: teach a backbone one subject from a few captioned guides, and keep what it knew of the class.

Every draw is keyed by (seed, step) and none comes from a global generator, so that a training that was killed at any
step and resumed ends, on the CPU, with the same bits as one that was not.
"""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pytorch_lightning.loggers import Logger
from torch import nn

from synthvision.artifact import write_text
from synthvision.diffusion import monitor
from synthvision.diffusion.adapters import merge_adapters, save_adapters
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.checkpoints import check_disk, export
from synthvision.diffusion.class_images import class_pictures
from synthvision.diffusion.examples import Examples, encode, pictures_of
from synthvision.diffusion.module import BASE, CHECKPOINTS, LOSSES, DreamBooth
from synthvision.diffusion.optimizers import STATE_BYTES, check_optimizer
from synthvision.diffusion.parallel import Fit, fit_on
from synthvision.diffusion.parameters import prepare
from synthvision.diffusion.recipe import DreamBoothConfig, Subject
from synthvision.manifest import Manifest
from synthvision.training import best_device

__all__ = ["DreamBoothConfig", "DreamBoothResult", "Subject", "train"]
HELD_OUT = 18  # draw key
FLOAT = 4  # bytes


@dataclass(frozen=True)
class DreamBoothResult:
    """What training left: the weights folder, the loss curve and the sample grids, oldest first."""

    weights: Path
    losses: Path | None  # CSV: step, total, instance, prior; None for the control
    grids: tuple[Path, ...]
    final: dict[str, float]  # mean of each loss over the last tenth of the steps; empty for the control
    reached: dict[str, float] = field(default_factory=dict)  # peak memory in GB, samples per second, validation loss
    chosen: dict[str, str] = field(default_factory=dict)  # in words: method, optimizer, precision, ...


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
    shared: Path | None = None,
) -> DreamBoothResult:
    """Personalise a backbone, in place, and write `out/weights`, `out/losses.csv` and `out/samples/step_*.png`.

    Adapters are merged into `out/weights`, and lie in `out/lora` for other programs. Where the config asks for it,
    `out/checkpoints/step_*` load as pipelines and `out/validation.csv` has the losses of held-out guides.

    Args:
        backbone: moved to the GPU where there is one.
        guides: real images with captions, and masks where there are any; order does not matter.
        subject: the identifier and its prompts.
        class_prompts: for the class images, in turn; empty: the subject's class prompt alone.
        config: how.
        out: the stage's folder.
        work: its resumable state. Must lie there between calls to resume.
        seed: of every draw.
        logger: takes losses and learning rates; None logs nowhere.
        shared: folder of class images, which trainings of the same backbone share; None: `work`.

    Raises:
        ValueError: no guides, a guide without caption, a class prompt that names the identifier or is the instance
            prompt, or an option that cannot be had here.
        OSError: too little room on the disk, or none left for a checkpoint; the last one is kept.
        FloatingPointError: a loss was not finite.
    """
    class_prompts = list(class_prompts) or [subject.class_prompt]
    _check(guides, subject, class_prompts, config)
    _warn_of_cut_captions(backbone, guides, subject)
    if not config.unet_steps:
        backbone.save(out / "weights")
        return DreamBoothResult(out / "weights", None, (), {})
    if config.zero_terminal_snr:
        backbone = _with_zero_terminal_snr(backbone)
    _check_room(backbone, config, out)
    backbone.to(best_device())
    classes = class_pictures(backbone, class_prompts, config, shared or work, seed) if config.prior_weight else None
    module = _module(backbone, guides, classes, subject, config, seed, out, work)
    chosen = monitor.choices(backbone, config)
    monitor.say(chosen)
    watch = monitor.Monitor(config.batch_size * (1 if classes is None else 2))
    callbacks = (watch,)
    device = best_device().type
    fit = Fit(config.unet_steps, work, config.checkpoint_every, logger, device, config.precision, callbacks)
    if config.devices > 1:
        module.on_cpu()
    module.train()
    unused = 0 < config.text_steps < config.unet_steps
    fit_on(config.devices, config.strategy, unused, module, fit)
    module.eval()
    module.settle(best_device())
    return replace(_finish(module), reached=_reached(module, watch), chosen=chosen)


def _check(guides: Manifest, subject: Subject, class_prompts: Sequence[str], config: DreamBoothConfig) -> None:
    if not len(guides):
        raise ValueError("no guides to train on; put 10 to 15 captioned images in the folder that disease.guides names")
    for record in guides:
        if not record.caption.strip():
            raise ValueError(f"guide {record.image_id} has no caption; write one line into the .txt beside the image")
    for prompt in class_prompts:
        subject.check_class_prompt(prompt)
    if config.holdout >= len(guides):
        raise ValueError(f"dreambooth.holdout={config.holdout} must be below the number of guides, {len(guides)}")
    if len(guides) - config.holdout == 1 and config.unet_steps:
        warnings.warn("one guide to train on: the model will learn it by heart; 10 to 15 are usual", stacklevel=3)
    masked = sum(bool(record.mask) for record in guides)
    if not masked and (config.lesion_weight or config.lesion_view != "whole"):
        raise ValueError(
            "dreambooth.lesion_weight and dreambooth.lesion_view need masks, and no guide has one; put NAME.mask.png "
            "or NAME.box.txt beside the guides, or set them to 0 and 'whole'"
        )
    check_optimizer(config.optimizer, best_device())


def _warn_of_cut_captions(backbone: Backbone, guides: Manifest, subject: Subject) -> None:
    for record in guides:
        with warnings.catch_warnings(record=True) as cut:
            warnings.simplefilter("always")
            backbone.tokenize([subject.caption(record.caption.strip())])
        if cut:
            warnings.warn(f"the caption of {record.path} is too long: {cut[0].message}; shorten it", stacklevel=3)


def _check_room(backbone: Backbone, config: DreamBoothConfig, out: Path) -> None:
    """Refuse to begin where the checkpoints to come would not fit: the last two to resume from, and the exports."""
    whole = _size(backbone.vae, backbone.unet, *backbone.text_encoders)
    trained = _size(backbone.unet, *(backbone.text_encoders if config.text_steps else ()))
    if config.method == "lora":
        trained = 0  # megabytes
    state = trained * (FLOAT * (2 if config.ema_decay else 1) + STATE_BYTES[config.optimizer])
    exports = 0 if config.export_every is None else (config.unet_steps - 1) // config.export_every
    copies = 1 + (config.method == "lora" and exports > 0)
    needed = 2 * state + copies * whole * FLOAT + exports * trained * FLOAT
    check_disk(out, needed, "dreambooth.export_every")


def _size(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _with_zero_terminal_snr(backbone: Backbone) -> Backbone:
    """Return the same parts with a noise schedule that ends in noise alone, for training and for sampling after it."""
    schedule = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return replace(backbone, scheduler_config={**backbone.scheduler_config, **schedule})


def _module(
    backbone: Backbone,
    guides: Manifest,
    classes: Manifest | None,
    subject: Subject,
    config: DreamBoothConfig,
    seed: int,
    out: Path,
    work: Path,
) -> DreamBooth:
    taught, held_out = _split(_in_order(guides), config.holdout, seed)
    captions = {record.image_id: subject.caption(record.caption.strip()) for record in guides}
    words = [*(captions[record.image_id] for record in taught), *(classes.column("prompt") if classes else ())]
    words += [captions[record.image_id] for record in held_out]
    prompts = list(dict.fromkeys(words))

    def encoded(images: Manifest, texts: Sequence[str], views: int, lesion_view: str = "whole") -> Examples:
        pictures = pictures_of(images, texts, backbone.config.resolution, lesion_view)
        return encode(backbone, pictures, prompts, views)

    own = [captions[record.image_id] for record in taught]
    instance = encoded(taught, own, 8 if config.augment else 1, config.lesion_view)
    prior = encoded(classes, classes.column("prompt"), 2 if config.augment else 1) if classes else None
    others = encoded(held_out, [captions[record.image_id] for record in held_out], 1) if len(held_out) else None
    base = out / CHECKPOINTS / BASE
    if config.method == "lora" and config.export_every and not base.is_dir():
        backbone.save(base)  # before there are adapters
    prepare(backbone, config, seed)
    return DreamBooth(backbone, instance, prior, others, prompts, config, seed, out, work)


def _in_order(guides: Manifest) -> Manifest:
    return Manifest(tuple(sorted(guides, key=lambda record: record.image_id)), guides.root)


def _split(guides: Manifest, holdout: int, seed: int) -> tuple[Manifest, Manifest]:
    """Return the guides to train on and those held out, each in order."""
    chosen = set(np.random.default_rng([seed, HELD_OUT]).permutation(len(guides))[:holdout].tolist())
    held = {record.image_id for row, record in enumerate(guides) if row in chosen}
    return guides.where(lambda r: r.image_id not in held), guides.where(lambda r: r.image_id in held)


def _finish(module: DreamBooth) -> DreamBoothResult:
    """Write what training leaves."""
    module.check_losses()
    out, config = module.out, module.config
    module.keep_average()
    if config.method == "lora":
        save_adapters(module.backbone, out / "lora")
        merge_adapters(module.backbone)
    module.look(config.unet_steps)
    first = module.first_export(out / "weights") if config.method == "full" else None
    export(module.backbone, out / "weights", module.parts(), first)
    values = module.losses.cpu()
    rows = [(step + 1, *(f"{value:.6g}" for value in row)) for step, row in enumerate(values.tolist())]
    write_text(out / "losses.csv", _csv(("step", *LOSSES), rows))
    if module.held_out is not None:
        steps = [min(look * config.sample_every, config.unet_steps) for look in range(len(module.validation))]
        losses = [f"{value:.6g}" for value in module.validation.tolist()]
        write_text(out / "validation.csv", _csv(("step", "instance"), list(zip(steps, losses, strict=True))))
    last = values[-math.ceil(len(values) / 10) :].mean(dim=0).tolist()
    grids = tuple(sorted((out / "samples").glob("step_*.png")))
    return DreamBoothResult(out / "weights", out / "losses.csv", grids, dict(zip(LOSSES, last, strict=True)))


def _reached(module: DreamBooth, watch: monitor.Monitor) -> dict[str, float]:
    held_out = {} if module.held_out is None else {"validation_loss": float(module.validation[-1])}
    return {**watch.metrics(), **held_out}


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
