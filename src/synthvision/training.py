"""Training by numbered steps, each of which draws its own data, so that any interruption is resumed exactly."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import Strategy

# Lightning tells at each training which devices there are not, and of a service that could be bought.
logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
# And warns of how it calls torch 2.14 itself.
warnings.filterwarnings("ignore", r"`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)

logger = logging.getLogger("synthvision.training")

LAST = "last.ckpt"
LOG_EVERY = 10  # steps
SCHEDULES = ("constant", "cosine")
BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # instructions, as torch calls them, on x86 and ARM


def best_device() -> torch.device:
    """Return the GPU where there is one, else the CPU: the two that results are known to be repeatable on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Log a warning where bfloat16 is asked of a processor without instructions for it.

    There it is emulated: on an EPYC with AVX2 the tiny ViT then trained twelve times as slowly as in single precision.
    """
    # torch 2.14 has this function, our lower bound may not: then nothing is known, and nothing said.
    features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if precision == "bf16-mixed" and device.type == "cpu" and features and not any(features.get(f) for f in BF16):
        logger.warning(
            "precision=bf16-mixed: this processor (%s) has no bfloat16 instructions; training takes many times as long "
            "as in 32-true. Set trainer.precision or memory.precision to 32-true",
            features.get("cpu_name", "unknown"),
        )


def gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES is to be for each GPU that this process sees alone; empty without one."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return seen.split(",")[:count] if seen else [str(number) for number in range(count)]


def lr_factor(step: int, warmup: int, total: int, schedule: str) -> float:
    """Return what a learning rate is multiplied by in a step: a linear rise to 1, then the schedule.

    Args:
        step: counted from 0.
        warmup: steps of the rise.
        total: steps in all; "cosine" has come down to 0 there.
        schedule: one of SCHEDULES.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))) / 2
    return 1.0


def is_logged(step: int) -> bool:
    """Tell whether a step's values are written. To hand Lightning the others as well is a tenth of a small step."""
    return (step + 1) % LOG_EVERY == 0


class Steps:
    """A loader that numbers the steps. It has no state to lose: each step's batch follows from its number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def state_dict(self) -> dict[str, int]:
        """Tell Lightning that it may resume within an epoch."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to restore."""


class KeepLast(Callback):
    """Writes a checkpoint every so many steps, whole or not at all.

    Lightning's own writes through the system's temporary folder, from which a move need not be atomic.
    """

    def __init__(self, work: Path, every: int) -> None:
        self.work, self.every = work, every

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: it could not be written; the last one is kept.
        """
        if trainer.global_step % self.every:
            return
        partial, last = self.work / f".{LAST}", self.work / LAST
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                partial.replace(last)
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to torch
            partial.unlink(missing_ok=True)
            kept = f"{last} is kept and is resumed from" if last.exists() else "none was written yet"
            raise OSError(
                f"the checkpoint of step {trainer.global_step} could not be written to {self.work}: "
                f"{str(error).splitlines()[0]}. Make room on the disk and run again; of the older ones, {kept}"
            ) from error


def fit_steps(
    module: LightningModule,
    steps: int,
    work: Path,
    checkpoint_every: int,
    logger: Logger | None,
    accelerator: str = "cpu",
    precision: Any = "32-true",
    gradient_clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    strategy: str | Strategy = "auto",
    devices: int = 1,
) -> None:
    """Train for `steps` steps, or for what is left of them where `work` holds a checkpoint.

    Args:
        module: draws the data of a step from its seed and `global_step`.
        steps: in all.
        work: folder of the checkpoint.
        checkpoint_every: steps.
        logger: takes the metrics; None logs nowhere.
        accelerator, precision, gradient_clip, strategy, devices: as Lightning's Trainer takes them.
        callbacks: beside the one that writes checkpoints.

    Raises:
        OSError: a checkpoint could not be written; the last one is kept.
    """
    work.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        accelerator=accelerator,
        devices=devices,
        strategy=strategy,
        max_steps=steps,
        precision=precision,
        gradient_clip_val=gradient_clip,
        callbacks=[*callbacks, KeepLast(work, checkpoint_every), TQDMProgressBar(refresh_rate=10)],
        logger=logger or False,
        log_every_n_steps=LOG_EVERY,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # a step's number is all that a rank is given; it takes its share itself
        default_root_dir=work,
    )
    last = work / LAST
    trainer.fit(module, Steps(steps), ckpt_path=last if last.exists() else None, weights_only=True)
