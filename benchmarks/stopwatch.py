"""Run a training script as it is, and write how fast its optimizer steps were and how much memory they took.

    python benchmarks/stopwatch.py REPORT.json STEPS SCRIPT [ARGUMENT ...]

The same clock for every trainer: torch calls a hook after each step of any optimizer. The first step is not timed; the
clock stops after step STEPS, before the script saves anything. Memory is the peak between the two: of a GPU what torch
allocated and reserved, of a CPU the process's resident memory.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

OWN = Path("/proc/self")


class Stopwatch:
    """Counts optimizer steps; starts after the first, stops after the last."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.begin = steps, 0, (0.0, 0.0)
        self.spent: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    def __call__(self, *_: Any) -> None:
        self.done += 1
        if self.done == 1:
            self._wait()
            _forget_peak()
            self.begin = time.perf_counter(), time.process_time()
        elif self.done == self.steps:
            self._wait()
            ends = time.perf_counter(), time.process_time()
            spent = [(end - begin) / (self.steps - 1) for begin, end in zip(self.begin, ends, strict=True)]
            self.spent = dict(zip(("seconds", "cpu_seconds"), spent, strict=True))
            self.memory = _peak()

    def report(self) -> dict[str, float]:
        """Return seconds of a step after the first, by the clock and of the processor, and the peaks in GB."""
        if self.done != self.steps or self.steps < 2:
            raise SystemExit(f"{self.done} optimizer steps were seen, {self.steps} (2 or more) were to be timed")
        return {**self.spent, **self.memory}

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif OWN.exists():
        (OWN / "clear_refs").write_text("5")  # the kernel's way to forget the peak of resident memory


def _peak() -> dict[str, float]:
    if torch.cuda.is_available():
        return {
            "allocated": torch.cuda.max_memory_allocated() / 1e9,
            "reserved": torch.cuda.max_memory_reserved() / 1e9,
        }
    if not OWN.exists():
        return {}
    line = next(line for line in (OWN / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"resident": int(line.split()[1]) / 1e6}


def main() -> None:
    """Run the script."""
    report, steps, script, *arguments = sys.argv[1:]
    watch = Stopwatch(int(steps))
    register_optimizer_step_post_hook(watch)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    Path(report).write_text(json.dumps(watch.report()))


if __name__ == "__main__":
    main()
