"""The page in a real browser: by keyboard through undo, a killed server, two tabs, double reading, lost connections."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from reviews import desk, material, served, vote

from synthvision.review.desk import Desk
from synthvision.review.export import export, missing
from synthvision.review.store import Store

pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH; .ci/run installs Debian's")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SERVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from reviews import desk, material
from synthvision.review.server import Address, serve
from synthvision.review.store import Store
root, port = Path(sys.argv[2]), int(sys.argv[3])
with Store(root / "decisions" / "decisions.sqlite") as store:
    given = material(root, 50, salt=0, repeats=0)
    serve(desk(given, store), Address("127.0.0.1", port, []), lambda text: print(text, flush=True))
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium; Playwright's own is not downloaded."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty profile; whatever the page complains of fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    context.close()
    assert complaints == []


@pytest.fixture
def reviewed(tmp_path: Path) -> Iterator[Desk]:
    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        yield desk(material(tmp_path, 12, salt=0.25, repeats=0.25, reads=2, rule="adjudicated"), store)


def begin(page: Page, url: str, reader: str, role: str = "Judge images") -> None:
    page.goto(url)
    page.get_by_label("Your name").fill(reader)
    if page.locator("#role").is_visible():
        page.get_by_label(role).check()
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#welcome")).to_be_hidden()


def saved(page: Page, number: int, of: int) -> None:
    expect(page.locator("#count")).to_have_text(f"{number} of {of}", timeout=30_000)
    expect(page.locator("#saved")).to_have_text("All saved")


def start(root: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", SERVE, str(Path(__file__).parent), str(root), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, line.split()[2]


def test_fifty_images_by_keyboard_through_undo_and_kill_9(page: Page, tmp_path: Path) -> None:
    """The server is killed in the middle; what was on screen is there once, and the page goes on by itself."""
    server, url = start(tmp_path, 0)
    port = int(url.rstrip("/").rpartition(":")[2])
    begin(page, url, "Dr Ada")
    keys = ["a", "5", "u", "a", "2"] * 4
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("z")
    page.keyboard.press("z")
    saved(page, 18, 50)
    os.kill(server.pid, signal.SIGKILL)
    server.communicate()
    for _ in range(3):
        page.keyboard.press("a")
    expect(page.locator("#banner")).to_contain_text("No connection", timeout=30_000)
    expect(page.locator("#count")).to_have_text("18 of 50")  # only what is confirmed is counted
    server, _ = start(tmp_path, port)
    saved(page, 21, 50)
    expect(page.locator("#banner")).to_be_hidden()
    page.reload()
    saved(page, 21, 50)  # it opens where it was, and asks no name again
    expect(page.locator("#reader")).to_have_text("Dr Ada")
    for _ in range(28):
        page.keyboard.press("a")
    page.keyboard.press("r")
    expect(page.get_by_role("button", name="1 anatomy wrong")).to_be_focused()
    page.keyboard.press("8")
    page.get_by_label("In your words").fill("a hand has six fingers")
    page.keyboard.press("Enter")
    saved(page, 50, 50)
    expect(page.locator("#done")).to_contain_text("All 50 images are decided on")
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=120)
    assert server.returncode == 0
    given = material(tmp_path, 50)
    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        assert store.verify().count == 20 + 2 + 3 + 29
        current = store.current()
        queue = given.queue("Dr Ada")
        verdicts = [current[item.key("Dr Ada")].verdict for item in queue]
        assert verdicts == ["accept", "reject", "unsure", "accept", "reject"] * 3 + [
            *("accept", "reject", "unsure"), *["accept"] * 31, "reject"
        ]  # fmt: skip
        last = current[queue[-1].key("Dr Ada")]
        assert (last.reason, last.note) == ("other", "a hand has six fingers")
        assert {current[item.key("Dr Ada")].reason for item in queue[1:17:5]} == {"artefact"}
        assert missing(given.candidates, current, given.policy).decisions == 0
        assert len(export(given.candidates, current, given.policy).where(decision="accept")) == verdicts.count("accept")


def test_automatic_checks_are_shown_after_the_decision(page: Page, reviewed: Desk) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with served(reviewed) as url:
        begin(page, url, "ada")
        expect(page.locator("#one img")).to_be_visible()
        assert not any("findings" in each for each in asked)
        page.keyboard.press("a")
        expect(page.locator("#last")).to_contain_text("Automatic check")
        assert sum("findings" in each for each in asked) == 1
        assert {each.split("/")[2] for each in asked} == {url.split("/")[2]}  # nobody else is asked


def test_double_reading_and_adjudication(browser: Browser, reviewed: Desk) -> None:
    number = len(reviewed.items("ada"))
    with served(reviewed) as url:
        for reader, key in (("ada", "a"), ("grace", "5")):
            context = browser.new_context()
            page = context.new_page()
            begin(page, url, reader)
            saved(page, 0, number)
            for _ in range(number):
                page.keyboard.press(key)
            saved(page, number, number)
            context.close()
        context = browser.new_context()
        page = context.new_page()
        begin(page, url, "judge", "Settle disagreements")
        expect(page.locator("#vote-list")).to_contain_text("✕ Rejected: artefact")
        expect(page.locator("#vote-list")).not_to_contain_text("grace")
        for key in "aaaaaa555555":
            page.keyboard.press(key)
        saved(page, 12, 12)
        context.close()
    given, current = reviewed.material, reviewed.store.current()
    assert missing(given.candidates, current, given.policy).decisions == 0
    result = export(given.candidates, current, given.policy)
    assert len(result.where(decision="accept")) == 6
    assert set(result.column("reviewer")) == {"ada, grace, judge"}
    assert len(reviewed.store.events()) == 2 * number + 12


def test_two_tabs_of_one_reader(page: Page, reviewed: Desk) -> None:
    """The second tab does not know of the first one's decision: it is told, and the first stays."""
    with served(reviewed) as url:
        begin(page, url, "ada")
        other = page.context.new_page()
        other.goto(url)
        expect(other.locator("#one img")).to_be_visible()
        page.keyboard.press("a")
        saved(page, 1, len(reviewed.items("ada")))
        other.keyboard.press("5")
        expect(other.locator("#banner")).to_contain_text("Image 1 was decided on in another window")
        expect(other.locator("#banner")).to_contain_text("stays accepted")
    (event,) = reviewed.store.events()
    assert event.verdict == "accept"


