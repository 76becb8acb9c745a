"""How fast is DreamBooth, beside diffusers' own train_dreambooth.py, and in how much memory?

    python benchmarks/dreambooth.py /path/to/train_dreambooth.py [--steps 100] [--turns 3] [--cases bf16]

The same weights, guides, class images, prompts, batch, resolution, precision, optimizer and rate, each run in a process
of its own, in turns, so that a machine that slows down slows both. Timed by `stopwatch.py`, after the first step. The
peer (examples/dreambooth in diffusers' repository) is given by path; it gets its own cache of embeddings
(`--pre_compute_text_embeddings`) where the text encoder rests. On a machine that others use, images per second of the
processor say more than images per second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from models import write

from synthvision.artifact import sha256_file
from synthvision.data.images import write_png
from synthvision.data.phantom import draw_pool
from synthvision.diffusion import backbone, dreambooth
from synthvision.diffusion.backbone import BackboneConfig
from synthvision.diffusion.class_images import class_pictures
from synthvision.diffusion.recipe import DreamBoothConfig, Subject
from synthvision.manifest import Manifest, Record

HERE = Path(__file__).parent
GUIDES, CLASS_IMAGES = 10, 16
SUBJECT = Subject("sks", "photo of sks papules", "photo of skin")
RATE = 2.0e-6
OURS, PEER = "synthvision", "diffusers"


@dataclass(frozen=True)
class Case:
    """What both are asked to train."""

    name: str
    weights: str  # a diffusers folder
    family: str
    resolution: int
    batch: int  # guides per step; as many class images come on top
    text: bool  # whether the text encoder is trained
    precision: str = "32-true"
    method: str = "full"
    optimizer: str = "adamw"
    checkpointing: bool = False
    compile: bool = False  # ours alone: the peer has no such option
    files: int = 0  # side of the guides' files; 0: the resolution


def config_of(case: Case, steps: int) -> DreamBoothConfig:
    """Return our settings: those of the peer, and nothing that is drawn or written between the steps."""
    return DreamBoothConfig(
        unet_steps=steps, unet_lr=RATE, text_steps=steps if case.text else 0, text_lr=RATE, batch_size=case.batch,
        prior_weight=1.0, class_images=CLASS_IMAGES, checkpoint_every=steps + 1, sample_every=steps + 1, warmup_steps=0,
        schedule="constant", min_snr_gamma=None, augment=False, weight_decay=1e-2, precision=case.precision,
        guidance=1.0, sample_steps=1, method=case.method, lora_rank=4, optimizer=case.optimizer,
        gradient_checkpointing=case.checkpointing, compile=case.compile,
    )  # fmt: skip


def load(case: Case) -> backbone.Backbone:
    """Load a case's weights."""
    return backbone.load(BackboneConfig(case.name, case.weights, case.resolution, case.family))


