"""The page on the engines of Firefox and Safari: one session by keyboard, with the server killed in its middle."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import Engine, Firefox, WebKit
from reviews import material
from test_review_page import start

from synthvision.review.store import Store

NEEDS = {Firefox: ("firefox-esr",), WebKit: ("WebKitWebDriver", "Xvfb")}


@pytest.fixture(params=[
    pytest.param(engine, id=engine.name, marks=pytest.mark.skipif(
        not all(map(shutil.which, commands)), reason=f"no {' and '.join(commands)} on PATH; .ci/run installs Debian's"
    ))
    for engine, commands in NEEDS.items()
])  # fmt: skip
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = request.param(1280, 900)
    yield engine
    engine.close()


def saved(engine: Engine, number: int) -> None:
    engine.wait(f"$('#count').innerText === '{number} of 50' && $('#saved').innerText === 'All saved'")


def test_a_session_by_keyboard(engine: Engine, tmp_path: Path) -> None:
    server, url = start(tmp_path, 0)
    port = int(url.rstrip("/").rpartition(":")[2])
    engine.ask("Navigate", url=url)
    engine.wait("document.activeElement.id === 'name'")
    engine.press(*"Dr Ada", "Enter")
    saved(engine, 0)
    engine.wait("$('#one img').naturalWidth === 24")
    box = engine.read("document.querySelector('#verdicts').getBoundingClientRect().toJSON()")
    assert box["bottom"] < engine.read("innerHeight")

    engine.press("a", "5", "u")  # accept, reject for a reason, unsure; back, decide anew, undo
    saved(engine, 3)
    engine.press("ArrowLeft")
    engine.wait("$('#mark').innerText === '? Left unsure'")
    engine.press("6")
    engine.wait("$('#last').innerText.includes('Image 3: ✕ Rejected: blurred. Automatic check')")
    engine.press("z")
    engine.wait("$('#mark').innerText === '? Left unsure'")
    engine.press("ArrowRight", "r")  # a reason in words
    engine.wait("$('#reasons button') === document.activeElement")
    engine.press("8")
    engine.wait("document.activeElement.id === 'note'")
    engine.press(*"six fingers", "Enter")
    saved(engine, 4)

    engine.press("+", "]", "Shift+ArrowRight")
    style = engine.read("$('#one img').style.cssText")
    assert "scale(1.25)" in style
    assert "brightness(110%)" in style
    assert "translate(-" in style
    engine.press("0", "g", "d")
    engine.wait("$('#guides img')?.naturalWidth === 24 && $('#description').innerText.startsWith('photo of')")

    os.kill(server.pid, signal.SIGKILL)
    server.communicate()
    engine.press("a", "a")
    engine.wait("$('#banner').innerText.startsWith('No connection. 2 decisions wait')")
    assert engine.read("$('#count').innerText") == "4 of 50"
    server, _ = start(tmp_path, port)
    saved(engine, 6)

    engine.press("v")  # a grid of twelve
    engine.wait("document.querySelectorAll('.tile img').length === 12")
    engine.press("ArrowRight", "5", "Shift+A")
    saved(engine, 18)
    engine.ask("Refresh")  # it opens where it was
    saved(engine, 18)
    assert engine.read("[$('#reader').innerText, $('#welcome').open]") == ["Dr Ada", False]
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=120)
    assert server.returncode == 0

    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        store.verify()
        made, current = store.events(), store.current()
    said = [(event.verdict, event.reason) for event in made]
    accepted, artefact = ("accept", ""), ("reject", "artefact")
    begun = [accepted, artefact, ("unsure", ""), ("reject", "blurred"), ("", ""), ("reject", "other")]
    assert said == [*begun, accepted, accepted, artefact, *[accepted] * 11]
    held = [current[item.key("Dr Ada")].verdict for item in material(tmp_path, 50).queue("Dr Ada")[:18]]
    assert held == ["accept", "reject", "unsure", "reject", "accept", "accept", "accept", "reject", *["accept"] * 10]
    assert made[5].note == "six fingers"
