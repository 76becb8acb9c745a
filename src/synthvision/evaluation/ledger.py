"""The test-set ledger: who opened a test set, when, for which run, and why. Every opening is one line for ever.

A test set can be looked at once; each further look makes its result a little more of a validation result. The ledger
does not forbid it: it asks for a reason and shows the count. A plan that was written down before the first opening is
such a reason, once for each of its runs. Lines are chained by hashes, so a line that was changed, removed from the
middle or reordered is found. A cut-off end is not visible in the file itself: the count is therefore also kept as a tag
of each run.
"""

from __future__ import annotations

import getpass
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

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
    reason: str  # empty for a first opening that no plan has
    previous: str  # hash of the line before; empty in the first
    hash: str  # over all other fields


@dataclass(frozen=True)
class Plan:
    """Which runs are to open test sets; written before they do."""

    number: int  # from 1
    runs: tuple[str, ...]  # the arm, backbone and seed of each, in words
    opened: tuple[str, ...]  # digests of the test sets that had been opened before: for them it comes too late
    who: str
    when: str  # UTC, to the second
    previous: str
    hash: str


Entry = TypeVar("Entry", Opening, Plan)


@dataclass(frozen=True)
class Ledger:
    """The ledgers of all test sets of a study: one JSON-lines file in `folder` per digest of a test set."""

    folder: Path

    def register(self, runs: Iterable[str], who: str = "") -> None:
        """Write down which runs are to open test sets; the same plan again adds nothing.

        Raises:
            LedgerError: the file of plans was changed.
        """
        wanted = tuple(sorted(set(runs)))
        self._plans.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._plans}.lock"):
            before = self.plans()
            if wanted in [plan.runs for plan in before]:
                return
            opened = tuple(sorted(file.stem for file in self.folder.glob("*.jsonl")))
            previous = before[-1].hash if before else ""
            entry = Plan(len(before) + 1, wanted, opened, who or _user(), _now(), previous, hash="")
            _write_chain(self._plans, (*before, replace(entry, hash=_hash(entry))))

    def plans(self) -> tuple[Plan, ...]:
        """Return all plans in order, after checking the chain.

        Raises:
            LedgerError: a line was changed, removed or reordered.
        """
        read = _read_chain(self._plans, Plan)
        return tuple(replace(plan, runs=tuple(plan.runs), opened=tuple(plan.opened)) for plan in read)

    @property
    def _plans(self) -> Path:
        return self.folder / "plans" / "plans.jsonl"  # a folder of its own: it is no test set's

    def open(
        self,
        test_set: str,
        evaluated: str,
        run: str,
        reason: str | None = None,
        who: str = "",
        planned: str = "",
    ) -> Opening:
        """Record one use of a test set, before its labels are read, and return it.

        The same evaluation interrupted and run again is the same opening: it can learn nothing new.

        Args:
            test_set: digest of the test set's manifest, hexadecimal.
            evaluated: fingerprint of the evaluation.
            run: tracking run, or empty.
            reason: why a test set is opened again (the setting `evaluate.reopen`).
            who: by default the name this process runs under.
            planned: the run as a plan names it. A plan from before the first opening is reason enough, once for each of
                its runs.

        Raises:
            LedgerError: the test set was opened before and no reason is given, or the ledger was tampered with.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.file(test_set)}.lock"):  # two sweeps' jobs may open at once
            before = self.openings(test_set)
            for opening in before:
                if opening.evaluated == evaluated:
                    return opening
            why = self._reason(test_set, before, reason, planned)
            if before and not why:
                raise LedgerError(_refusal(before))
            opening = _opening(before, test_set, evaluated, run, why, who or _user())
            _write_chain(self.file(test_set), (*before, opening))
        return opening

    def check(self, test_set: str, reason: str | None, planned: str) -> None:
        """Refuse what `open` would refuse, before the work that leads to it.

        A run that a plan has already let in passes: it may be the same evaluation once more.

        Raises:
            LedgerError: the test set was opened before, no reason is given and no plan has the run.
        """
        before = self.openings(test_set)
        if before and not (self._reason(test_set, before, reason, planned) or self._plan_of(test_set, planned)):
            raise LedgerError(_refusal(before))

    def _reason(self, test_set: str, before: tuple[Opening, ...], given: str | None, planned: str) -> str:
        """Return why a test set is opened: as planned, and what was given; empty where there is neither."""
        plan = self._plan_of(test_set, planned)
        used = any(opening.reason.startswith(f"planned: {planned} (") for opening in before)
        by_plan = f"planned: {planned} (plan {plan.number}, {plan.hash[:12]})" if plan and not used else ""
        return "; ".join(filter(None, [by_plan, (given or "").strip()]))

    def _plan_of(self, test_set: str, planned: str) -> Plan | None:
        """Return the first plan that has a run and is older than the test set's first opening."""
        return next((p for p in self.plans() if planned in p.runs and test_set not in p.opened), None)

    def openings(self, test_set: str) -> tuple[Opening, ...]:
        """Return all openings of a test set in order, after checking the chain.

        Raises:
            LedgerError: a line was changed, removed or reordered.
        """
        return _read_chain(self.file(test_set), Opening)

    def of(self, evaluated: Collection[str]) -> tuple[Opening, ...]:
        """Return the openings of any test set by these evaluations.

        Raises:
            LedgerError: a line was changed, removed or reordered.
        """
        everything = [self.openings(file.stem) for file in sorted(self.folder.glob("*.jsonl"))]
        return tuple(opening for openings in everything for opening in openings if opening.evaluated in evaluated)

    def file(self, test_set: str) -> Path:
        """Return where a test set's ledger lies."""
        if not re.fullmatch(r"[0-9a-f]{16,64}", test_set):
            raise ValueError(f"test_set must be a digest of 16 to 64 hexadecimal characters; it is {test_set!r}")
        return self.folder / f"{test_set}.jsonl"


def _read_chain(file: Path, kind: type[Entry]) -> tuple[Entry, ...]:
    """Return the entries of a file, none where there is no file.

    Raises:
        LedgerError: a line was changed, removed or reordered.
    """
    if not file.exists():
        return ()
    entries: list[Entry] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = kind(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise LedgerError(f"{file}, line {number}: not an entry of a ledger ({error})") from error
        previous = entries[-1].hash if entries else ""
        if (entry.number, entry.previous, entry.hash) != (number, previous, _hash(entry)):
            raise LedgerError(f"{file}, line {number}: the chain of hashes breaks here; the ledger was changed")
        entries.append(entry)
    return tuple(entries)


def _write_chain(file: Path, entries: Sequence[Opening | Plan]) -> None:
    write_text(file, "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in entries))


def _opening(before: tuple[Opening, ...], test_set: str, evaluated: str, run: str, reason: str, who: str) -> Opening:
    previous = before[-1].hash if before else ""
    entry = Opening(len(before) + 1, test_set, evaluated, run, who, _now(), reason, previous, hash="")
    return replace(entry, hash=_hash(entry))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _hash(entry: Opening | Plan) -> str:
    return digest_of({key: value for key, value in asdict(entry).items() if key != "hash"})


def _refusal(before: tuple[Opening, ...]) -> str:
    last = before[-1]
    times = "once" if len(before) == 1 else f"{len(before)} times"
    return (
        f"test set {last.test_set[:12]} was opened {times}, last on {last.when} by {last.who} "
        f"(run {last.run or 'untracked'}); "
        'to open it again set evaluate.reopen="the reason", which the report will show, or plan all runs in one sweep '
        "before the first of them"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id need not have a name
        return "unknown"
