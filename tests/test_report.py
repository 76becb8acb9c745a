"""The report: complete, self-contained, valid, escaped, and with the numbers of report.json."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from test_metrics import HPV, MPOX, study

from synthvision.evaluation.evaluate import Choices, evaluate
from synthvision.evaluation.guidelines import ITEMS, NONE, answers, checklists
from synthvision.evaluation.ledger import Ledger
from synthvision.evaluation.probes import metadata_probe
from synthvision.evaluation.report import ReportInput, StageRow, build, write_report
from synthvision.evaluation.report_content import smoothed
from synthvision.evaluation.report_input import ErrorCase, ExternalTest
from synthvision.evaluation.words import UNKNOWN, decimal, percent
from synthvision.manifest import Manifest, Record

CHOICES = Choices(thresholds={"logistic": 0.5, "specificity": 0.8}, temperature=1.4, prevalences=(0.01, 0.1))
UI = "http://127.0.0.1:5000/#/experiments/1/runs/"
FIDELITY = {
    "face": {"n": 60, "n_real": 55, "kid": 0.1234, "kid_low": 0.0987, "kid_high": 0.1481, "precision": 0.51,
             "recall": 0.42, "density": 0.63, "coverage": 0.74, "vendi": 17.25},
    "<back>": {"n": 9, "n_real": 55, "no_vendi": "9 candidates; 10 are needed", "no_fidelity": "50 of each are needed"},
}  # fmt: skip
VOID = {"meta", "img", "br", "link", "hr", "input"}


def images(root: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")


def record(name: str, label: str, origin: str, split: str, **more: str) -> Record:
    return Record(name, f"{name}.png", "0" * 64, label, origin, split, **more)


def report_input(root: Path, matrix: np.ndarray = HPV, classes: tuple[str, ...] = ("lesion", "normal")) -> ReportInput:
    predictions, test = study(matrix, classes)
    known = {"reference_standard": "phantom", "consent": "not needed"}
    guides = tuple(
        record(f"g{n}", "lesion", "real", "guide", caption="pustules, <umbilicated>", **known) for n in range(3)
    )
    others = tuple(record(f"n{n}", "normal", "real", "train", patient=f"n{n}", **known) for n in range(5))
    validation = tuple(record(f"v{n}", classes[n % 2], "real", "val", patient=f"v{n}", **known) for n in range(4))
    real = Manifest(guides + others + validation + test.with_values(lambda _: known).records, root)
    decided = [("accept", ""), ("accept", ""), ("reject", "near-copy of guide g1")]
    candidates = Manifest(
        tuple(record(f"s{n}", "lesion", "synthetic", "", prompt="a photo", decision=decision, reason=reason,
                     reviewer="unattended") for n, (decision, reason) in enumerate(decided)), root)  # fmt: skip
    accepted = candidates.where(decision="accept").with_values(lambda _: {"split": "train"})
    images(root, [each.image_id for each in (*guides, *candidates)])
    ledger = Ledger(root / "ledger")
    ledger.open("ab" * 32, "f" * 16, "run-of-evaluate", who="ada")
    ledger.open("cd" * 32, "e" * 16, "run-of-external", who="ada")
    probe = metadata_probe(
        {"n": list(range(40))}, np.arange(40) % 2 == 0, [str(n) for n in range(40)], "a from b", "class"
    )
    return ReportInput(
        study="phantom", title="Lesions & <others>", backbone="tiny", arm="synthetic_only",
        real=real, candidates=candidates, training=accepted + Manifest(others, root),
        evaluation=evaluate(predictions, test, 0.5, "lesion", draws=100, choices=CHOICES),
        openings=ledger.openings("ab" * 32),
        probes=(probe,), diffusion_losses=[{"step": n, "total": 1 / n} for n in range(1, 100)],
        history=[{"epoch": n, "train/loss": 1 / n, "val/loss": 1 / n, "val/accuracy": 0.9} for n in range(1, 5)],
        best_epoch=3,
        stages=[
            StageRow(name, "a" * 16, f"{name}-run", 1.0, f"synthvision stage={name}", UI + name)
            for name in ("prepare", "evaluate", "external")
        ],
        external=[
            ExternalTest("ward_b", evaluate(predictions, test, 0.4, "lesion", draws=100), ledger.openings("cd" * 32))
        ],
        commands={"the whole study": "synthvision experiment=phantom"}, versions={"synthvision": "0.1"},
        seeds={"study": 0}, samples=[root / "g0.png"], fidelity=FIDELITY,
        errors=[ErrorCase("i0", "lesion", "normal", 0.2, root / "g1.png", ("s0",), "The map means nothing here.")],
    )  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return report_input(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def out(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert write_report(given, folder) == folder / "report.html"
    return folder


class Checker(HTMLParser):
    """Collects ids, links and sources, and fails where tags do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.sources, self.unnamed = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        self.unnamed += [tag] if tag == "img" and not values.get("alt") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def checked(out):
    checker = Checker()
    checker.feed((out / "report.html").read_text())
    return checker


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH; .ci/run installs Debian's")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_real_browser_shows_it_whole(width, out):
    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: faults.append(request.url) if request.url.startswith("http") else None)
        page.goto(f"file://{out / 'report.html'}")
        page.evaluate("document.querySelectorAll('img').forEach(each => each.loading = 'eager')")
        page.wait_for_function("[...document.images].every(each => each.complete)")
        broken = page.evaluate("[...document.images].filter(each => !each.naturalWidth).length")
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        browser.close()
    assert (faults, broken) == ([], 0)
    assert overflow <= 0