def test_a_connection_lost_in_the_middle_of_a_decision(page: Page, reviewed: Desk) -> None:
    """The decision arrives, its confirmation does not: sent again, it counts once."""
    lost = []

    with served(reviewed) as url:
        begin(page, url, "ada")
        expect(page.locator("#one img")).to_be_visible()

        def swallow(route):  # type: ignore[no-untyped-def]
            if len(lost) < 2:
                lost.append(json.loads(route.request.post_data)["id"])
                route.fetch()
                route.abort()
            else:
                route.continue_()

        page.route("**/api/decisions", swallow)
        page.keyboard.press("a")
        saved(page, 1, len(reviewed.items("ada")))
    assert lost == [lost[0]] * 2
    assert [event.id for event in reviewed.store.events()] == lost[:1]


def test_looking_back_and_deciding_anew_replaces_a_decision(page: Page, reviewed: Desk) -> None:
    with served(reviewed) as url:
        begin(page, url, "ada")
        page.keyboard.press("a")
        page.keyboard.press("a")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#mark")).to_have_text("✓ Accepted")
        page.keyboard.press("6")
        saved(page, 2, len(reviewed.items("ada")))
        page.keyboard.press("z")
        expect(page.locator("#mark")).to_have_text("✓ Accepted")  # what the undone decision had replaced holds again
    verdicts = [event.verdict for event in reviewed.store.events()]
    assert verdicts == ["accept", "accept", "reject", ""]
    assert {event.verdict for event in reviewed.store.current().values()} == {"accept"}


def test_the_grid_by_keyboard(page: Page, reviewed: Desk) -> None:
    number = len(reviewed.items("ada"))
    with served(reviewed) as url:
        begin(page, url, "ada")
        page.keyboard.press("v")
        expect(page.locator(".tile img")).to_have_count(12)
        page.keyboard.press("ArrowRight")
        page.keyboard.press("5")
        expect(page.locator(".tile").nth(1)).to_contain_text("✕ Rejected: artefact")
        expect(page.get_by_role("button", name="Image 2, Rejected: artefact", exact=True)).to_be_visible()
        page.keyboard.press("Shift+A")
        saved(page, 12, number)
        page.keyboard.press("n")
        expect(page.locator(".tile img")).to_have_count(number - 12)
        page.keyboard.press("Shift+A")
        saved(page, number, number)
    first = reviewed.items("ada")
    current = reviewed.store.current()
    assert [current[item.key("ada")].verdict for item in first[:3]] == ["accept", "reject", "accept"]


def test_zoom_pan_and_brightness(page: Page, reviewed: Desk) -> None:
    with served(reviewed) as url:
        begin(page, url, "ada")
        image = page.locator("#one img")
        expect(image).to_be_visible()
        page.keyboard.press("+")
        page.keyboard.press("]")
        expect(page.locator("#zoom")).to_have_text("125%")
        assert "scale(1.25)" in (image.get_attribute("style") or "")
        assert "brightness(110%)" in (image.get_attribute("style") or "")
        box = page.locator("#one").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.wheel(0, -400)
        page.mouse.down()
        page.mouse.move(box["x"] + 230, box["y"] + 210)
        page.mouse.up()
        assert "translate(0px" not in (image.get_attribute("style") or "")
        before = image.get_attribute("style")
        page.keyboard.press("Shift+ArrowRight")  # what a mouse drags, keys can move
        assert image.get_attribute("style") != before
        page.keyboard.press("0")
        assert not image.get_attribute("style")


