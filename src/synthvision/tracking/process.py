"""Which process a run belongs to, and which commit it ran."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

CLOCK_DRIFT = 60.0  # seconds by which a process's start time may seem to move when the clock is set


def this_process() -> str:
    """Name this process so that another can tell later whether it still lives."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def is_alive(process: str) -> bool:
    """Tell whether the process that `this_process` named may still run; another machine's always may."""
    host, pid, started = process.rsplit(" ", 2)
    if host != socket.gethostname():
        return True
    try:
        drift: float = psutil.Process(int(pid)).create_time() - float(started)
    except psutil.NoSuchProcess:
        return False
    return abs(drift) < CLOCK_DRIFT  # otherwise another process has the number now


def git_commit() -> str:
    """Return the commit of the running source, with "-dirty" if it was edited since; "" for an installed package."""
    here = Path(__file__)
    package = here.parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", str(here))  # fails for a package that merely lies inside some repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    return ""
