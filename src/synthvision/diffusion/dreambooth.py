"""DreamBooth: teach a backbone one subject from a few captioned guides, and keep what it knew of the class.

Every draw is keyed by (seed, step) and none comes from a global generator, so that a training that was killed at any
step and resumed ends, on the CPU, with the same bits as one that was not.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning.loggers import Logger

from synthvision.artifact import write_text
from synthvision.data.images import load_batch
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.class_images import class_pictures
from synthvision.diffusion.examples import encode
from synthvision.diffusion.module import LOSSES, DreamBooth
from synthvision.diffusion.recipe import DreamBoothConfig, Subject
from synthvision.manifest import Manifest
from synthvision.training import best_device, fit_steps

__all__ = ["DreamBoothConfig", "DreamBoothResult", "Subject", "train"]


@dataclass(frozen=True)
class DreamBoothResult:
    """What training left: the weights folder, the loss curve and the sample grids, oldest first."""

    weights: Path
    losses: Path | None  # CSV: step, total, instance, prior; None for the control
    grids: tuple[Path, ...]
    final: dict[str, float]  # mean of each loss over the last tenth of the steps; empty for the control


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

    Args:
        backbone: moved to the GPU where there is one.
        guides: real images with captions; order does not matter.
        subject: the identifier and its prompts.
        class_prompts: for the class images, in turn; empty: the subject's class prompt alone.
        config: how.
        out: the stage's folder.
        work: its resumable state. Must lie there between calls to resume.
        seed: of every draw.
        logger: takes losses and learning rates; None logs nowhere.
        shared: folder of class images, which trainings of the same backbone share; None: `work`.

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
    pictures = class_pictures(backbone, class_prompts, config, shared or work, seed) if config.prior_weight else None
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


def _in_order(guides: Manifest) -> Manifest:
    return Manifest(tuple(sorted(guides, key=lambda record: record.image_id)), guides.root)


def _captions(guides: Manifest, subject: Subject) -> list[str]:
    if not len(guides):
        raise ValueError("no guides to train on; put 10 to 15 captioned images in the folder that disease.guides names")
    for record in guides:
        if not record.caption.strip():
            raise ValueError(f"guide {record.image_id} has no caption; write one line into the .txt beside the image")
    return [subject.caption(record.caption.strip()) for record in _in_order(guides)]


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
