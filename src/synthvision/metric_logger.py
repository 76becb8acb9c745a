"""A Lightning logger that hands metrics on as they come. It never opens, ends or judges a run."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

Row = tuple[str, float, int, int]  # name, value, time in milliseconds, step


class MetricLogger(Logger):
    """Hands on what `self.log` gives, at once: it goes to a local file, and a killed training loses none of it.

    Args:
        run_id: the run that the rows belong to.
        write: takes the rows of one step.
    """

    def __init__(self, run_id: str, write: Callable[[Sequence[Row]], None]) -> None:
        super().__init__()
        self._run_id = run_id
        self._write = write

    @property
    def name(self) -> str:
        """Lightning's name of the experiment."""
        return "synthvision"

    @property
    def version(self) -> str:
        """Lightning's name of the run."""
        return self._run_id

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them: the run already holds the whole resolved config as parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take values at one step. `epoch`, which Lightning adds by itself, is left out: it is an axis, no result."""
        now = time.time_ns() // 1_000_000
        self._write([(name, float(value), now, step or 0) for name, value in metrics.items() if name != "epoch"])
