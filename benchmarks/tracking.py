"""What tracking costs: at one metric per step, and for comparing 1,000 runs.

    python benchmarks/tracking.py overhead          a training with and without, in turns
    python benchmarks/tracking.py compare [RUNS]    stage=compare on a store of so many runs

Prints medians with the machine's load. Wall time counts what the trainer waits; CPU time also what other threads do.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from mlflow.entities import Metric, Param
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger
from torch.utils.data import DataLoader, TensorDataset

from synthvision.classification.model import ModelConfig, build
from synthvision.tracking.config import PARENT, TrackingConfig, flatten
from synthvision.tracking.store import connect, open_store

PAIRS, STEPS, BATCH = 5, 40, 16
TIMES = 5


class Training(LightningModule):
    """The tiny classifier at its own size, logging one metric per step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = ModelConfig("vit_tiny_patch16_224", 64, patch_size=8, embed_dim=128, depth=6, heads=4)
        self.network = build(config, 2)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-4)


def train(logger: Logger | None) -> tuple[float, float]:
    """Return wall and CPU seconds of a training."""
    images = torch.randn(STEPS * BATCH, 3, 64, 64)
    data = DataLoader(TensorDataset(images, torch.arange(len(images)) % 2), BATCH)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger or False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = Training()
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.fit(module, data)
    return time.perf_counter() - wall, time.process_time() - cpu


def overhead(folder: Path) -> None:
    """Train with and without tracking in turns, and print what it adds."""
    store = open_store(TrackingConfig(str(folder)), "overhead")
    with store.stage_run("warm up", {}, "", {}) as run:
        train(run.lightning_logger())
    without, tracked = [], []
    for _ in range(PAIRS):
        without.append(train(None))
        with store.stage_run("classify", {}, "", {}) as run:
            tracked.append(train(run.lightning_logger()))
    for index, kind in enumerate(("wall", "CPU")):
        ratios = [with_it[index] / plain[index] for plain, with_it in zip(without, tracked, strict=True)]
        step = statistics.median(plain[index] for plain in without) / STEPS * 1_000
        spread = " ".join(f"{100 * (ratio - 1):+.1f}" for ratio in sorted(ratios))
        print(f"{kind}: {step:.1f} ms a step without; tracking adds {100 * (statistics.median(ratios) - 1):+.2f}% "
              f"(pairs: {spread})")  # fmt: skip
    with store.stage_run("calls", {}, "", {}) as run:
        print(f"one call of the logger: {1e6 * _per_call(run.lightning_logger()):.0f} microseconds")


def _per_call(logger: Logger) -> float:
    start = time.perf_counter()
    for step in range(2_000):
        logger.log_metrics({"train/loss": 0.5}, step)
    return (time.perf_counter() - start) / 2_000


def compare(folder: Path, runs: int) -> None:
    """Fill a store as a sweep would, and time the command on it."""
    config = TrackingConfig(str(folder / "mlruns"), system_metrics=False)
    fill(config, runs)
    command = [
        sys.executable,
        "-m",
        "synthvision",
        "stage=compare",
        "stage.sweep=sweep",
        f"tracking.root={config.root}",
    ]
    times = [_timed(lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True)) for _ in range(TIMES)]
    print(f"stage=compare on {runs} runs: {statistics.median(times):.2f} s (least {min(times):.2f} s)")
    client, experiment = connect(config), open_store(config, "phantom").experiment_id
    print(f"MLflow's own search of them: {_timed(lambda: client.search_runs([experiment], max_results=50_000)):.2f} s")


def fill(config: TrackingConfig, runs: int) -> None:
    """Make a sweep's run and as many jobs, each with all parameters of the phantom study."""
    job = [sys.executable, "-m", "synthvision", "--cfg", "job", "--resolve"]
    text = subprocess.run(job, check=True, capture_output=True, text=True).stdout
    params = {key: str(value) for key, value in flatten(yaml.safe_load(text)).items()}
    store, rng = open_store(config, "phantom"), np.random.default_rng(0)
    with store.sweep_run("sweep", "digest", {}) as (sweep, _):
        client = connect(config)
        for number in range(runs):
            own = {**params, "classifier.lr": f"{10.0 ** -rng.integers(2, 5):g}", "seed": str(number)}
            made = client.create_run(store.experiment_id, run_name=f"job {number}", tags={PARENT: sweep.run_id})
            names = [f"test/{name}{end}" for name in ("accuracy", "auc") for end in ("", "_low", "_high")]
            metrics = [Metric(name, float(rng.random()), 0, 0) for name in (*names, "best/val/loss", "best/val/auroc")]
            given = [Param(key, value) for key, value in own.items()]
            for start in range(0, len(given), 100):
                client.log_batch(made.info.run_id, metrics if start == 0 else [], given[start : start + 100])
            client.set_terminated(made.info.run_id)


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Run what the command line names."""
    what, *numbers = sys.argv[1:] or ["overhead"]
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        if what == "overhead":
            overhead(Path(folder))
        else:
            compare(Path(folder), int(numbers[0]) if numbers else 1_000)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
