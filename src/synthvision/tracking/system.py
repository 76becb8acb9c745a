"""Samples of CPU, memory, disk, network and GPU while a stage runs, into its journal.

MLflow's own thread asks the server for the run's status at every sample and ends at the first that is not answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, cast

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

Log = Callable[[Mapping[str, float], int], None]


@contextmanager
def sampled(log: Log, interval: float) -> Iterator[None]:
    """Log a sample every `interval` seconds as long as the block lasts."""
    done = threading.Event()
    thread = threading.Thread(target=_sample, args=(log, interval, done), name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _sample(log: Log, interval: float, done: threading.Event) -> None:
    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]  # Any: MLflow types none of their methods
    monitors = [kind() for kind in kinds]
    with suppress(Exception):  # MLflow says by an exception of any kind that there is no GPU or no library for it
        monitors.append(cast(Any, GPUMonitor)())
    step = 0
    while not done.wait(interval):
        for monitor in monitors:
            monitor.collect_metrics()
            log({f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}, step)
            monitor.clear_metrics()
        step += 1