def draw(folder: Path, side: int) -> Manifest:
    """Write phantoms as guides of a side, all with the instance prompt as caption: the peer knows no other."""
    records = []
    for number, image in enumerate(draw_pool(GUIDES, 0).images):
        file = folder / "guides" / f"{number}.png"
        scale = -(-side // len(image))
        write_png(file, np.kron(image, np.ones((scale, scale, 1), np.uint8))[:side, :side])
        path = file.relative_to(folder).as_posix()
        records.append(
            Record(f"g{number}", path, sha256_file(file), "lesion", "real", "guide", caption=SUBJECT.instance_prompt)
        )
    return Manifest(tuple(records), folder)


def train_ours(case: Case, steps: int, folder: Path) -> None:
    """Train as `stage=dreambooth` does."""
    torch.set_flush_denormal(True)  # as the pipeline does
    with tempfile.TemporaryDirectory() as out:
        given = draw(folder, case.files or case.resolution), SUBJECT, [SUBJECT.class_prompt], config_of(case, steps)
        dreambooth.train(load(case), *given, Path(out), Path(out) / "work", 0, None, folder)


def peer_arguments(case: Case, steps: int, folder: Path, out: Path) -> list[str]:
    """Return the same settings as options of diffusers' scripts."""
    classes = next(folder.glob("*/images"))
    given: dict[str, Any] = {
        "pretrained_model_name_or_path": case.weights, "instance_data_dir": folder / "guides", "seed": 0,
        "instance_prompt": SUBJECT.instance_prompt, "class_data_dir": classes, "class_prompt": SUBJECT.class_prompt,
        "num_class_images": CLASS_IMAGES, "output_dir": out, "resolution": case.resolution, "learning_rate": RATE,
        "train_batch_size": case.batch, "max_train_steps": steps, "checkpointing_steps": steps + 1,
        "lr_scheduler": "constant", "lr_warmup_steps": 0,
        "mixed_precision": "no" if case.precision == "32-true" else "bf16",
    }  # fmt: skip
    flags = ["--with_prior_preservation"]
    flags += ["--gradient_checkpointing"] * case.checkpointing + ["--use_8bit_adam"] * (case.optimizer == "adamw8bit")
    if case.text:
        flags.append("--train_text_encoder")
    elif case.method == "full":  # the scripts for adapters cache embeddings by themselves
        flags.append("--pre_compute_text_embeddings")
    if case.method == "lora":
        given["rank"] = 4
    return [*flags, *(f"--{name}={value}" for name, value in given.items())]


def small_cases(folder: Path, chosen: str = "") -> Iterator[Case]:
    """Yield what a CPU can bear, at 64 px: the tiny backbone, and SD1.5 with all widths divided by 8.

    Only those whose name holds `chosen`.
    """
    tiny, narrow = folder / "tiny", folder / "sd15"
    # The peer refuses the half precision in which the package keeps them.
    backbone.load(BackboneConfig("tiny", "package:tiny", 64, "sd")).save(tiny)
    write("sd15", narrow, narrower=8)
    for precision, (name, weights, batch, files), text in itertools.product(
        ("32-true", "bf16-mixed"),
        (("tiny", tiny, 1, 0), ("tiny", tiny, 4, 0), ("tiny", tiny, 4, 512), ("SD1.5 / 8", narrow, 4, 0)),
        (True, False),
    ):
        said = f"{name}, {precision}, {batch} + {batch}, text encoder {'trained' if text else 'at rest'}"
        said += f", files of {files} px" if files else ""
        if chosen in said:
            yield Case(said, str(weights), "sd", 64, batch, text, precision, files=files)


def compare(case: Case, peer: Path, steps: int, turns: int) -> dict[str, list[dict[str, float]]]:
    """Return what the stopwatch found of either, turn by turn."""
    found: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        draw(folder, case.files or case.resolution)
        class_pictures(load(case), [SUBJECT.class_prompt], config_of(case, steps), folder, 0)
        task = folder / "task.json"
        task.write_text(json.dumps({"case": asdict(case), "steps": steps, "folder": root}))
        ways = {
            OURS: [str(HERE / "dreambooth.py"), "--task", str(task)],
            PEER: [str(peer), *peer_arguments(case, steps, folder, folder / "peer")],
        }
        for _turn in range(turns):
            for name, command in ways.items():
                found[name].append(_timed(folder / "report.json", steps, command))
    return found


def _timed(report: Path, steps: int, command: Sequence[str]) -> dict[str, float]:
    timed = [sys.executable, str(HERE / "stopwatch.py"), str(report), str(steps), *command]
    done = subprocess.run(timed, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:1])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return dict(json.loads(report.read_text()))


def table(case: Case, found: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[str]:
    """Yield a row of Markdown per trainer: images/s (guides and class images), and peaks of memory in GB."""
    rates, busy = (
        {name: [2 * case.batch / turn[clock] for turn in turns] for name, turns in found.items()}
        for clock in ("seconds", "cpu_seconds")
    )
    middle, of_cpu = ({name: statistics.median(values) for name, values in each.items()} for each in (rates, busy))
    for name, turns in found.items():
        each = ", ".join(f"{rate:.3g}" for rate in rates[name])
        peaks = {key: max(turn[key] for turn in turns) for key in turns[0] if key not in ("seconds", "cpu_seconds")}
        memory = ", ".join(f"{key} {value:.2f}" for key, value in peaks.items())
        times, of_times = middle[name] / middle[PEER], of_cpu[name] / of_cpu[PEER]
        cells = [case.name, name, f"{middle[name]:.3g}", each, f"{times:.2f}"]
        yield "| " + " | ".join([*cells, f"{of_cpu[name]:.3g}", f"{of_times:.2f}", memory]) + " |"


COLUMNS = ("case", "trainer", "images/s", "all turns", "times diffusers", "images/CPU s", "times diffusers", "peak GB")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def machine() -> str:
    """Return in a line what the figures were taken with."""
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{time.strftime('%Y-%m-%d')}: {gpu}{_processor()}, {torch.get_num_threads()} threads, load {load}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {diffusers.__version__}"
    )


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.machine()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", type=Path, nargs="?", help="diffusers' train_dreambooth.py")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", default="", help="those whose name holds this: tiny, bf16, 4 + 4, at rest, ...")
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)  # what a timed process of ours is to train
    given = parser.parse_args()
    if given.task:
        task = json.loads(given.task.read_text())
        train_ours(Case(**task["case"]), task["steps"], Path(task["folder"]))
        return
    print(f"{machine()}\n\n{HEADER}")
    with tempfile.TemporaryDirectory() as folder:
        for case in small_cases(Path(folder), given.cases):
            for row in table(case, compare(case, given.peer, given.steps, given.turns)):
                print(row, flush=True)


if __name__ == "__main__":
    main()
