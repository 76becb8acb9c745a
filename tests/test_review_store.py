"""The store: any interleaving of votes, undos, repeats and crashes keeps the chain; every altered byte is found."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from reviews import POLICY

from synthvision.manifest import Manifest, Record
from synthvision.review.export import complete, export, missing
from synthvision.review.store import VERDICTS, ChainError, ConflictError, Event, Head, Key, Store

READERS, IMAGES = ("ada", "grace"), ("a" * 64, "b" * 64, "c" * 64)
REASON = "artefact"


def event(number: int, reader: str = "ada", image: str = IMAGES[0], **values: object) -> Event:
    verdict = values.get("verdict", "accept")
    fixed = {"role": "read", "kind": "decide", "image_id": "x", "set": "", "prompt": "skin", "shown_as": "candidate"}
    more = {"verdict": verdict, "reason": REASON if verdict == "reject" else "", "note": "", "shown_ms": 5}
    return Event(f"id-{number}", reader, image=image, **{**fixed, **more, "supersedes": "", "page": "p", **values})  # type: ignore[arg-type]


CANDIDATES = Manifest(
    tuple(Record(f"x-{image[0]}", f"{image[0]}.png", image, "lesion", "synthetic") for image in IMAGES), Path()
)


def wanted(rule: str, votes: list[str]) -> bool:
    """Say again, and more plainly, whether two readers' verdicts accept an image."""
    return votes.count("accept") >= {"any": 1, "majority": 2, "all": 2}[rule]


class Interleaving(RuleBasedStateMachine):
    """Two readers decide, undo, send twice, come too late and are cut off; a list of verdicts per key is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "decisions.sqlite"
        self.store = Store(self.file)
        self.model: dict[Key, list[tuple[str, str]]] = {}  # id and verdict of what was decided and not undone
        self.sent: list[Event] = []
        self.heads: list[Head] = []

    def top(self, reader: str, image: str) -> str:
        return [("", ""), *self.model.get((reader, "read", image, "candidate"), [])][-1][0]

    def send(self, new: Event) -> None:
        assert self.store.add(new) == len(self.sent) + 1
        self.sent.append(new)

    @rule(reader=st.sampled_from(READERS), image=st.sampled_from(IMAGES), verdict=st.sampled_from(VERDICTS))
    def decide(self, reader: str, image: str, verdict: str) -> None:
        new = event(len(self.sent), reader, image, verdict=verdict, supersedes=self.top(reader, image))
        self.send(new)
        self.model.setdefault(new.key, []).append((new.id, verdict))

    @rule(reader=st.sampled_from(READERS), image=st.sampled_from(IMAGES))
    def undo(self, reader: str, image: str) -> None:
        if top := self.top(reader, image):
            new = event(len(self.sent), reader, image, kind="undo", verdict="", supersedes=top)
            self.send(new)
            self.model[new.key].pop()

    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        if self.sent:
            old = data.draw(st.sampled_from(self.sent))
            assert self.store.add(old) == self.sent.index(old) + 1

    @rule(reader=st.sampled_from(READERS), image=st.sampled_from(IMAGES), stale=st.text(min_size=1, max_size=3))
    def come_too_late(self, reader: str, image: str, stale: str) -> None:
        with pytest.raises(ConflictError) as refused:
            self.store.add(event(10**6, reader, image, supersedes=f"stale-{stale}"))
        assert (refused.value.current.id if refused.value.current else "") == self.top(reader, image)

    @rule()
    def crash(self) -> None:
        """A second process is cut off in the middle of a transaction, and the server starts anew."""
        cut_off = sqlite3.connect(self.file, isolation_level=None)
        cut_off.execute("begin immediate")
        columns = len(cut_off.execute("select * from events limit 0").description)
        cut_off.execute(f"insert into events values ({', '.join('?' * columns)})", [10**6] * columns)
        cut_off.close()
        self.store.close()
        self.store = Store(self.file)

    @rule(torn=st.binary(max_size=200))
    def kill(self, torn: bytes) -> None:
        """The server is killed: what lies on the disk at this moment, and a part of what it was writing, is left."""
        left = Path(tempfile.mkdtemp(dir=self.folder.name))
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.file}{suffix}", left)
        with (left / f"{self.file.name}-wal").open("ab") as log:
            log.write(torn)
        self.store.close()
        self.file = left / self.file.name
        self.store = Store(self.file)

    @invariant()
    def the_chain_holds_and_all_is_there_once(self) -> None:
        head = self.store.verify(self.heads)
        self.heads = [*self.heads, head][-5:]
        assert [each.id for each in self.store.events()] == [each.id for each in self.sent]
        top = {key: stack[-1][0] for key, stack in self.model.items() if stack}
        assert {key: each.id for key, each in self.store.current().items()} == top

    @invariant()
    def the_export_is_the_model_s(self) -> None:
        """Two readers are wanted: what is missing is counted, and what is complete follows the rule."""
        stacks = [[self.model.get((name, "read", image, "candidate"), []) for name in READERS] for image in IMAGES]
        votes = [[stack[-1][1] for stack in both if stack] for both in stacks]
        current = self.store.current()
        for name in ("any", "majority", "all"):
            policy = replace(POLICY, reads=2, rule=name)
            assert missing(CANDIDATES, current, policy).decisions == sum(2 - len(each) for each in votes)
            ready = complete(CANDIDATES, current, policy)
            assert [record.sha256 for record in ready] == [
                image for image, each in zip(IMAGES, votes, strict=True) if len(each) == 2
            ]
            accepted = {i for i, each in zip(IMAGES, votes, strict=True) if len(each) == 2 and wanted(name, each)}
            if accepted:
                exported = export(ready, current, policy).where(decision="accept")
                assert set(exported.column("sha256")) == accepted

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store of four decisions in one file, its log written back."""
    file = tmp_path / "decisions.sqlite"
    with Store(file) as store:
        for number, verdict in enumerate(("accept", "reject", "unsure", "accept")):
            note = "überbelichtet" if verdict == "reject" else ""
            store.add(event(number, image=f"{number}" * 64, verdict=verdict, note=note))
    assert not file.with_name(f"{file.name}-wal").exists()
    return file


