"""A thread that sends a process's journal while the process works, and those that dead processes left."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Any

from synthvision.tracking.config import TrackingConfig, without_passwords
from synthvision.tracking.delivery import Delivery, Sent
from synthvision.tracking.journal import SUFFIX, Journal, left_behind

INTERVAL = 2.0  # seconds for which metrics gather before they are sent together
FIRST_RETRY, LAST_RETRY = 1.0, 30.0  # seconds between two tries of a store that does not answer

_gave_up: set[str] = set()  # addresses that this process waited for in vain, and that have not answered since

logger = logging.getLogger("synthvision.tracking")


class Sender:
    """Takes entries at the speed of the local disk; nothing that the store does holds up or stops the caller."""

    def __init__(self, config: TrackingConfig) -> None:
        self.journal = Journal.new(config.spool)
        self._config = config
        self._delivery = Delivery(config)
        self._wake = threading.Event()
        self._progress = threading.Condition()
        self._closing = False
        self._hurried = False  # someone waits
        self.failing = False
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def append(self, entry: dict[str, Any]) -> None:
        """Keep an entry, to be sent soon; metrics are sent together with those of the next seconds."""
        self.journal.append(entry)
        if entry["op"] != "metrics":
            self._wake.set()

    def report_failure(self, error: Exception) -> None:
        """Note that the store did not answer, and say it once."""
        if not self.failing:
            self.failing = True
            reason = without_passwords(str(error)).splitlines()[0][:200]
            logger.warning(
                "tracking: %s does not answer (%s). Work goes on; what it logs is kept in %s and sent when it is back, "
                "or by synthvision stage=sync",
                self._config.uri, reason, self._config.spool,
            )  # fmt: skip

    def wait(self) -> bool:
        """Wait until all has arrived, but no longer than `tracking.patience`.

        While nothing answers that is once in a process: the jobs of a sweep have a sender each.
        """
        if self._config.uri in _gave_up:
            return False
        deadline, end = time.monotonic() + self._config.patience, self.journal.written
        with self._progress:
            self._hurried = True
            self._wake.set()
            while self.journal.sent < end:
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    _gave_up.add(self._config.uri)
                    break
                self._progress.wait(min(left, 0.5))
            self._hurried = False
        return self.journal.sent >= end

    def close(self) -> None:
        """Wait as `wait` does, and leave the rest to whoever comes next."""
        if not self.wait():
            waits = sum(1 for _ in self.journal.waiting())
            logger.warning(
                "tracking: %d entries of this run wait in %s; synthvision stage=sync sends them once %s answers",
                waits, self.journal.file, self._config.uri,
            )  # fmt: skip
        self._closing = True
        self._wake.set()
        self._thread.join(1.0)  # a thread that a frozen server holds ends with the process

    def _work(self) -> None:
        orphans, pause = True, 0.0
        while True:
            self._sleep(pause)
            if self._closing:  # whoever closes has waited already
                self.journal.close()
                return
            self._wake.clear()
            try:
                self._turn(orphans)
            except Exception as error:
                self.report_failure(error)
                orphans, pause = True, min(2 * pause, LAST_RETRY) or FIRST_RETRY
            else:
                if self.failing:
                    logger.warning("tracking: %s answers again; all was sent", self._config.uri)
                note_answer(self._config)
                self.failing, orphans, pause = False, False, 0.0
            with self._progress:
                self._progress.notify_all()

    def _turn(self, orphans: bool) -> None:
        """Send all that waits; a run that waits in a dead process's journal does not hold up the others for good."""
        try:
            self._delivery.send(self.journal)
        finally:
            if orphans:
                send_left_behind(self._delivery, self._config)

    def _sleep(self, pause: float) -> None:
        if not pause:
            self._wake.wait(INTERVAL)
            return
        until = time.monotonic() + pause
        while time.monotonic() < until and not self._closing:
            time.sleep(0.1)
            if self._hurried:
                until = min(until, time.monotonic() + FIRST_RETRY)


def note_answer(config: TrackingConfig) -> None:
    """Note that a store answers: what is sent to it is waited for again."""
    _gave_up.discard(config.uri)


def send_left_behind(delivery: Delivery, config: TrackingConfig) -> Sent:
    """Send what processes that are gone have left.

    Raises:
        Exception: the store does not answer.
    """
    sent = Sent()
    files = len(list(config.spool.glob(f"*{SUFFIX}")))
    for journal in left_behind(config.spool):
        try:
            sent += delivery.send(journal)
        finally:
            journal.close()
    return replace(sent, held=files - sent.journals)