@pytest.mark.parametrize("size", [(1280, 800), (1180, 820), (820, 1180), (768, 1024)])
def test_the_whole_image_and_the_decisions_are_in_view(size: tuple[int, int], page: Page, reviewed: Desk) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    with served(reviewed) as url:
        begin(page, url, "ada")
        expect(page.locator("#one img")).to_be_visible()
        for selector in ("#one img", "#accept", "#unsure", "#reject", "#undo", "#count"):
            box = page.locator(selector).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["y"] >= 0
            assert box["x"] + box["width"] <= size[0]
            assert box["y"] + box["height"] <= size[1]
        for button in page.locator(".verdicts button").all():
            box = button.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 44  # what a finger hits
        for view in ("One image", "Grid"):
            page.get_by_role("button", name=view).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_every_control_has_a_name_and_dialogs_keep_keys(page: Page, reviewed: Desk) -> None:
    with served(reviewed) as url:
        begin(page, url, "ada")
        saved(page, 0, len(reviewed.items("ada")))
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        page.keyboard.press("a")  # behind the dialog nothing is decided
        page.keyboard.press("Escape")
        for control in page.locator("button:visible, input:visible, select:visible, summary:visible").all():
            name = control.evaluate(
                "each => each.getAttribute('aria-label') || each.innerText || each.labels?.[0]?.innerText || ''"
            )
            assert name.strip()
        expect(page.locator("#one img")).to_have_attribute("alt", f"Image 1 of {len(reviewed.items('ada'))}")
        page.keyboard.press("a")
        expect(page.locator("#announce")).to_have_text("Accepted.")
        saved(page, 1, len(reviewed.items("ada")))


def test_the_token_opens_the_page_and_leaves_the_address(page: Page, reviewed: Desk) -> None:
    with served(reviewed, "the-token") as url:
        page.goto(url)
        expect(page.locator("#banner")).to_contain_text("whole address")
        begin(page, f"{url}/#the-token", "ada")
        expect(page.locator("#one img")).to_be_visible()
        assert "the-token" not in page.url


def test_a_server_that_was_started_anew_asks_for_its_new_token(page: Page, reviewed: Desk) -> None:
    """The decision waits; the new address in the same window sends it."""
    with served(reviewed, "old-token") as url:
        begin(page, f"{url}/#old-token", "ada")
        expect(page.locator("#one img")).to_be_visible()
        page.context.clear_cookies()  # as good as a server that has forgotten them
        page.keyboard.press("a")
        expect(page.locator("#banner")).to_contain_text(
            "open the whole address that it printed, here. 1 decision waits"
        )
        page.evaluate("location.hash = 'old-token'")
        saved(page, 1, len(reviewed.items("ada")))
    assert [event.verdict for event in reviewed.store.events()] == ["accept"]


def test_the_page_cannot_be_used_without_a_name(page: Page, reviewed: Desk) -> None:
    with served(reviewed) as url:
        page.goto(url)
        expect(page.locator("#welcome")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_label("Your name")).to_be_visible()


def test_what_was_accepted_in_other_rounds_counts_towards_the_target(page: Page, reviewed: Desk) -> None:
    given = reviewed.material
    half = [given.candidates.where(set=name) for name in "ab"]
    for item in given.queue("ada"):
        if (item.set, item.shown_as) == ("b", "candidate"):
            reviewed.store.add(vote(item, "ada", "accept"))
    second = replace(given, candidates=half[0], others=half[1].with_values(lambda _: {"set": "a"}))
    with served(desk(second, reviewed.store)) as url:
        begin(page, url, "ada")
        expect(page.locator(".accepted").first).to_have_text("0 accepted, 6 in other rounds")
        expect(page.locator(".sets progress").first).to_have_attribute("value", "6")


def test_a_key_held_down_decides_once(page: Page, reviewed: Desk) -> None:
    with served(reviewed) as url:
        begin(page, url, "ada")
        expect(page.locator("#one img")).to_be_visible()
        for _ in range(5):
            page.keyboard.down("a")  # the second and later ones are repeats
        page.keyboard.up("a")
        saved(page, 1, len(reviewed.items("ada")))
        time.sleep(0.2)
    assert len(reviewed.store.events()) == 1


def test_what_a_reader_left_unsent_is_sent_by_the_next_visit(page: Page, reviewed: Desk) -> None:
    number = len(reviewed.items("ada"))
    with served(reviewed) as url:
        begin(page, url, "ada")
        saved(page, 0, number)
        page.route("**/api/decisions", lambda route: route.abort())
        for key in "a5u":
            page.keyboard.press(key)
        expect(page.locator("#banner")).to_contain_text("3 decisions wait")
        page.unroute("**/api/decisions")
        page.reload()
        saved(page, 3, number)
    assert [event.verdict for event in reviewed.store.events()] == ["accept", "reject", "unsure"]


def test_hand_made_votes_and_the_page_share_one_order(page: Page, reviewed: Desk) -> None:
    for item in reviewed.items("ada")[:4]:
        reviewed.store.add(vote(item, "ada", "accept"))
    with served(reviewed) as url:
        begin(page, url, "ada")
        saved(page, 4, len(reviewed.items("ada")))
        expect(page.locator("#one img")).to_have_attribute("alt", f"Image 5 of {len(reviewed.items('ada'))}")
