"""A Lightning logger that gathers metrics and hands them on in batches. It never opens, ends or judges a run."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers.logger import Logger

Row = tuple[str, float, int, int]  # name, value, time in milliseconds, step
FLUSH_ROWS = 500
FLUSH_SECONDS = 5.0  # so that curves grow in the UI while a stage runs, at no cost per step


class MetricLogger(Logger):
    """Buffers what `self.log` gives; writes it every few seconds, every few hundred values, and at the end.

    Args:
        run_id: the run that the rows belong to.
        write: takes the rows; one call is one transaction.
    """

    def __init__(self, run_id: str, write: Callable[[Sequence[Row]], None]) -> None:
        super().__init__()
        self._run_id = run_id
        self._write = write
        self._rows: list[Row] = []
        self._flushed = time.monotonic()

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
        self._rows += [(name, float(value), now, step or 0) for name, value in metrics.items() if name != "epoch"]
        if len(self._rows) >= FLUSH_ROWS or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    @rank_zero_only
    def flush(self) -> None:
        """Write what was gathered."""
        rows, self._rows = self._rows, []
        self._flushed = time.monotonic()
        if rows:
            self._write(rows)

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002  # Lightning passes it by name
        """Write the rest, however the training ended."""
        self.flush()
