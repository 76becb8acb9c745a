"""The test-set ledger: who opened a test set, when, for which run, and why. Every opening is one line for ever.

A test set can be looked at once; each further look makes its result a little more of a validation result. The ledger
does not forbid it: it asks for a reason and shows the count. Lines are chained by hashes, so a line that was changed,
removed from the middle or reordered is found. A cut-off end is not visible in the file itself: the count is therefore
also kept as a tag of each run.
"""

from __future__ import annotations

import getpass
import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from synthvision.artifact import digest_of, write_text


class LedgerError(ValueError):
    """A test set may not be opened, or its ledger was tampered with."""


@dataclass(frozen=True)
class Opening:
    """One use of a test set."""

    number: int  # from 1
    test_set: str  # digest of the test set's manifest
    evaluated: str  # fingerprint of the evaluation: which weights at which threshold
    run: str  # tracking run; empty if it was not tracked
    who: str
    when: str  # UTC, to the second
    reason: str  # empty for the first opening only
    previous: str  # hash of the line before; empty in the first
    hash: str  # over all other fields


@dataclass(frozen=True)
class Ledger:
    """The ledgers of all test sets of a study: one JSON-lines file in `folder` per digest of a test set."""

    folder: Path

    def open(self, test_set: str, evaluated: str, run: str, reason: str | None = None, who: str = "") -> Opening:
        """Record one use of a test set, before its labels are read, and return it.

        The same evaluation interrupted and run again is the same opening: it can learn nothing new.

        Args:
            test_set: digest of the test set's manifest, hexadecimal.
            evaluated: fingerprint of the evaluation.
            run: tracking run, or empty.
            reason: why a test set is opened again (the setting `evaluate.reopen`).
            who: by default the name this process runs under.

        Raises:
            LedgerError: the test set was opened before and no reason is given, or the ledger was tampered with.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file(test_set)}.lock"):  # two sweeps' jobs may open at once
            before = self.openings(test_set)
            for opening in before:
                if opening.evaluated == evaluated:
                    return opening
            if before and not (reason or "").strip():
                raise LedgerError(_refusal(before))
            opening = _opening(before, test_set, evaluated, run, (reason or "").strip(), who or _user())
            lines = [json.dumps(asdict(each), ensure_ascii=False) for each in (*before, opening)]
            write_text(self.file(test_set), "\n".join(lines) + "\n")
        return opening

    def openings(self, test_set: str) -> tuple[Opening, ...]:
        """Return all openings of a test set in order, after checking the chain.

        Raises:
            LedgerError: a line was changed, removed or reordered.
        """
        file = self.file(test_set)
        if not file.exists():
            return ()
        openings: list[Opening] = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                opening = Opening(**json.loads(line))
            except (TypeError, ValueError) as error:
                raise LedgerError(f"{file}, line {number}: not an entry of a ledger ({error})") from error
            previous = openings[-1].hash if openings else ""
            if (opening.number, opening.previous, opening.hash) != (number, previous, _hash(opening)):
                raise LedgerError(f"{file}, line {number}: the chain of hashes breaks here; the ledger was changed")
            openings.append(opening)
        return tuple(openings)

    def file(self, test_set: str) -> Path:
        """Return where a test set's ledger lies."""
        if not re.fullmatch(r"[0-9a-f]{16,64}", test_set):
            raise ValueError(f"test_set must be a digest of 16 to 64 hexadecimal characters; it is {test_set!r}")
        return self.folder / f"{test_set}.jsonl"


def _opening(before: tuple[Opening, ...], test_set: str, evaluated: str, run: str, reason: str, who: str) -> Opening:
    when = datetime.now(UTC).isoformat(timespec="seconds")
    previous = before[-1].hash if before else ""
    entry = Opening(len(before) + 1, test_set, evaluated, run, who, when, reason, previous, hash="")
    return Opening(**{**asdict(entry), "hash": _hash(entry)})


def _hash(opening: Opening) -> str:
    return digest_of({key: value for key, value in asdict(opening).items() if key != "hash"})


def _refusal(before: tuple[Opening, ...]) -> str:
    last = before[-1]
    times = "once" if len(before) == 1 else f"{len(before)} times"
    return (
        f"test set {last.test_set[:12]} was opened {times}, last on {last.when} by {last.who} "
        f"(run {last.run or 'untracked'}); "
        'to open it again set evaluate.reopen="the reason", which the report will show'
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id need not have a name
        return "unknown"
