"""How fast is training a classifier, beside timm's own script and a plain Lightning + ImageFolder loop?

    python benchmarks/classifier.py --timm-script /path/to/timm/train.py [--classifier vit_tiny] [--images 512]
                                    [--precision bf16-mixed] [--side 512]

The same images, batch, network, precision and optimizer; end to end over some epochs, decoding and checkpoints
included; in turns, so that a machine that slows down slows all. All three run in this process with all of its
libraries loaded: nobody's imports count. timm's script validates nothing here, ours its two images per epoch. Its
script is not in its package: fetch it beside the version that is installed.
Augmentation: ours as configured, timm's default (crop, flip, colour jitter), ImageFolder's a flip. Ours ends with a
pass over the training images, by which stage=predict knows foreign ones; what it takes is told apart.
CPU seconds stand beside the rates: on a machine with other work they are the steadier figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytorch_lightning as pl
import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from synthvision.artifact import sha256_file
from synthvision.classification import train as training
from synthvision.classification.batches import TrainBatches
from synthvision.classification.model import ModelConfig, build
from synthvision.classification.module import Classifier
from synthvision.classification.recipe import ClassifierConfig
from synthvision.cli import ROOT, study_of
from synthvision.data.cache import ImageCache
from synthvision.data.images import read_rgb
from synthvision.data.phantom import draw_pool
from synthvision.data.torch_data import ImageTensors
from synthvision.evaluation.evaluate import evaluate
from synthvision.manifest import Manifest, Record
from synthvision.predictions import Predictions

CLASSES = ("a", "b")
TURNS = 3


def draw(folder: Path, count: int, side: int) -> Manifest:
    """Write phantoms of two arbitrary classes as `folder/<class>/<number>.jpg`, each `side` pixels wide and high."""
    images = draw_pool(count, 0).images
    records = []
    for number, image in enumerate(images):
        label = CLASSES[number % 2]
        file = folder / "train" / label / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(file, quality=90)
        path = file.relative_to(folder).as_posix()
        records.append(Record(f"i{number}", path, sha256_file(file), label, "real", "train"))
    return Manifest(tuple(records), folder)


def ours(manifest: Manifest, config: ClassifierConfig, out: Path) -> None:
    """Train as `stage=classify` does, from an empty cache, with one validation image per class."""
    val = Manifest(manifest.records[:2], manifest.root)
    cache = ImageCache(out / "cache", config.model.image_size, 0)
    training.train(manifest, val, CLASSES, config, out, out / "work", seed=0, cache=cache)


def timm_script(script: Path) -> Callable[[Manifest, ClassifierConfig, Path], None]:
    """Return a trainer that runs timm's script in this process."""

    def run(manifest: Manifest, config: ClassifierConfig, out: Path) -> None:
        model = config.model
        sizes = {"patch_size": model.patch_size, "embed_dim": model.embed_dim, "depth": model.depth,
                 "num_heads": model.heads, "img_size": model.image_size}  # fmt: skip
        keywords = [f"{name}={value}" for name, value in sizes.items() if value is not None]
        half = ["--amp", "--amp-dtype", "bfloat16"] if config.precision == "bf16-mixed" else []
        command = [
            str(script), "--data-dir", str(manifest.root), "--train-split", "train", "--val-split", "",
            "--model", model.architecture, "--num-classes", "2", "--batch-size", str(config.batch_size),
            "--epochs", str(config.epochs), "--opt", config.optimizer, "--lr", str(config.lr), "--sched", "step",
            "--decay-epochs", "1000", "--warmup-epochs", "0",
            "--workers", "0", "--device", "cpu", "--no-prefetcher",
            "--input-size", "3", str(model.image_size), str(model.image_size),
            "--output", str(out), *half, "--model-kwargs", *keywords,
        ]  # fmt: skip
        before, sys.argv = sys.argv, command
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            sys.argv = before

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars away from the table."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Plain(pl.LightningModule):
    """What a tutorial shows."""

    def __init__(self, model: ModelConfig, config: ClassifierConfig) -> None:
        super().__init__()
        self.network, self.config = build(model, 2), config

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.config.lr)


def plain_loop(manifest: Manifest, config: ClassifierConfig, out: Path) -> None:
    """Train with Lightning on an ImageFolder."""
    side = config.model.image_size
    steps = [transforms.Resize((side, side)), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
             transforms.Normalize((0.5,) * 3, (0.5,) * 3)]  # fmt: skip
    data = ImageFolder(str(manifest.root / "train"), transforms.Compose(steps))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=config.epochs, precision=config.precision, default_root_dir=out,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Plain(replace(config.model, weights=None), config), DataLoader(data, config.batch_size, shuffle=True))


def loading(manifest: Manifest, config: ClassifierConfig, folder: Path) -> None:
    """Print images per second of bare decoding, of our loader over its epochs, and of the other two loaders."""
    side, count = config.model.image_size, len(manifest)

    def rate(work: Callable[[], object], images: int) -> str:
        start = time.process_time()
        work()
        return f"{images / (time.process_time() - start):.0f}"

    def bare() -> None:
        for record in manifest:
            read_rgb(manifest.file(record))

    def epochs(cache: ImageCache) -> None:
        batches = TrainBatches(
            ImageTensors.from_manifest(manifest, CLASSES, side, cache), config.batch_size, config.samples_per_epoch, 0
        )
        for epoch in range(config.epochs):
            batches.sampler.set_epoch(epoch)
            for _ in batches:
                pass

    data = create_dataset("", root=str(manifest.root / "train"), split="", is_training=True)
    theirs = create_loader(
        data, (3, side, side), config.batch_size, is_training=True, use_prefetcher=False, num_workers=0,
        color_jitter=0.4, hflip=0.5, persistent_workers=False,
    )  # fmt: skip
    cache, seen = ImageCache(folder / "loading", side, 0), count * config.epochs
    print("| loading, images per CPU second | |\n|---|---|")
    print(f"| bare decoding | {rate(bare, count)} |")
    print(f"| synthvision, {config.epochs} epochs from an empty cache | {rate(lambda: epochs(cache), seen)} |")
    print(f"| synthvision, {config.epochs} epochs, decoded by a run before | {rate(lambda: epochs(cache), seen)} |")
    print(f"| timm's loader with its default augmentation | {rate(lambda: list(theirs), count)} |\n")


