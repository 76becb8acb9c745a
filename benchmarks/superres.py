"""Print how close bicubic, the un-tuned and the fine-tuned upscaler come to held-out phantoms with lesions.

    synthvision stage=superres && python benchmarks/superres.py [studies/phantom]

The phantoms are drawn anew, from seeds that no study uses; the upscaler was fine-tuned on the guides alone. Each
row is a mean over the phantoms; its differences to bicubic and to the un-tuned upscaler have intervals by bootstrap
over them, pair by pair.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from synthvision.data.images import Pixels
from synthvision.data.phantom import random_scene, random_tone
from synthvision.data.skin import draw_skin
from synthvision.diffusion import upscaler
from synthvision.diffusion.degradation import degrade, enlarge, shrink
from synthvision.diffusion.restoration import closeness
from synthvision.diffusion.upscale import UpscalingConfig, upscale
from synthvision.diffusion.upscaler import Upscaler, UpscalerConfig

COUNT, SEED, DRAWS = 500, 9_000_000, 5000
PROMPT = "photo of skin, sks papules"


def main(study: Path) -> None:
    """Print a Markdown table for bicubic and for degraded small pictures."""
    stage = _newest(study)
    config = json.loads((stage / "stage.json").read_text())["config"]["superres"]
    untuned = UpscalerConfig(**config["upscaler"])
    models = {
        "un-tuned": upscaler.load(untuned),
        "fine-tuned": upscaler.load(replace(untuned, source=str(stage / "weights"), revision=None)),
    }
    settings = UpscalingConfig(**config["upscaling"])
    large, tones = _phantoms()
    rngs = [np.random.default_rng([SEED, 1, index]) for index in range(COUNT)]
    print(f"{COUNT} phantoms with lesions, {large.shape[1]} px; {settings}")
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {time.strftime('%Y-%m-%d')}")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}")
    for kind, small in (
        ("bicubic", np.stack([shrink(image) for image in large])),
        ("degraded", np.stack([degrade(image, rng) for image, rng in zip(large, rngs, strict=True)])),
    ):
        columns = ("PSNR dB", "over bicubic", "95% interval", "over un-tuned", "95% interval", "SSIM", "colour shift")
        print(f"\n| shrunk: {kind} | {' | '.join(columns)} | on dark skin |\n|{'---|' * (len(columns) + 2)}")
        _table(models, settings, small, large, np.array(tones))


def _table(
    models: dict[str, Upscaler], settings: UpscalingConfig, small: Pixels, large: Pixels, tones: NDArray[np.str_]
) -> None:
    rows: dict[str, Pixels] = {"bicubic": np.stack([enlarge(image) for image in small])}
    for name, model in models.items():
        rows[name] = _made(model, settings, small)
    tuned = models["fine-tuned"]
    rows["fine-tuned, one draw of 20 steps"] = _made(tuned, replace(settings, steps=20), small)
    rows["fine-tuned, no back-projection"] = _made(tuned, replace(settings, back_projections=0), small)
    found: dict[str, Any] = {name: closeness(images, large) for name, images in rows.items()}
    for name, measured in found.items():
        cells = [f"{measured['psnr'].mean():.2f}"]
        for other in ("bicubic", "un-tuned"):
            gain = measured["psnr"] - found[other]["psnr"]
            low, high = _interval(gain)
            cells += [f"{gain.mean():+.3f}", f"{low:+.3f} to {high:+.3f}"]
        shift = measured["colour_shift"]
        cells += [f"{measured['ssim'].mean():.4f}", f"{shift.mean():.2f}", f"{shift[tones == 'dark'].mean():.2f}"]
        print("| " + " | ".join([name, *cells]) + " |")


def _made(model: Upscaler, settings: UpscalingConfig, small: Pixels) -> Pixels:
    return upscale(model, settings, small, [PROMPT] * len(small), range(len(small)))


def _interval(values: NDArray[np.float64]) -> Sequence[float]:
    chosen = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def _phantoms() -> tuple[Pixels, list[str]]:
    images, tones = [], []
    for index in range(COUNT):
        rng = np.random.default_rng([SEED, index])
        skin = draw_skin(rng, random_tone(rng))
        images.append(random_scene(rng, "lesion", skin).draw(rng))
        tones.append(skin.tone)
    return np.stack(images), tones


def _newest(study: Path) -> Path:
    found = sorted(study.glob("superres/*/stage.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SystemExit(f"{study}: no finished superres stage; run synthvision stage=superres first")
    return found[-1].parent


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "studies/phantom"))
