"""Run all that a GPU is needed for, in one call, and write the tables to a file.

    python benchmarks/gpu.py /path/to/diffusers/examples/dreambooth RESULTS.md [--small]

Stable Diffusion 1.5 and SDXL of real size with random weights, 512 and 1024 px, bfloat16: training beside diffusers'
own scripts (train_dreambooth.py; for SDXL, whose weights it does not train, train_dreambooth_lora_sdxl.py), generation
beside the plain pipeline, and how much of the matrix peak that the card reaches here a training step uses, with where
the rest goes. `--small` goes the same way with narrow models and few steps, wherever there is no GPU: it shows that it
runs.

Each part is written when it is done. It needs torch, torchvision, diffusers, transformers, accelerate, peft,
pytorch-lightning, torchmetrics, filelock, rich, psutil, scipy, matplotlib, simplejpeg, pydicom and python-gdcm, but
neither Hydra nor MLflow; `bitsandbytes` for the 16 GB preset.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dreambooth
import generation
import torch
from models import KINDS, write
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from synthvision.diffusion.parameters import prepare
from synthvision.training import best_device

GB16 = 16.0
SIDE = 8192  # of the square matrices whose product is the peak
SCRIPTS = {"sd15": "train_dreambooth.py", "sdxl": "train_dreambooth_lora_sdxl.py"}
# What a kernel's name tells of it, the first that fits.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("flash", "fmha", "attention"),
    "convolution": ("conv", "wgrad", "dgrad", "implicit", "xmma"),
    "matrix product": ("gemm", "cutlass", "::mm", "addmm", "bmm", "nvjet"),
    "optimizer": ("adam", "multi_tensor", "foreach", "fused_"),
    "normalisation": ("norm",),
    "copies and casts": ("copy", "memcpy", "memset", "cat", "fill", "_to_"),
}
OTHER = "activations, sums and the rest"


def cases(kind: str, weights: str, small: bool) -> Iterator[dreambooth.Case]:
    """Yield what is trained with a model, at settings that the peer has too; then ours with what it has not."""
    method = "full" if kind == "sd15" else "lora"
    sides = (64,) if small else (512, 1024)
    precision = "32-true" if small else "bf16-mixed"
    for side in sides:
        name = f"{kind} {method}, {side} px, 1 + 1"
        given = {"family": KINDS[kind], "resolution": side, "batch": 1, "precision": precision, "method": method}
        yield dreambooth.Case(name, weights, text=False, **given)
        if kind == "sd15":
            yield dreambooth.Case(f"{name}, text encoder trained", weights, text=True, **given)
        if not small:
            yield dreambooth.Case(f"{name}, ours compiled", weights, text=False, compile=True, **given)
    if kind == "sd15" and find_spec("bitsandbytes") and torch.cuda.is_available():
        preset = {"optimizer": "adamw8bit", "checkpointing": True, "precision": precision}
        yield dreambooth.Case(
            f"{kind}, memory=16gb, {sides[0]} px, text encoder trained",
            weights,
            KINDS[kind],
            sides[0],
            1,
            True,
            **preset,
        )


def training(scripts: Path, kind: str, weights: str, small: bool) -> Iterator[str]:
    """Yield the table of training."""
    yield dreambooth.HEADER
    steps, turns = (3, 1) if small else (30, 3)
    for case in cases(kind, weights, small):
        found = dreambooth.compare(case, scripts / SCRIPTS[kind], steps, turns)
        yield from dreambooth.table(case, found)
        if "16gb" in case.name:
            peak = max(turn["reserved"] for turn in found[dreambooth.OURS])
            yield f"\n{case.name}: {peak:.2f} GB reserved, {'inside' if peak < GB16 else 'NOT inside'} {GB16:.0f} GB\n"


def painting(kind: str, weights: str, small: bool) -> Iterator[str]:
    """Yield the table of generation."""
    yield generation.HEADER
    side, images, turns = (64, 2, 1) if small else (512 if kind == "sd15" else 1024, 16, 3)
    steps, batch = (2, 2) if small else (25, 8 if kind == "sd15" else 4)
    for compiled in (False,) if small else (False, True):
        name = f"{kind}, {side} px, {steps} steps, {batch} at once{', ours compiled' if compiled else ''}"
        dtype = torch.float32 if small else torch.bfloat16
        case = generation.Case(name, weights, KINDS[kind], side, steps, 7.5, batch, images, dtype, compiled)
        yield from generation.table(case, generation.compare(case, turns))


def matrix_peak(small: bool) -> float:
    """Return the FLOP/s of a large product of random matrices, in bfloat16 on a GPU: the best of ten."""
    device, side = best_device(), 512 if small else SIDE
    a, b = (torch.randn(side, side, device=device, dtype=torch.float32 if small else torch.bfloat16) for _ in "ab")
    seconds = []
    for _ in range(13):
        _wait()
        begin = time.perf_counter()
        a @ b
        _wait()
        seconds.append(time.perf_counter() - begin)
    return float(2 * side**3 / min(seconds[3:]))


def anatomy(kind: str, weights: str, small: bool) -> Iterator[str]:
    """Yield how much of the matrix peak a training step reaches, and a table of where its time goes."""
    side = 64 if small else 512 if kind == "sd15" else 1024
    case = dreambooth.Case(
        kind, weights, KINDS[kind], side, 1, False, "32-true" if small else "bf16-mixed",
        "full" if kind == "sd15" else "lora",
    )  # fmt: skip
    peak, step = matrix_peak(small), _step_of(case)
    for _ in range(3):
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    flops = float(counter.get_total_flops())
    repeats = 2 if small else 10
    _wait()
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    _wait()
    seconds = (time.perf_counter() - begin) / repeats
    on_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            step()
        _wait()
    yield (
        f"{kind}, {side} px, 1 + 1: {flops / 1e12:.3g} TFLOP a step in {1e3 * seconds:.1f} ms, "
        f"{flops / seconds / 1e12:.3g} TFLOP/s, {flops / seconds / peak:.1%} of the {peak / 1e12:.3g} TFLOP/s that a "
        "product of large matrices reaches\n"
    )
    spent = _by_group(seen, repeats, on_gpu)
    spent["nothing: the device waits for the host"] = max(0.0, seconds - sum(spent.values()))
    yield "| where a step's time goes | ms | share |\n|---|---|---|"
    for name, each in sorted(spent.items(), key=lambda item: -item[1]):
        yield f"| {name} | {1e3 * each:.2f} | {each / seconds:.0%} |"


def _step_of(case: dreambooth.Case) -> Callable[[], None]:
    """Return a training step of the UNet, as `DreamBooth` does it, on fixed data."""
    device, config = best_device(), dreambooth.config_of(case, 1)
    model = dreambooth.load(case).to(device)
    prepare(model, config, 0)
    trained = [parameter for parameter in model.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, dreambooth.RATE, fused=True)
    noisy = torch.randn(2 * case.batch, *model.latent_size, device=device)
    t = torch.randint(0, 1000, (len(noisy),), device=device)
    text = model.encode_text([dreambooth.SUBJECT.instance_prompt] * len(noisy))
    half: Any = nullcontext() if case.precision == "32-true" else torch.autocast(device.type, torch.bfloat16)

    def step() -> None:
        with half:
            prediction = model.predict(noisy, t, text)
        (prediction.float() - noisy).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _by_group(seen: profile, repeats: int, on_gpu: bool) -> dict[str, float]:
    """Return seconds of a step by group of kernels."""
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        micro = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key.lower()
        group = next((group for group, marks in GROUPS.items() if any(mark in name for mark in marks)), OTHER)
        spent[group] = spent.get(group, 0.0) + micro / 1e6 / repeats
    return spent


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Write the tables, part by part; a part that fails says so and leaves the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        raise SystemExit("there is no GPU; --small tries the script on a CPU")
    lines = [
        f"# A run of benchmarks/gpu.py{' --small: no figure of a GPU' if given.small else ''}",
        "",
        dreambooth.machine(),
    ]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            weights = str(write(kind, Path(folder) / kind, narrower=16 if given.small else 1))
            for title, part in (
                ("training", training(given.scripts, kind, weights, given.small)),
                ("generation", painting(kind, weights, given.small)),
                ("where a training step's time goes", anatomy(kind, weights, given.small)),
            ):
                lines += ["", f"## {kind}: {title}", ""]
                try:
                    for line in part:
                        lines.append(line)
                        print(line, flush=True)
                        given.out.write_text("\n".join(lines) + "\n")
                except (Exception, SystemExit) as error:  # one part short is better than an hour of a GPU lost
                    failed += 1
                    lines.append(f"failed: {type(error).__name__}: {str(error).splitlines()[0]}")
                    traceback.print_exc()
                given.out.write_text("\n".join(lines) + "\n")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
    sys.exit(failed)


if __name__ == "__main__":
    main()
