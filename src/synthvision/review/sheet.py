"""Decisions in a spreadsheet: out with the images beside it, and in again."""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from synthvision.artifact import write_bytes
from synthvision.review.desk import Desk, Sent
from synthvision.review.queue import Item
from synthvision.review.store import VERDICTS

SHEET = "decisions.csv"
COLUMNS = ("image", "set", "description", "decision", "reason", "note", "item")
FORMULA = ("=", "+", "-", "@")  # with these a formula begins
PAGE = "csv"  # stands with each decision where otherwise the page's version does
NAMESPACE = uuid.UUID("5d0d7e0c-2f0c-4a52-9d0a-7a0b4c6f1f2e")


def write_sheet(folder: Path, desk: Desk, reader: str) -> int:
    """Write `decisions.csv` and the images that it names, blinded as the page is; return the number of images."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    items = desk.items(reader)
    current = desk.store.current()
    for number, item in enumerate(items, start=1):
        name = f"images/{number:05d}.png"
        write_bytes(folder / name, desk.picture(reader, "read", item.token), durable=False)
        held = current.get(item.key(desk.reader(reader)))
        decided = (held.verdict, held.reason, held.note) if held else ("", "", "")
        cells = (name, item.set, desk.material.description(item), *decided, item.token)
        writer.writerow([_harmless(cell) for cell in cells])
    write_bytes(folder / SHEET, out.getvalue().encode("utf-8-sig"))  # the mark by which spreadsheets know UTF-8
    return len(items)


def read_sheet(folder: Path, desk: Desk, reader: str) -> int:
    """Keep the decisions that a reader wrote into `decisions.csv`; return how many are new.

    A row without a decision is left open; one that says what already holds adds nothing, so that reading the same sheet
    twice changes nothing. Every row is checked before the first is kept.

    Raises:
        ValueError: a row breaks a rule; the message names file, row and rule.
    """
    file = folder / SHEET
    items = {item.token: item for item in desk.items(reader)}
    current = desk.store.current()
    sent = []
    for line, row in _rows(file):
        item = items.get(row["item"])
        if item is None:
            raise ValueError(
                f"{file}, row {line}: item {row['item']!r} is none of {reader}'s; leave this column as it is"
            )
        verdict, reason = _decision(file, line, row, desk)
        held = current.get(item.key(desk.reader(reader)))
        note = row["note"].strip()
        if verdict and (held is None or (held.verdict, held.reason, held.note) != (verdict, reason, note)):
            sent.append(_sent(reader, item, verdict, reason, note, held.id if held else ""))
    for decision in sent:
        desk.check(decision)
    for decision in sent:
        desk.add(decision)
    return len(sent)


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    text = file.read_text(encoding="utf-8-sig")
    first = text.partition("\n")[0]
    reader = csv.DictReader(
        io.StringIO(text), delimiter=max(",;\t", key=first.count)
    )  # spreadsheets choose by language
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise ValueError(f"{file}: columns must be {COLUMNS}; they are {reader.fieldnames}")
    for line, row in enumerate(reader, start=2):
        yield line, {name: _as_meant(row[name] or "") for name in COLUMNS}


def _decision(file: Path, line: int, row: Mapping[str, str], desk: Desk) -> tuple[str, str]:
    """Return verdict and reason; a first letter and a reason's number will do."""
    said, reason, reasons = row["decision"].strip().lower(), row["reason"].strip(), desk.material.reasons
    if not said:
        return "", ""
    verdict = next((verdict for verdict in VERDICTS if said in (verdict, verdict[0])), None)
    if verdict is None:
        raise ValueError(f"{file}, row {line}: decision must be one of {VERDICTS}; it is {said!r}")
    if reason.isdecimal() and 1 <= int(reason) <= len(reasons):
        reason = reasons[int(reason) - 1]
    if (verdict == "reject") != bool(reason) or (reason and reason not in reasons):
        raise ValueError(
            f"{file}, row {line}: a rejection, and only that, needs a reason of these, or its number: {list(reasons)}; "
            f"here decision {verdict!r} has {reason!r}"
        )
    return verdict, reason


def _sent(reader: str, item: Item, verdict: str, reason: str, note: str, supersedes: str) -> Sent:
    identity = str(uuid.uuid5(NAMESPACE, "\n".join([item.token, verdict, reason, note, supersedes])))
    return Sent(identity, reader, "read", item.token, "decide", verdict, reason, note, 0, supersedes, PAGE)


def _harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _as_meant(cell: str) -> str:
    """Return a cell without the sign that `_harmless` put before it."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell
