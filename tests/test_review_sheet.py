"""A reader's decisions in a spreadsheet: out with blinded images, in once, refused with its row where it is wrong."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from reviews import desk, material

from synthvision.review.desk import Desk
from synthvision.review.sheet import COLUMNS, SHEET, read_sheet, write_sheet
from synthvision.review.store import Store

Row = dict[str, str]


@pytest.fixture
def reviewed(tmp_path: Path) -> Iterator[Desk]:
    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        yield desk(material(tmp_path, 8, salt=0.25, repeats=0.25), store)


def rows(folder: Path) -> list[Row]:
    with (folder / SHEET).open(newline="", encoding="utf-8-sig") as handle:
        return list(csv.DictReader(handle))


def edit(folder: Path, change: Callable[[int, Row], Row], delimiter: str = ",", encoding: str = "utf-8") -> None:
    changed = [{**row, **change(number, row)} for number, row in enumerate(rows(folder))]
    with (folder / SHEET).open("w", newline="", encoding=encoding) as handle:
        writer = csv.DictWriter(handle, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(changed)


def test_out_shows_what_the_page_shows(reviewed: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    assert write_sheet(folder, reviewed, "ada") == 8 + 2 + 2
    told = rows(folder)
    assert [row["item"] for row in told] == [item.token for item in reviewed.items("ada")]
    assert {row["decision"] for row in told} == {""}
    text = (folder / SHEET).read_text()
    assert not any(secret in text for secret in ("made-", "real-", "sks"))
    for row in told:
        with Image.open(folder / row["image"]) as image:
            assert image.info == {}  # metadata would mark what was generated


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_in_keeps_each_decision_once(delimiter: str, encoding: str, reviewed: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    write_sheet(folder, reviewed, "ada")
    said = [{"decision": "Accept"}, {"decision": "R", "reason": "5"}, {"decision": "unsure", "note": "dunkel, körnig"}]
    edit(folder, lambda number, _: said[number % 3] if number < 11 else {}, delimiter, encoding)
    assert read_sheet(folder, reviewed, "ada") == 11
    assert read_sheet(folder, reviewed, "ada") == 0
    current = reviewed.store.current()
    events = [current.get(item.key("ada")) for item in reviewed.items("ada")]
    assert [event.verdict for event in events[:3] if event] == ["accept", "reject", "unsure"]
    assert events[1] is not None
    assert (events[1].reason, events[1].page) == ("artefact", "csv")
    assert events[2] is not None
    assert events[2].note == "dunkel, körnig"
    assert events[11] is None


def test_a_changed_sheet_replaces_decisions_and_keeps_the_old(reviewed: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    for verdict in ("accept", "unsure", "accept"):
        write_sheet(folder, reviewed, "ada")
        edit(folder, lambda number, row, v=verdict: {"decision": v} if number == 0 else row)  # type: ignore[misc]
        assert read_sheet(folder, reviewed, "ada") == 1
    assert [event.verdict for event in reviewed.store.events()] == ["accept", "unsure", "accept"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": "perhaps"}, r"row 4: decision must be one of"),
        ({"decision": "reject"}, r"row 4: a rejection, and only that, needs a reason"),
        ({"decision": "accept", "reason": "blurred"}, r"row 4: a rejection, and only that"),
        ({"decision": "reject", "reason": "9"}, r"row 4: a rejection"),
        ({"decision": "reject", "reason": "other"}, r"'other' needs a note"),
        ({"item": "x"}, r"row 4: item 'x' is none of ada's"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_is_kept(change: Row, message: str, reviewed: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    write_sheet(folder, reviewed, "ada")
    edit(folder, lambda number, _: change if number == 2 else {"decision": "accept"})
    with pytest.raises(ValueError, match=message):
        read_sheet(folder, reviewed, "ada")
    assert reviewed.store.events() == []


def test_another_reader_s_sheet_and_another_table_are_refused(reviewed: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    write_sheet(folder, reviewed, "ada")
    with pytest.raises(ValueError, match="none of grace's"):
        read_sheet(folder, reviewed, "grace")
    (folder / SHEET).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns must be"):
        read_sheet(folder, reviewed, "ada")


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    given = material(tmp_path, 2)
    wild = given.candidates.with_values(lambda _: {"prompt": "=HYPERLINK(1)"})
    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        wild_desk = Desk(type(given)(wild, *list(vars(given).values())[1:]), store, {})
        write_sheet(tmp_path / "sheet", wild_desk, "ada")
    assert {row["description"] for row in rows(tmp_path / "sheet")} == {"'=HYPERLINK(1)"}


def test_a_note_like_a_formula_comes_back_as_it_was(reviewed: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "sheet"
    write_sheet(folder, reviewed, "ada")
    edit(folder, lambda number, row: {"decision": "unsure", "note": "-2 lesions?"} if number == 0 else row)
    assert read_sheet(folder, reviewed, "ada") == 1
    write_sheet(folder, reviewed, "ada")
    assert rows(folder)[0]["note"] == "'-2 lesions?"
    assert read_sheet(folder, reviewed, "ada") == 0
    assert [event.note for event in reviewed.store.events()] == ["-2 lesions?"]
