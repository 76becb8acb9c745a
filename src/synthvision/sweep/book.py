"""A sweep's folder: each job's frozen config and what became of it. Any process can run a job, any start go on.

<root>/.sweeps/<sweep>/sweep.json          its name, the command that goes on with it, and its run in each store
<root>/.sweeps/<sweep>/jobs/<job>.json     a job's composed config: editing YAML no longer changes it
<root>/.sweeps/<sweep>/jobs/<job>.done     its outcome, written whole or not at all
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from synthvision import artifact

DONE, PRUNED, FAILED, WAITING = "done", "pruned", "failed", "waiting"


@dataclass(frozen=True)
class Job:
    """One job as it was composed, in plain values."""

    digest: str  # of config and inputs: its identity
    name: str  # what varies, for tables: "optimizer=adam lr=0.001"
    overrides: Sequence[str]  # from which the command is rebuilt that runs it alone
    config: Mapping[str, Any]

    @property
    def command(self) -> str:
        """The command that runs this job alone."""
        return shlex.join(["synthvision", *self.overrides])


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    state: str  # DONE, FAILED, PRUNED (ended early by a search), or WAITING for people
    seconds: float
    error: str = ""  # first line of what went wrong, or what it waits for
    metrics: Mapping[str, float] = field(default_factory=dict)  # best/val/...: the ones that a choice may be made by
    folders: Sequence[str] = ()  # of the finished stages: a job whose result was deleted is not done

    @property
    def holds(self) -> bool:
        """Whether the job need not run again."""
        return self.state in (DONE, PRUNED) and all(artifact.finished(Path(folder)) for folder in self.folders)


@dataclass(frozen=True)
class Book:
    """A sweep's folder. It can be sent to another process on a machine that shares the file system."""

    folder: Path

    def describe(self, name: str, command: str, runs: Mapping[str, str]) -> None:
        """Note the sweep's name, the command that goes on with it, and its MLflow run in each store (address -> id)."""
        artifact.write_json(self._card, {"name": name, "command": command, "runs": dict(runs)})

    @property
    def runs(self) -> dict[str, str]:
        """The sweep's MLflow run in each store that it was started with: address -> id."""
        return dict(json.loads(self._card.read_text()).get("runs", {})) if self._card.exists() else {}

    def write(self, job: Job) -> None:
        """Freeze a job."""
        artifact.write_json(self._file(job.digest, "json"), asdict(job))

    def read(self, digest: str) -> Job:
        """Return a frozen job."""
        return Job(**json.loads(self._file(digest, "json").read_text()))

    def outcome(self, digest: str) -> Outcome | None:
        """Return what became of a job; None for one that never ended."""
        try:
            return Outcome(**json.loads(self._file(digest, DONE).read_text()))
        except FileNotFoundError:
            return None

    def end(self, digest: str, outcome: Outcome) -> None:
        """Note what became of a job."""
        artifact.write_json(self._file(digest, DONE), asdict(outcome))
        self._file(digest, "running").unlink(missing_ok=True)

    def begin(self, digest: str) -> None:
        """Note that this process works on a job; what became of it before no longer counts."""
        self.forget(digest)
        artifact.write_text(self._file(digest, "running"), f"{socket.gethostname()} {os.getpid()}\n")

    def forget(self, digest: str) -> None:
        """Drop what is known of a job's end and of who works on it."""
        for suffix in (DONE, "running"):
            self._file(digest, suffix).unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Drop what is known of all jobs' ends."""
        for file in self.folder.glob(f"jobs/*.{DONE}"):
            file.unlink()

    def is_running(self, digest: str) -> bool:
        """Tell whether a job began and did not end; its process may be gone."""
        return self._file(digest, "running").exists()

    def lock(self, digest: str) -> Path:
        """Return the file whose lock the process holds that works on a job."""
        return self._file(digest, "lock")

    def log(self, digest: str) -> Path:
        """Return the file that a job in another process prints into."""
        return self.logs / f"{digest}.log"

    @property
    def logs(self) -> Path:
        """The folder of those files; none where all jobs ran in the sweep's own process."""
        return self.folder / "logs"

    @property
    def session(self) -> str:
        """The start of the sweep that jobs now belong to; "" once it has ended. Workers of an earlier one stop."""
        file = self.folder / "session"
        return file.read_text() if file.exists() else ""

    def open_session(self, name: str) -> None:
        """Let only workers of this start begin jobs; "" lets none."""
        artifact.write_text(self.folder / "session", name)

    @property
    def _card(self) -> Path:
        return self.folder / "sweep.json"

    def _file(self, digest: str, suffix: str) -> Path:
        return self.folder / "jobs" / f"{digest}.{suffix}"