def content(file: Path) -> list[Event]:
    with Store(file) as store:
        store.verify()
        return store.events()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_an_altered_byte_is_found_or_alters_no_decision(share: float, bit: int, file: Path, tmp_path: Path) -> None:
    data, before = bytearray(file.read_bytes()), content(file)
    data[int(share * len(data))] ^= 1 << bit
    altered = tmp_path / "altered.sqlite"
    altered.write_bytes(data)
    try:
        assert content(altered) == before
    except (ChainError, ValueError):
        pass
    finally:
        for each in tmp_path.glob("altered*"):
            each.unlink()


def test_every_byte_of_a_decision_is_under_the_chain(file: Path, tmp_path: Path) -> None:
    """Each byte of the row with the longest note is altered in turn, where the file holds it."""
    data = file.read_bytes()
    start = data.index(b"id-1ada")
    for place in range(start, data.index(b"artefact", start) + 60):
        altered = tmp_path / "altered.sqlite"
        altered.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ChainError):
            content(altered)
        for each in tmp_path.glob("altered*"):
            each.unlink()


def test_every_byte_of_the_table_s_names_is_looked_at(file: Path, tmp_path: Path) -> None:
    """A column of another name, or a trigger that lets rows be removed, is not the store that was made."""
    data = file.read_bytes()
    start = data.index(b"CREATE TABLE events")
    for place in range(start, data.index(b"hash not null", start), 5):
        altered = tmp_path / "altered.sqlite"
        altered.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises((ChainError, ValueError)):
            content(altered)
        for each in tmp_path.glob("altered*"):
            each.unlink()


def test_rows_cannot_be_changed_or_removed_through_sql(file: Path) -> None:
    with sqlite3.connect(file) as db:
        replaced = "insert or replace into events select * from events"
        for statement in ("update events set verdict = 'accept'", "delete from events", replaced):
            with pytest.raises(sqlite3.DatabaseError, match="only ever added"):
                db.execute(statement)
    db.close()


def test_what_was_cut_off_at_the_end_is_told_by_the_heads_written_down(file: Path) -> None:
    with Store(file) as store:
        head = store.verify()
    db = sqlite3.connect(file)
    db.executescript("drop trigger events_remain; delete from events where seq = 4;")
    db.close()
    with Store(file) as store:
        assert store.verify().count == 3
        with pytest.raises(ChainError, match="3 decisions are left of the 4"):
            store.verify([head])
        with pytest.raises(ChainError, match="decision 2 is not the one"):
            store.verify([Head(2, "0" * 64)])


def test_a_row_taken_out_of_the_middle_is_found(file: Path) -> None:
    db = sqlite3.connect(file)
    db.executescript("drop trigger events_remain; delete from events where seq = 2;")
    db.close()
    with Store(file) as store, pytest.raises(ChainError, match="breaks at decision 2"):
        store.verify()


def test_an_id_stands_for_one_content(file: Path) -> None:
    with Store(file) as store:
        first = store.events()[0]
        assert store.add(replace(first, at="")) == 1
        with pytest.raises(ValueError, match="another content"):
            store.add(replace(first, verdict="unsure", at=""))


def test_threads_and_processes_take_turns(tmp_path: Path) -> None:
    file = tmp_path / "decisions.sqlite"
    stores = [Store(file), Store(file)]

    def work(number: int) -> None:
        for image in range(20):
            stores[number % 2].add(event(number * 100 + image, f"reader {number}", f"{image:064x}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].verify().count == 80
    for store in stores:
        store.close()


def test_what_was_confirmed_before_kill_9_is_there(tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_review_store import event
from synthvision.review.store import Store
store = Store(Path(sys.argv[1]))
for number in range(100_000):
    store.add(event(number, image=f"{number:064x}"))
    print(number, flush=True)
"""
    file = tmp_path / "decisions.sqlite"
    command = [sys.executable, "-c", code, str(file), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    confirmed = [process.stdout.readline() for _ in range(30)]
    os.kill(process.pid, signal.SIGKILL)
    confirmed += process.communicate()[0].splitlines()
    with Store(file) as store:
        head = store.verify()
        assert head.count >= len(confirmed) >= 30
        assert [each.id for each in store.events()] == [f"id-{number}" for number in range(head.count)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verdict": "maybe"}, "verdict"),
        ({"verdict": "reject", "reason": ""}, "reason"),
        ({"reason": "artefact"}, "reason"),
        ({"reader": " ada"}, "reader"),
        ({"shown_ms": -1}, "shown_ms"),
        ({"kind": "undo", "verdict": ""}, "supersedes"),
        ({"role": "owner"}, "role"),
    ],
)
def test_an_event_checks_itself(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        event(1, **values)  # type: ignore[arg-type]


def test_another_file_or_a_newer_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("no database at all" * 100)
    with pytest.raises(ChainError, match="cannot be read"):
        Store(tmp_path / "text.sqlite")
    db = sqlite3.connect(tmp_path / "new.sqlite")
    db.execute("pragma user_version = 99")
    db.close()
    with pytest.raises(ValueError, match="schema 99"):
        Store(tmp_path / "new.sqlite")
