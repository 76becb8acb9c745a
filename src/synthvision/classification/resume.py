"""Resumable state: after each epoch one checkpoint that replaces the last, and the best weights so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from synthvision.artifact import write_bytes
from synthvision.classification.model import WEIGHTS_FILE, save_weights
from synthvision.classification.module import Classifier
from synthvision.classification.recipe import PLATEAU
from synthvision.classification.schedule import plateau_factor

LAST = "last.ckpt"
BEST = "best"
OnEpoch = Callable[[int, Mapping[str, float]], None]  # epoch, counted from 0, and its metrics


def best_weights(work: Path, budget: int | None = None) -> Path:
    """Return the file of the best weights of the whole run, or of its first `budget` epochs."""
    return work / (BEST if budget is None else f"{BEST}_of_{budget:04}") / WEIGHTS_FILE


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """Return the epoch of the least validation loss, the first of equals."""
    return min(range(len(history)), key=lambda epoch: history[epoch]["val/loss"])


class EpochKeeper(Callback):
    """Keeps the history, the best epoch by validation loss, and what a killed run needs to go on.

    The best weights, of the whole run and up to each budget, are written before the checkpoint that knows of
    them: a run killed in between repeats that epoch, with the same draws, and writes the same weights again.
    """

    def __init__(self, work: Path, on_epoch: OnEpoch | None = None) -> None:
        self.work, self.on_epoch = work, on_epoch
        self.history: list[dict[str, float]] = []

    def on_train_epoch_start(self, _: Trainer, pl_module: LightningModule) -> None:
        """Set what follows from the epochs before."""
        assert isinstance(pl_module, Classifier)
        if pl_module.config.schedule == PLATEAU:
            pl_module.plateau_factor = plateau_factor([row["val/loss"] for row in self.history], pl_module.config)

    @property
    def best_epoch(self) -> int:
        """The epoch of the least validation loss so far; one at least must be over."""
        return best_epoch(self.history)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from, or None where no epoch was finished."""
        file = self.work / LAST
        return file if file.is_file() else None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch's metrics, keep its weights if they are the best, and write the checkpoint."""
        assert isinstance(pl_module, Classifier)
        # Lightning's own count of epochs is one short in the first epoch after a resume.
        epoch = len(self.history)
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        self.history.append({"epoch": float(epoch), **dict(sorted(values.items()))})
        if not math.isfinite(values["val/loss"]):
            raise ValueError(
                f"val/loss must be finite; it is {values['val/loss']} in epoch {epoch}; lower classifier.lr"
            )
        if self.best_epoch == epoch:
            save_weights(pl_module.kept, self.work / BEST, half=False)
        if epoch + 1 in pl_module.config.budgets:
            write_bytes(best_weights(self.work, epoch + 1), best_weights(self.work).read_bytes())
        # Lightning writes through the system's temporary folder, from which a move need not be atomic.
        partial = self.work / f".{LAST}"
        trainer.save_checkpoint(partial, weights_only=False)
        partial.replace(self.work / LAST)
        if self.is_over(pl_module.config.stop_after):
            trainer.should_stop = True
        if self.on_epoch:
            self.on_epoch(epoch, values)

    def is_over(self, stop_after: int | None) -> bool:
        """Tell whether so many epochs have passed since the best one that training ends early."""
        return stop_after is not None and bool(self.history) and len(self.history) - 1 - self.best_epoch >= stop_after

    def restore(self) -> None:
        """Take up the state that the checkpoint holds, before a trainer does: a run that is over trains no more."""
        if self.checkpoint:
            saved = torch.load(self.checkpoint, weights_only=True, map_location="cpu", mmap=True)
            self.load_state_dict(saved["callbacks"][self.state_key])

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint stores."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of the run that wrote the checkpoint."""
        self.history = list(state_dict["history"])
