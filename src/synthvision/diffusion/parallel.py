"""Training by several processes on one machine: this one is rank 0, the others are started beside it.

Lightning would start the command anew for each rank: a whole pipeline with its locks and its run, which wait for each
other. Here the other ranks get the module alone. Logging and results stay with rank 0.
"""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from synthvision.training import fit_steps

HOST = "127.0.0.1"
JOIN = 30  # seconds that the other ranks get to end after rank 0


@dataclass(frozen=True)
class Fit:
    """How long and where a module is trained; see `training.fit_steps`."""

    steps: int
    work: Path
    checkpoint_every: int
    logger: Logger | None
    accelerator: str
    precision: str
    callbacks: tuple[Callback, ...] = ()

    def run(self, module: LightningModule, strategy: str | Strategy = "auto", devices: int = 1) -> None:
        """Train."""
        fit_steps(
            module,
            self.steps,
            self.work,
            self.checkpoint_every,
            self.logger,
            self.accelerator,
            self.precision,
            callbacks=self.callbacks,
            strategy=strategy,
            devices=devices,
        )


def new_strategy(name: str, devices: int, accelerator: str, unused: bool) -> Strategy:
    """Return Lightning's strategy: "ddp" copies the weights, "fsdp" spreads them.

    Args:
        name: one of the two.
        devices: processes.
        accelerator: "cpu" or "cuda".
        unused: some trained parameters have no part in some steps, such as a text encoder that was frozen.
    """
    backend = "nccl" if accelerator == "cuda" else "gloo"
    if name == "fsdp":
        return ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False, process_group_backend=backend)
    return DDPStrategy(process_group_backend=backend, find_unused_parameters=unused, broadcast_buffers=False)


def fit_on(devices: int, strategy: str, unused: bool, module: LightningModule, fit: Fit) -> None:
    """Train on `devices` processes; with one, in this one alone.

    Args:
        devices: GPUs, or processes on the CPU.
        strategy: see `new_strategy`.
        unused: see `new_strategy`.
        module: on the CPU where there are several processes; it can be pickled.
        fit: how long and where.

    Raises:
        ValueError: fewer GPUs than devices.
    """
    if devices == 1:
        fit.run(module)
        return
    if fit.accelerator == "cuda" and torch.cuda.device_count() < devices:
        raise ValueError(f"dreambooth.devices={devices}, but there are {torch.cuda.device_count()} GPUs; lower it")
    port = _free_port()
    context = torch.multiprocessing.get_context("spawn")
    quiet = replace(fit, logger=None, callbacks=())
    others = [
        context.Process(target=_rank, args=(rank, devices, port, strategy, unused, module, quiet), daemon=True)
        for rank in range(1, devices)
    ]
    for process in others:
        process.start()
    try:
        with _environment(0, devices, port):
            fit.run(module, new_strategy(strategy, devices, fit.accelerator, unused), devices)
    finally:
        _end(others)


def _rank(rank: int, devices: int, port: int, strategy: str, unused: bool, module: LightningModule, fit: Fit) -> None:
    # What was sent shares its memory with rank 0.
    own = copy.deepcopy(module)
    own.train()
    with _environment(rank, devices, port):
        fit.run(own, new_strategy(strategy, devices, fit.accelerator, unused), devices)


@contextmanager
def _environment(rank: int, devices: int, port: int) -> Iterator[None]:
    """Say to Lightning which rank this process is; afterwards leave the group."""
    given: dict[str, Any] = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": devices}
    given |= {"MASTER_ADDR": HOST, "MASTER_PORT": port}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update({name: str(value) for name, value in given.items()})
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _end(others: list[Any]) -> None:
    for process in others:
        process.join(JOIN if process.exitcode is None else 0)
        if process.is_alive():
            process.terminate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