def test_the_page_is_well_formed_and_every_image_has_words(checked):
    assert checked.open == []
    assert len(checked.ids) == len(set(checked.ids))
    assert checked.unnamed == []
    assert (
        len(checked.sources) == 3 + 3 + 2 + 1 + 1 + 2
    )  # guides, candidates, accepted, rejected, sample grid, an error beside its neighbour


def test_every_section_with_numbers_names_its_run_and_the_command_that_remakes_it(out, checked):
    page = (out / "report.html").read_text()
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', page, re.DOTALL))
    made_by = {"data": "prepare", "results": "evaluate", "external": "external", "subgroups": "evaluate",
               "errors": "evaluate", "probes": "evaluate", "ledger": "evaluate"}  # fmt: skip
    for section, stage in made_by.items():
        assert f'href="{UI}{stage}"' in sections[section]
        assert f'<a href="#run-{stage}">command that remakes it</a>' in sections[section]
        row = re.search(rf'<tr id="run-{stage}">.*?</tr>', page, re.DOTALL)
        assert row
        assert f"<code>synthvision stage={stage}</code>" in row.group()
    measures = re.findall(r'<a class="number" href="#run-evaluate"', page)
    assert len(measures) == 4 + 11  # the cards and the table of measures
    assert "run-evaluate" in checked.ids


def test_a_test_set_from_elsewhere_has_a_section_and_a_ledger_of_its_own(given, out):
    page = (out / "report.html").read_text()
    section = page[page.index('<section id="external">') : page.index('<section id="subgroups">')]
    assert "images of ward_b, the classifier found 66 of 70 lesion images" in section
    assert "it was opened once" in section
    assert "images of ward_b, the classifier found" in page[: page.index("<nav")]  # on the first screen too
    assert "cdcdcdcd" in section
    (item,) = [row for row in checklists(given)["CLAIM 2024"] if row["asked"] == "a test on data from elsewhere"]
    assert "ward_b" in item["answer"]
    without = build(replace(given, external=()))
    assert without["external"] == []
    (item,) = [row for row in without["checklists"]["CLAIM 2024"] if row["asked"] == "a test on data from elsewhere"]
    assert item["answer"] == ""


def test_the_page_needs_nothing_from_outside_and_shows_no_path_of_the_machine(out, given, checked):
    page = (out / "report.html").read_text()
    assert all(source.startswith("data:image/") for source in checked.sources)
    inside = [link for link in checked.links if link.startswith("#")]
    assert {link.removeprefix("#") for link in inside} <= set(checked.ids)
    assert set(checked.links) - set(inside) == {UI + name for name in ("prepare", "evaluate", "external")}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.replace(UI, ""))
    assert "url(http" not in page
    assert str(given.real.root) not in page + (out / "report.json").read_text()


