"""The x4 upscaler is fine-tuned on the guides, and measured on validation images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from synthvision.data.images import Pixels, read_rgb
from synthvision.diffusion import superres, upscaler
from synthvision.diffusion.degradation import FACTOR, enlarge, shrink
from synthvision.diffusion.restoration import closeness
from synthvision.diffusion.sampler import derive_seed
from synthvision.diffusion.upscale import check, upscale
from synthvision.diffusion.upscaler import Upscaler, UpscalerConfig
from synthvision.manifest import Manifest, Record
from synthvision.stages.context import WEIGHTS, Context, Result
from synthvision.study import Study

HELD_OUT = 50  # validation images that are enlarged, at most
HELD_OUT_SEED = 41  # draw key


def run_superres(given: Context) -> Result:
    """Fine-tune the upscaler; log how close bicubic and the upscaler, before and after, come to held-out images."""
    study, config = given.study, given.study.superres
    real, subject = given.manifest("prepare"), given.study.disease.subject

    def caption(record: Record) -> dict[str, str]:
        return {"caption": subject.caption(record.caption.strip()) if record.caption.strip() else ""}

    guides = real.where(split="guide").with_values(caption)
    validation = real.where(split="val", label=study.disease.positive)
    held_out = Manifest(validation.records[:HELD_OUT], validation.root)
    model = upscaler.load(config.upscaler)
    check(config.upscaling, model)
    superres.check_guides(guides, config.upscaler.resolution)  # before anything is enlarged
    large = _whole(held_out)
    small = np.stack([shrink(image) for image in large])
    made = {"bicubic": np.stack([enlarge(image) for image in small]), "before": _enlarged(study, model, small)}
    done = superres.train(model, guides, config.training, given.out, given.work, study.seed, given.logger)
    made["after"] = _enlarged(study, model, small)
    metrics = {
        f"val/{name}/{measure}": float(values.mean())
        for name, images in made.items()
        for measure, values in closeness(images, large).items()
    }
    inputs = {"guides": guides, "validation": held_out}
    return Result({**metrics, "val/images": len(large), "final/loss": done.final}, [done.losses], inputs)


def fine_tuned(given: Context) -> UpscalerConfig:
    """Return where the fine-tuned upscaler lies."""
    return replace(given.study.superres.upscaler, source=str(given.before["superres"] / WEIGHTS), revision=None)


def _whole(images: Manifest) -> Pixels:
    """Return images whose sides are multiples of the factor, uint8 (N, H, W, 3); what is beyond is cut off."""
    pixels = [read_rgb(images.file(record)) for record in images]
    return np.stack([each[: len(each) // FACTOR * FACTOR, : each.shape[1] // FACTOR * FACTOR] for each in pixels])


def _enlarged(study: Study, model: Upscaler, small: Pixels) -> Pixels:
    prompts = [study.disease.subject.instance_prompt] * len(small)
    seeds = [derive_seed(study.seed, HELD_OUT_SEED, index) for index in range(len(small))]
    return upscale(model, study.superres.upscaling, small, prompts, seeds)
