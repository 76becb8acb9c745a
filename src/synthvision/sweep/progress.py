"""How far a sweep is: done, running, failed, the best so far, and the time left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live

from synthvision.sweep.book import DONE, FAILED, PRUNED, WAITING, Book, Job, Outcome


@dataclass(frozen=True)
class Goal:
    """By which metric jobs are compared; one of validation, since a choice by test results would make them worthless.

    Raises:
        ValueError: another metric.
    """

    metric: str
    greatest: bool

    def __post_init__(self) -> None:
        if not self.metric.startswith("best/val/"):
            raise ValueError(f"hydra.sweeper.metric must be one of validation, best/val/...; it is {self.metric!r}")

    def value(self, outcome: Outcome | None) -> float | None:
        """Return a finished job's value; None where it has none."""
        return outcome.metrics.get(self.metric) if outcome and outcome.state == DONE else None

    def best(self, values: Mapping[str, float]) -> str:
        """Return the job with the best value, the first of equals."""
        return (max if self.greatest else min)(values, key=values.__getitem__)


class Progress:
    """Shows how far a sweep is whenever that has changed: one line that stays on a terminal, else one line each time.

    Args:
        book: where outcomes stand.
        jobs: digest -> job; a search adds to them.
        total: jobs of the whole sweep.
        goal: what "best" means.
        live: keep the line at the bottom of the terminal; not where jobs print on it themselves.
    """

    def __init__(self, book: Book, jobs: Mapping[str, Job], total: int, goal: Goal, live: bool) -> None:
        self._book, self._jobs, self._total, self._goal = book, jobs, total, goal
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4) if live and self._console.is_terminal else None
        self._before = ""
        self._start = time.monotonic()
        self.earlier = 0  # jobs that ended in an earlier start: of those in `jobs` ...
        self.forgotten = 0  # ... and others, of a search

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.update()
        if self._live:
            self._live.stop()

    def update(self) -> None:
        """Show what has changed."""
        line = self.line()
        if line == self._before:
            return
        self._before = line
        line += self._left()
        if self._live:
            self._live.update(line)
        else:
            self._console.print(line, soft_wrap=True)

    def line(self) -> str:
        """Return one line: `sweep: 3 of 25 done, 2 running, 1 failed, best/val/loss 0.12 (lr=1e-3)`."""
        outcomes = self._outcomes()
        of = Counter(each.state for each in outcomes.values())
        running = sum(self._book.is_running(job) for job in self._jobs if job not in outcomes)
        parts = [f"{of[DONE] + self.forgotten} of {self._total} done"]
        parts += [f"{running} running"] if running else []
        parts += [f"{of[state]} {state}" for state in (PRUNED, FAILED, WAITING) if of[state]]
        values = {job: value for job, each in outcomes.items() if (value := self._goal.value(each)) is not None}
        if values:
            best = self._goal.best(values)
            parts.append(f"{self._goal.metric} {values[best]:.4g} ({self._jobs[best].name})")
        return f"sweep: {', '.join(parts)}"

    def _outcomes(self) -> dict[str, Outcome]:
        found = {job: self._book.outcome(job) for job in self._jobs}
        return {job: outcome for job, outcome in found.items() if outcome}

    def _left(self) -> str:
        outcomes = len(self._outcomes())
        ended, waiting = outcomes - self.earlier, self._total - outcomes - self.forgotten
        if not waiting or ended < 1:
            return ""
        # By the clock of the sweep: that jobs run side by side, and what they share, counts as it happened.
        return f", about {_words((time.monotonic() - self._start) / ended * waiting)} left"


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