def first_step(manifest: Manifest, config: ClassifierConfig, folder: Path) -> float:
    """Return the seconds from the call to the end of the first training step."""

    class Done(Exception):  # noqa: N818 - no error
        pass

    def stop(*_: object) -> None:
        raise Done

    whole, Classifier.on_train_batch_end = Classifier.on_train_batch_end, stop  # type: ignore[method-assign]  # for this step alone
    start = time.perf_counter()
    try:
        with quiet():
            ours(manifest, config, folder)
    except Done:
        return time.perf_counter() - start
    finally:
        Classifier.on_train_batch_end = whole  # type: ignore[method-assign]  # for this step alone
    raise AssertionError("no step was made")


def bootstrap_seconds(images: int = 200, draws: int = 10_000) -> float:
    """Return how long the whole evaluation of a test set takes with so many bootstrap draws."""
    rng = np.random.default_rng(0)
    positive = np.arange(images) % 2 == 0
    score = 1 / (1 + np.exp(-rng.normal(np.where(positive, 1.0, -1.0), 1.0)))
    rows = tuple(
        Record(f"i{n}", "x.png", "0" * 64, CLASSES[n % 2], "real", "test", patient=f"p{n // 2}") for n in range(images)
    )
    labels = tuple(row.label for row in rows)
    made = Predictions(tuple(row.image_id for row in rows), labels, CLASSES, np.stack([score, 1 - score], 1))
    start = time.perf_counter()
    evaluate(made, Manifest(rows, Path()), 0.5, "a", draws=draws)
    return time.perf_counter() - start


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-script", type=Path, required=True)
    parser.add_argument("--classifier", default="vit_tiny")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--batch", type=int, help="images per step, where the recipe's does not fit")
    parser.add_argument("--side", type=int, help="of the files in pixels, where not the network's")
    parser.add_argument("--turns", type=int, default=TURNS)
    given = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = study_of(compose("config", [f"classifier={given.classifier}"])).classifier
    config = replace(config, epochs=given.epochs, warmup_epochs=0, schedule="constant", optimizer="adamw",
                     precision=given.precision, batch_size=given.batch or config.batch_size,
                     model=replace(config.model, weights=None))  # fmt: skip
    torch.set_flush_denormal(True)  # as our pipeline does; for all three
    timms = timm_script(given.timm_script)
    ways = {"synthvision": ours, "timm's train.py": timms, "Lightning, ImageFolder": plain_loop}
    side = given.side or config.model.image_size
    print(f"{given.classifier}, {given.images} images, {given.epochs} epochs of batches of {config.batch_size}, "
          f"files of {side} px, {config.precision}; {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; "
          f"timm {timm.__version__}, torch {torch.__version__}\n")  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        manifest = draw(folder, given.images, side)
        loading(manifest, config, folder)
        print(f"first step after {first_step(manifest, config, folder / 'first'):.1f} s\n")
        compare(ways, manifest, config, folder, given.turns)
    print(f"\nevaluation of 200 images with 10,000 bootstrap draws: {bootstrap_seconds():.2f} s; "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip


@contextlib.contextmanager
def last_pass(spent: list[float]) -> Iterator[None]:
    """Append the CPU seconds of our last pass over the training images."""
    whole = training.fit_reference

    def timed(*given: Any, **named: Any) -> Any:
        busy = time.process_time()
        try:
            return whole(*given, **named)
        finally:
            spent.append(time.process_time() - busy)

    training.fit_reference = timed
    try:
        yield
    finally:
        training.fit_reference = whole


def compare(
    ways: dict[str, Callable[[Manifest, ClassifierConfig, Path], None]],
    manifest: Manifest, config: ClassifierConfig, folder: Path, turns: int,
) -> None:  # fmt: skip
    """Print images per second of each way, and how many CPU seconds it took."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    last: list[float] = []
    for turn in range(turns):
        for number, (name, way) in enumerate(ways.items()):
            start, busy = time.perf_counter(), time.process_time()
            with quiet(), last_pass(last):
                way(manifest, config, folder / f"{turn}-{number}")
            rates[name].append(len(manifest) * config.epochs / (time.perf_counter() - start))
            spent[name].append(time.process_time() - busy)
    first = next(iter(ways))
    ours, passed = statistics.median(spent[first]), statistics.median(last)
    print("| loop | images/s, median | all turns | times | CPU s, median | times by CPU | without our last pass |")
    print("|---|---|---|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(rates[first]) / statistics.median(values)
        busy = statistics.median(spent[name])
        cells = [name, f"{statistics.median(values):.0f}", ", ".join(f"{value:.0f}" for value in values)]
        cells += [f"{ratio:.2f}", f"{busy:.1f}", f"{busy / ours:.2f}"]
        cells.append(f"{busy / (ours - passed):.2f}" if name != first else f"{ours - passed:.1f} CPU s")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