def test_the_page_says_what_it_must(out):
    page = (out / "report.html").read_text()
    for text in (
        "Research use; not a medical device", "Phantom study", "No physician reviewed these generated images",
        "found 66 of 70 lesion images and wrongly flagged 0 of 70 others", "86.2% to 97.8%", "94.8% to 100%",
        "The test set was opened once", "every lesion image is synthetic", "near-copy of guide g1",
        "lesion, called normal", "The map means nothing here.", "Most like these training images",
        "synthvision stage=prepare", "Lesions &amp; &lt;others&gt;", "pustules, &lt;umbilicated&gt;",
    ):  # fmt: skip
        assert text in page, text
    assert "<umbilicated>" not in page


def test_fidelity_of_each_set_has_its_interval_and_n_or_says_why_not(out):
    page = (out / "report.html").read_text()
    table = re.search(r"<table[^>]*>(?:(?!</table>).)*KID.*?</table>", page, re.DOTALL)[0]
    rows = [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)[1:]]  # fmt: skip
    assert rows == [
        ["face", "60", "55", "0.123", "0.099 to 0.148", "0.51", "0.42", "0.63", "0.74", "17.2"],
        ["&lt;back&gt;", "9", "55", "not given: 50 of each are needed", "not given: 9 candidates; 10 are needed"],
    ]
    assert json.loads((out / "report.json").read_text())["fidelity"] == FIDELITY


def test_the_json_has_the_numbers_of_the_page(out):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((out / "report.json").read_text(), parse_constant=refuse)
    page = (out / "report.html").read_text()
    assert content["evaluation"]["confusion"] == [[66, 4], [0, 70]]
    for row in content["measures"]:
        assert f"<b>{row['value']}</b>" in page
        estimate = content["evaluation"]["estimates"][row["name"]]
        assert row["value"] in (percent(estimate["value"]), decimal(estimate["value"]))
    assert [step["count"] for step in content["flow"]] == [3, 3, 2, 7, 4, 140, 140]
    assert content["rejections"] == {"near-copy": 1}


def test_the_figures_lie_beside_the_page_too(out):
    names = {file.stem for file in (out / "figures").iterdir()}
    assert {
        "confusion-counts",
        "confusion-shares",
        "roc",
        "precision-recall",
        "diffusion-loss",
        "classifier-loss",
    } <= names


def test_the_figures_data_lie_beside_them_as_tables(out, given):
    rows = list(csv.DictReader((out / "figures/roc.csv").read_text().splitlines()))
    assert [float(row["sensitivity"]) for row in rows] == list(given.evaluation.roc.y)
    counts = {(row["truth"], row["called"]): int(row["images"])
              for row in csv.DictReader((out / "figures/confusion.csv").read_text().splitlines())}  # fmt: skip
    assert counts == {
        ("lesion", "lesion"): 66,
        ("lesion", "normal"): 4,
        ("normal", "lesion"): 0,
        ("normal", "normal"): 70,
    }
    for name in ("reliability", "decision-curve", "abstention", "precision-recall", "subgroups"):
        assert len((out / f"figures/{name}.csv").read_text().splitlines()) > 2


def test_cards_say_the_same_as_the_page_and_hide_no_gap(out):
    card, sheet = ((out / f"{name}.md").read_text() for name in ("model_card", "data_sheet"))
    assert "| Sensitivity | 94.3% | 86.2% to 97.8% |" in card
    assert "found 66 of 70 lesion images" in card
    assert "Phantom study" in card
    assert "| 1.0% |" in card
    assert "| lesion | 3 | 2 | 0 | 2 | 70 |" in sheet
    assert "Licence: not stated (" in sheet
    assert "near-copy (1)" in sheet
    assert "pustules" not in card  # nothing is escaped, so nothing of the users' captions is shown


