"""Readers' decisions in SQLite: only ever added to, chained by hashes, and safe against `kill -9`.

Each row holds the hash of the row before it, so that no decision can be changed, removed or put in between without
breaking every hash that follows; what was cut off at the end is told by the heads that finished reviews wrote down. An
undo is a row of its own. A confirmed row is on the disk: WAL with synchronous=FULL.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from synthvision.artifact import digest_of

SCHEMA_VERSION = 1
START = "0" * 64  # what the first row's hash follows
VERDICTS = ("accept", "reject", "unsure")
ROLES = ("read", "adjudicate")
SHOWN_AS = ("candidate", "repeat", "salt")
WAIT = 30.0  # seconds for which a writer waits for another process

Key = tuple[str, str, str, str]  # reader, role, image, shown_as: what one decision is about


class ChainError(ValueError):
    """The store is not what was written; the message says where it breaks."""


class ConflictError(ValueError):
    """The reader decided on this image elsewhere in the meantime. `current` is that decision, None if undone."""

    def __init__(self, current: Event | None) -> None:
        super().__init__("this image was decided on elsewhere in the meantime")
        self.current = current


@dataclass(frozen=True)
class Event:
    """One decision or one undo, as it was made.

    Raises:
        ValueError: a field breaks its rule.
    """

    id: str  # made by the page: the same event sent twice counts once
    reader: str
    role: str  # one of ROLES
    kind: str  # "decide" or "undo"
    image: str  # SHA-256 of the image's file
    image_id: str
    set: str
    prompt: str
    shown_as: str  # one of SHOWN_AS; readers cannot tell
    verdict: str  # one of VERDICTS; empty for an undo
    reason: str  # of a rejection
    note: str
    shown_ms: int  # for how long the image was on the screen before the decision
    supersedes: str  # id of the reader's decision that this one replaces or undoes; empty for a first decision
    page: str  # version of the page it was made on; "csv" for a spreadsheet
    at: str = ""  # when the store took it, UTC

    def __post_init__(self) -> None:
        self._require(self.id and self.reader and self.reader == self.reader.strip(), "id and reader", "not empty")
        self._require(self.role in ROLES, "role", f"one of {ROLES}")
        self._require(self.kind in ("decide", "undo"), "kind", "'decide' or 'undo'")
        self._require(self.shown_as in SHOWN_AS, "shown_as", f"one of {SHOWN_AS}")
        self._require(self.verdict in (VERDICTS if self.kind == "decide" else ("",)), "verdict", f"one of {VERDICTS}")
        self._require(bool(self.reason) == (self.verdict == "reject"), "reason", "given for a rejection, and only then")
        self._require(self.kind == "decide" or self.supersedes, "supersedes", "the decision that is undone")
        self._require(self.shown_ms >= 0, "shown_ms", "at least 0")

    def _require(self, holds: object, field: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"decision {self.id!r}: {field} must be {rule}; it is {getattr(self, field, '')!r}")

    @property
    def key(self) -> Key:
        """What the decision is about."""
        return self.reader, self.role, self.image, self.shown_as


COLUMNS = tuple(field.name for field in fields(Event))
_KEY = ("reader", "role", "image", "shown_as")
_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)  # "set" is a word of SQL
# With the table's name: a quoted name that no column has is a text to SQLite, and an altered table would go unnoticed.
_READ = ", ".join(f'events."{name}"' for name in COLUMNS)
_SELECT = f"select {_READ} from events"
_TABLE = f"""
create table if not exists events (
    seq integer primary key, {_NAMES.replace(",", " not null,")} not null, previous not null, hash not null
);
create unique index if not exists events_id on events (id);
create index if not exists events_key on events ({", ".join(_KEY)});
create trigger if not exists events_stay before update on events
    begin select raise(abort, 'decisions are only ever added'); end;
create trigger if not exists events_remain before delete on events
    begin select raise(abort, 'decisions are only ever added'); end;
create trigger if not exists events_once before insert on events
    when exists (select 1 from events where seq = new.seq or id = new.id)
    begin select raise(abort, 'decisions are only ever added'); end;
