"""How fast is generation, beside a plain StableDiffusionPipeline loop with the same scheduler and steps?

    python benchmarks/generation.py [--images 32] [--turns 3]

The same weights, prompts, scheduler (DPM-Solver++ 2M), steps, guidance, resolution, precision and number of images at
once; each ends with PNG files on disk. The loop is what diffusers' pages show: `pipe(prompts, ...)`, a batch at a time,
then `image.save`. In turns, after one batch of either that is not timed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from dreambooth import machine
from models import write

from synthvision.diffusion import backbone
from synthvision.diffusion.backbone import PACKAGE_WEIGHTS, Backbone, BackboneConfig
from synthvision.diffusion.generate import generate
from synthvision.diffusion.plan import GenerationConfig
from synthvision.diffusion.prompts import Prompt
from synthvision.training import best_device

OURS, PEER = "synthvision", "plain pipeline"
TEXT, NEGATIVE = "photo of skin, sks papules", "blurred"
COLUMNS = ("case", "way", "images/s", "all turns", "times the pipeline", "images/CPU s", "times the pipeline")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


@dataclass(frozen=True)
class Case:
    """What both are asked to paint."""

    name: str
    weights: str  # a diffusers folder
    family: str
    resolution: int
    steps: int
    guidance: float
    batch: int
    images: int
    dtype: torch.dtype = torch.float32
    compile: bool = False  # ours alone


def load(case: Case) -> Backbone:
    """Load a case's weights onto the device."""
    config = BackboneConfig("b", case.weights, case.resolution, case.family)
    return backbone.load(config, case.dtype).to(best_device())


def ours(case: Case) -> Callable[[int, Path], object]:
    """Return what makes so many images as `stage=generate` does."""
    model = load(case)

    def paint(count: int, folder: Path) -> object:
        plain = ("noise", count, case.steps, case.guidance, case.batch, (1.0, 1.0), 1.0)
        settings = GenerationConfig(*plain, compile=case.compile)
        prompts = [Prompt(TEXT, NEGATIVE)] * count
        return generate(model, prompts, settings, "lesion", "", 0, folder, folder)

    return paint


def plain(case: Case) -> Callable[[int, Path], object]:
    """Return what makes so many images with the stock pipeline."""
    stock = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[case.family]
    pipeline = stock.from_pretrained(case.weights, dtype=case.dtype).to(best_device())
    pipeline.scheduler = load(case).sampler()
    pipeline.set_progress_bar_config(disable=True)

    def paint(count: int, folder: Path) -> object:
        for start in range(0, count, case.batch):
            size = min(case.batch, count - start)
            images = pipeline(
                [TEXT] * size, negative_prompt=[NEGATIVE] * size, num_inference_steps=case.steps,
                guidance_scale=case.guidance, height=case.resolution, width=case.resolution,
            ).images  # fmt: skip
            for number, image in enumerate(images, start):
                image.save(folder / f"{number}.png")
        return None

    return paint


def compare(case: Case, turns: int) -> dict[str, list[dict[str, float]]]:
    """Return seconds per image by the clock and of the processor, turn by turn."""
    ways = {OURS: ours(case), PEER: plain(case)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            count = case.images if turn else case.batch  # the first is to warm up
            timed = _timed(way, count)
            if turn:
                found[name].append(timed)
    return found


def _timed(way: Callable[[int, Path], object], count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter(), time.process_time()
        way(count, Path(folder))
        ends = time.perf_counter(), time.process_time()
    spent = [(end - start) / count for start, end in zip(begin, ends, strict=True)]
    return dict(zip(("seconds", "cpu_seconds"), spent, strict=True))


def table(case: Case, found: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """Yield a row of Markdown per way."""
    rates, busy = (
        {name: [1 / turn[clock] for turn in turns] for name, turns in found.items()}
        for clock in ("seconds", "cpu_seconds")
    )
    middle, of_cpu = ({name: statistics.median(values) for name, values in each.items()} for each in (rates, busy))
    for name in found:
        cells = [case.name, name, f"{middle[name]:.3g}", ", ".join(f"{rate:.3g}" for rate in rates[name])]
        cells += [f"{middle[name] / middle[PEER]:.2f}", f"{of_cpu[name]:.3g}", f"{of_cpu[name] / of_cpu[PEER]:.2f}"]
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    torch.set_flush_denormal(True)  # for both
    print(f"{machine()}\n\n{HEADER}")
    tiny = PACKAGE_WEIGHTS / "tiny"
    with tempfile.TemporaryDirectory() as folder:
        narrow = str(write("sd15", Path(folder) / "sd15", narrower=8))
        for name, weights, steps, guidance, batch in (
            ("tiny, 64 px, 10 steps, no guidance, 16 at once", str(tiny), 10, 1.0, 16),
            ("tiny, 64 px, 20 steps, guidance 7.5, 8 at once", str(tiny), 20, 7.5, 8),
            ("SD1.5 / 8, 64 px, 20 steps, guidance 7.5, 8 at once", narrow, 20, 7.5, 8),
        ):
            case = Case(name, weights, "sd", 64, steps, guidance, batch, given.images)
            for row in table(case, compare(case, given.turns)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