def test_checklists_answer_what_the_study_knows_and_mark_the_rest(out, given):
    lists = checklists(given)
    assert list(lists) == ["CLAIM 2024", "TRIPOD+AI", "STARD-AI"]
    page = (out / "report.html").read_text()
    for guideline, items in lists.items():
        answered = sum(bool(item["answer"]) for item in items)
        assert 10 < answered < len(items)
        assert f"<b>{guideline}</b>: {answered} of {len(items)} answered, {len(items) - answered} missing" in page
    unknown = replace(given, real=given.real.with_values(lambda _: {"consent": ""}))
    (item,) = [each for each in checklists(unknown)["TRIPOD+AI"] if each["topic"] == "Ethics"]
    assert item["answer"] == ""
    (item,) = [each for each in lists["TRIPOD+AI"] if each["topic"] == "Ethics"]
    assert "not needed" in item["answer"]
    keys = {key for items in ITEMS.values() for _, _, key in items}
    assert keys - {NONE} <= set(answers(given))


def test_the_page_tells_other_thresholds_rarer_disease_and_gaps(out):
    page = (out / "report.html").read_text()
    for text in ("lowest threshold that keeps", "What a call is worth where the disease is rarer", "Net benefit",
                 "comparisons of subgroups none shows a difference", "That is no proof of equality"):  # fmt: skip
        assert text in page, text


def test_the_same_input_gives_the_same_files(given, out, tmp_path):
    write_report(given, tmp_path)
    for file in ("report.html", "report.json"):
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes()


def test_three_classes_get_a_table_of_each_class(tmp_path):
    page = write_report(report_input(tmp_path, MPOX, ("lesion", "normal", "other")), tmp_path / "out").read_text()
    assert "Each class against all others" in page


def test_an_untrained_base_without_candidates_or_probes_still_makes_a_report(given, tmp_path):
    bare = replace(given, candidates=Manifest((), given.real.root), probes=(), diffusion_losses=(), samples=())
    page = write_report(bare, tmp_path).read_text()
    assert "its base was used as it is" in page
    assert "Nothing was generated" in page
    assert "No probe was run" in page


def grave(given):
    return [remark["text"] for remark in build(given)["remarks"] if remark["grave"]]


def test_what_weakens_the_result_is_said_first(given):
    assert not any("Patients in more than one" in text for text in grave(given))
    unknown = given.real.with_values(lambda _: {"consent": ""})
    assert any("not stated whether consent" in text for text in grave(replace(given, real=unknown)))
    shared = given.real.with_values(lambda each: {"patient": "one"} if each.split in ("train", "test") else {})
    assert any(
        "Patients in more than one of guides, training, validation and test: 1." in text
        for text in grave(replace(given, real=shared))
    )
    painted = given.training.with_values(lambda each: {"painted_on": "i0"} if each.origin == "synthetic" else {})
    assert any("held-out ones: 2." in text for text in grave(replace(given, training=painted)))
    assert any("No opening" in text for text in grave(replace(given, openings=())))
    assert any("opened 2 times" in text for text in grave(replace(given, openings=given.openings * 2)))
    assert grave(replace(given, warnings=["the camera changed"]))[-1] == "the camera changed"
    mixed = given.training + Manifest((record("x", "lesion", "real", "train"),), given.real.root)
    assert not any("synthetic and other" in text for text in grave(replace(given, training=mixed)))


def test_reviewed_images_carry_no_banner(given):
    reviewed = given.candidates.with_values(lambda _: {"reviewer": "dr-a"})
    real = given.real.with_values(lambda _: {"reference_standard": "biopsy"})
    assert build(replace(given, candidates=reviewed, real=real))["banners"] == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(66 / 70, "94.3%"), (1.0, "100%"), (0.99999, "99.9%"), (0.00001, "0.1%"), (0.0, "0%"), (None, UNKNOWN)],
)
def test_only_exact_hundreds_and_zeros_are_printed_as_such(value, text):
    assert percent(value) == text


def test_smoothing_keeps_the_mean_of_the_run():
    rows = [{"step": n, "total": float(n % 2)} for n in range(1, 401)]
    smooth = smoothed(rows, "step")
    assert len(smooth) == 40
    assert {row["total"] for row in smooth} == {0.5}
    assert smooth[-1]["step"] == 400
