"""How fast is training a classifier, beside timm's own loop and a plain Lightning + ImageFolder loop?

    python benchmarks/classifier.py [--timm-script /path/to/timm/train.py] [--classifier vit_tiny] [--images 512]

The same images, batch, network, precision and optimizer; end to end over some epochs, decoding included; in turns, so
that a machine that slows down slows all. Without the script of timm's repository (not in its package), its API
stands in: create_dataset, create_loader, create_optimizer_v2 and the loop of the script without distribution.
Augmentation: ours as configured, timm's default (crop, flip, colour jitter), ImageFolder's a flip.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from synthvision.artifact import sha256_file
from synthvision.classification.model import ModelConfig, build
from synthvision.classification.recipe import ClassifierConfig
from synthvision.classification.train import train
from synthvision.cli import ROOT, study_of
from synthvision.data.images import read_rgb, write_png
from synthvision.data.phantom import draw_pool
from synthvision.evaluation.evaluate import evaluate
from synthvision.manifest import Manifest, Record
from synthvision.predictions import Predictions

CLASSES = ("a", "b")
TURNS = 3


def draw(folder: Path, count: int, side: int) -> Manifest:
    """Write phantoms of two arbitrary classes as `folder/<class>/<number>.png`."""
    images = draw_pool(count, 0).images
    records = []
    for number, image in enumerate(images):
        label = CLASSES[number % 2]
        file = folder / "train" / label / f"{number}.png"
        write_png(file, np.kron(image, np.ones((-(-side // 64), -(-side // 64), 1), np.uint8))[:side, :side])
        path = file.relative_to(folder).as_posix()
        records.append(Record(f"i{number}", path, sha256_file(file), label, "real", "train"))
    return Manifest(tuple(records), folder)


def ours(manifest: Manifest, config: ClassifierConfig, out: Path) -> None:
    """Train as `stage=classify` does; one validation image per class keeps its extra work small."""
    val = Manifest(manifest.records[:2], manifest.root)
    train(manifest, val, CLASSES, config, out, out / "work", seed=0)


def timm_loop(manifest: Manifest, config: ClassifierConfig, _: Path) -> None:
    """Train with timm's data set, loader and optimizer in its script's loop."""
    side = config.model.image_size
    data = create_dataset("", root=str(manifest.root / "train"), split="", is_training=True)
    loader = create_loader(
        data, (3, side, side), config.batch_size, is_training=True, use_prefetcher=False, num_workers=0, no_aug=False,
        color_jitter=0.4, hflip=0.5, mean=(0.5,) * 3, std=(0.5,) * 3, persistent_workers=False,
    )  # fmt: skip
    network = build(replace(config.model, weights=None), 2).train()
    optimizer = create_optimizer_v2(network, config.optimizer, config.lr, config.weight_decay)
    for _epoch in range(config.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()


def timm_script(script: Path) -> Callable[[Manifest, ClassifierConfig, Path], None]:
    """Return a trainer that runs timm's script; its start counts, as ours does not, so give it many images."""

    def run(manifest: Manifest, config: ClassifierConfig, out: Path) -> None:
        model = config.model
        sizes = {"patch_size": model.patch_size, "embed_dim": model.embed_dim, "depth": model.depth,
                 "num_heads": model.heads, "img_size": model.image_size}  # fmt: skip
        keywords = [f"{name}={value}" for name, value in sizes.items() if value is not None]
        command = [
            sys.executable, str(script), "--data-dir", str(manifest.root), "--train-split", "train", "--val-split",
            "train", "--model", model.architecture, "--num-classes", "2", "--batch-size", str(config.batch_size),
            "--epochs", str(config.epochs), "--opt", config.optimizer, "--lr", str(config.lr), "--workers", "0",
            "--device", "cpu", "--no-prefetcher", "--input-size", "3", str(model.image_size), str(model.image_size),
            "--output", str(out), "--model-kwargs", *keywords,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)

    return run


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
        accelerator="cpu", max_epochs=config.epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
    )  # fmt: skip
    trainer.fit(Plain(replace(config.model, weights=None), config), DataLoader(data, config.batch_size, shuffle=True))


def decoding(manifest: Manifest) -> float:
    """Return images per second of bare decoding."""
    start = time.perf_counter()
    for record in manifest:
        read_rgb(manifest.file(record))
    return len(manifest) / (time.perf_counter() - start)


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
    parser.add_argument("--timm-script", type=Path)
    parser.add_argument("--classifier", default="vit_tiny")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = study_of(compose("config", [f"classifier={given.classifier}"])).classifier
    config = replace(config, epochs=given.epochs, warmup_epochs=0, optimizer="adamw", precision="32-true",
                     model=replace(config.model, weights=None))  # fmt: skip
    peer = timm_script(given.timm_script) if given.timm_script else timm_loop
    ways = {"synthvision": ours, "timm": peer, "Lightning + ImageFolder": plain_loop}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        manifest = draw(folder, given.images, config.model.image_size)
        print(f"bare decoding: {decoding(manifest):.0f} images/s; timm {timm.__version__}, torch {torch.__version__}")
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(TURNS):
            for name, way in ways.items():
                start = time.perf_counter()
                way(manifest, config, folder / f"{turn} {name}")
                rates[name].append(given.images * given.epochs / (time.perf_counter() - start))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print("| loop | images/s, median | all turns | synthvision is faster by |\n|---|---|---|---|")
    for name, values in rates.items():
        ratio = middle["synthvision"] / middle[name]
        print(f"| {name} | {middle[name]:.0f} | {', '.join(f'{v:.0f}' for v in values)} | {ratio:.2f} |")
    print(f"evaluation of 200 images with 10,000 bootstrap draws: {bootstrap_seconds():.2f} s")


if __name__ == "__main__":
    main()