pragma user_version = {SCHEMA_VERSION};
"""


@dataclass(frozen=True)
class Head:
    """The end of a chain: how many rows it has and the hash of the last."""

    count: int
    hash: str


class Store:
    """The decisions of one study. Threads share one connection; SQLite's lock makes processes take turns."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(file, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            version = self._db.execute("pragma user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise ValueError(f"{file} has schema {version}, this synthvision knows {SCHEMA_VERSION}; update it")
            self._db.executescript(f"begin immediate; {_TABLE} commit;")
        except BaseException as error:
            self._db.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise ChainError(f"{file} cannot be read as a store of decisions: {error}") from error
            raise

    def close(self) -> None:
        """Close the file; every confirmed decision is in it already."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, event: Event) -> int:
        """Add an event, and return its number once it is on the disk. The same event again changes nothing.

        Raises:
            ConflictError: `event.supersedes` is not the reader's current decision on this image.
            ValueError: another event has this id.
        """
        with self._transaction() as db:
            known = db.execute(f"select seq, {_READ} from events where id = ?", (event.id,)).fetchone()
            if known:
                if replace(Event(*known[1:]), at=event.at) != event:
                    raise ValueError(f"decision {event.id!r} is already there with another content")
                return int(known[0])
            top = _holds(db, event.key)
            if event.supersedes != (top.id if top else ""):
                raise ConflictError(top)
            head = _head(db)
            taken = replace(event, at=event.at or datetime.now(UTC).isoformat(timespec="milliseconds"))
            values = (head.count + 1, *asdict(taken).values(), head.hash, _hash(head, taken))
            db.execute(f"insert into events values ({', '.join('?' * len(values))})", values)
            return head.count + 1

    def events(self) -> list[Event]:
        """Return all events in the order in which they came."""
        with self._lock:
            return [Event(*row) for row in self._db.execute(f"{_SELECT} order by seq")]

    def current(self) -> dict[Key, Event]:
        """Return the decisions that hold now."""
        return current(self.events())

    def holds(self, key: Key) -> Event | None:
        """Return the decision that holds for one key."""
        with self._lock:
            return _holds(self._db, key)

    def head(self) -> Head:
        """Return the end of the chain."""
        with self._lock:
            return _head(self._db)

    def verify(self, known: Iterable[Head] = ()) -> Head:
        """Recompute the chain from its first row and return its end.

        Args:
            known: ends that were written down elsewhere; each must lie in the chain.

        Raises:
            ChainError: something was changed, removed or put in.
        """
        wanted: Mapping[int, str] = {head.count: head.hash for head in known if head.count}
        head = Head(0, START)
        with self._lock:
            try:
                (state,) = self._db.execute("pragma integrity_check(1)").fetchone()
                if state != "ok":
                    raise ChainError(f"the file of decisions is damaged: {state}")
                if _schema(self._db) != _made_schema():
                    raise ChainError("the tables in the file of decisions are not those that were made")
                for seq, *values in self._db.execute("select * from events order by seq"):
                    head = _follow(head, seq, values)
                    if wanted.get(seq, head.hash) != head.hash:
                        raise ChainError(f"decision {seq} is not the one that a finished review was made from")
            except (sqlite3.DatabaseError, TypeError, UnicodeError) as error:
                raise ChainError(
                    f"the chain of decisions cannot be read after decision {head.count}: {error}"
                ) from error
        if max(wanted, default=0) > head.count:
            raise ChainError(
                f"{head.count} decisions are left of the {max(wanted)} that a finished review was made from"
            )
        return head

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("begin immediate")  # a second writer waits here, not at the end
            try:
                yield self._db
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")


def current(events: Iterable[Event]) -> dict[Key, Event]:
    """Return the decision that holds for each key: the last that was not undone."""
    stacks: dict[Key, list[Event]] = {}
    for event in events:
        stack = stacks.setdefault(event.key, [])
        if event.kind == "undo":
            stack.pop()  # `add` takes an undo of the topmost decision only
        else:
            stack.append(event)
    return {key: stack[-1] for key, stack in stacks.items() if stack}


def _holds(db: sqlite3.Connection, key: Key) -> Event | None:
    rows = db.execute(f"{_SELECT} where {' and '.join(f'{name} = ?' for name in _KEY)} order by seq", key)
    return current(Event(*row) for row in rows).get(key)


def _schema(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return sorted(db.execute("select type, name, sql from sqlite_master"))


@cache
def _made_schema() -> list[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_TABLE)
        return _schema(db)


def _head(db: sqlite3.Connection) -> Head:
    row = db.execute("select seq, hash from events order by seq desc limit 1").fetchone()
    return Head(*row) if row else Head(0, START)


def _hash(before: Head, event: Event) -> str:
    return digest_of({"seq": before.count + 1, "previous": before.hash, "event": asdict(event)})


def _follow(before: Head, seq: int, values: list[object]) -> Head:
    """Return the end of the chain with one more row, or say how the row breaks it."""
    *content, previous, digest = values
    place = f"the chain of decisions breaks at decision {before.count + 1}"
    if seq != before.count + 1 or previous != before.hash:
        raise ChainError(f"{place}: it does not follow the one before")
    try:
        event = Event(*content)  # type: ignore[arg-type]  # a row of SQLite
    except ValueError as error:
        raise ChainError(f"{place}: {error}") from error
    if _hash(before, event) != digest:
        raise ChainError(f"{place}: its content is not what was written")
    return Head(seq, str(digest))
