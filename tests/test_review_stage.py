"""The study waits for physicians, goes on with what they decided, and refuses decisions that were altered."""

import csv
import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from reviews import drawn, material, vote
from test_pipeline import finished, folder_of, run, runs_of, start

from synthvision.manifest import Manifest
from synthvision.review.queue import Item
from synthvision.review.store import Store
from synthvision.stages.reading import Session, _tell_if_sizes_tell

PHYSICIAN = ("review=physician", "stage=classify")


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was started under the physicians' policy."""
    folder = tmp_path_factory.mktemp("study")
    output = run(folder, *PHYSICIAN)  # exit code 0
    assert "the study waits for its readers: 24 decisions are missing: 24 decisions on 24 of 24 images" in output
    assert "open the review page: synthvision stage=review " in output
    assert "Traceback" not in output
    return folder


def read_by(folder: Path, reader: str, accepted: int) -> str:
    """Let a reader decide in a spreadsheet: accept the first images, reject the others as artefacts."""
    given = ("stage=review", f"stage.reader={reader}", f"stage.folder={folder / reader}")
    run(folder, *given, "stage.action=export")
    sheet = folder / reader / "decisions.csv"
    with sheet.open(newline="", encoding="utf-8-sig") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 24 + 2 + 1  # two real images and a repeat among them
    for number, row in enumerate(rows):
        row |= {"decision": "accept"} if number < accepted else {"decision": "reject", "reason": "artefact"}
    with sheet.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return run(folder, *given, "stage.action=import")


def test_a_waiting_study_has_a_finished_run_and_no_classifier(waiting: Path) -> None:
    assert set(finished(waiting)) == {"prepare", "dreambooth", "generate"}
    runs = runs_of(waiting)
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert "24 decisions are missing" in runs[0].data.tags["waits_for"]


def a_second_round_adds_to_the_first(folder: Path, database: Path, first: Manifest) -> None:
    """Other prompts, six images, three of them accepted: the classifier learns from them and from the first round's."""
    prompts = folder / "prompts.yaml"
    prompts.write_text("- {prompt: photo of three small sks papules, variants: 6}\n")
    second = (*PHYSICIAN, f"generate.prompts={prompts}")
    output = run(folder, *second)
    assert "the study waits for its readers: 6 decisions are missing: 6 decisions on 6 of 6 images" in output
    with Store(database) as store:
        for number, record in enumerate(Manifest.read(folder_of(folder, "generate") / "manifest.csv", first.root)):
            item = Item(f"token {number}", record, "candidate", "read", record.set, record.prompt)
            store.add(vote(item, "ada", "accept" if number < 3 else "reject"))
    run(folder, *second, "review.accept=30")
    training = Manifest.read(folder_of(folder, "classify") / "training.csv", first.root).where(origin="synthetic")
    assert set(first.column("sha256")) < set(training.column("sha256"))
    assert len(training.where(prompt="photo of three small sks papules")) == 3


def test_it_goes_on_with_what_was_decided_and_notices_what_was_altered(waiting: Path) -> None:
    output = read_by(waiting, "ada", 14)
    assert "27 new decisions of ada" in output
    assert "all decisions are there; go on: synthvision" in output
    run(waiting, *PHYSICIAN)
    reviewed = folder_of(waiting, "review")
    candidates = Manifest.read(reviewed / "manifest.csv", waiting / "studies" / "phantom")
    accepted = candidates.where(decision="accept")
    assert 10 <= len(accepted) <= 12
    assert set(candidates.column("reviewer")) == {"ada"}
    training = Manifest.read(folder_of(waiting, "classify") / "training.csv", candidates.root)
    assert set(training.where(origin="synthetic").column("image_id")) == set(accepted.column("image_id"))
    assert (
        not set(training.column("image_id"))
        - set(accepted.column("image_id"))
        - {record.image_id for record in training if record.origin == "real" and record.label == "normal"}
    )
    told = json.loads((reviewed / "review.json").read_text())
    assert told["head"]["count"] == 27
    assert told["readers"][0]["name"] == "ada"
    assert {path.name for path in reviewed.iterdir()} >= {"accepted.png", "rejected.png", "prompts.csv"}
    metrics = next(each for each in runs_of(waiting)[::-1] if each.data.tags["stage"] == "review").data.metrics
    assert metrics["accepted"] == len(accepted)
    assert "reader/ada/consistency" in metrics

    assert run(waiting, *PHYSICIAN).count("reused") == 5
    assert "27 decisions and undos, chain unbroken" in run(waiting, "stage=review", "stage.action=verify")

    database = waiting / "studies" / "phantom" / "decisions" / "decisions.sqlite"
    a_second_round_adds_to_the_first(waiting, database, accepted)
    with sqlite3.connect(database) as db:
        db.executescript("drop trigger events_stay; update events set verdict = 'unsure' where seq = 3;")
    db.close()
    process = start(waiting, "stage=review", "stage.action=verify")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the chain of decisions breaks at decision 3" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"action": "open"}, "stage.action"),
        ({"action": "export"}, "stage.reader"),
        ({"action": "import", "reader": "ada"}, "stage.folder"),
        ({"host": "0.0.0.0"}, "stage.host"),
    ],
)
def test_a_session_names_its_key(values: dict[str, str], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        Session(**values)  # type: ignore[arg-type]


def test_real_images_of_another_size_are_said_to_tell_themselves(tmp_path: Path) -> None:
    given, told = material(tmp_path, 4, 2, salt=0.5), []
    _tell_if_sizes_tell(given, told.append)
    assert told == []
    larger = drawn(tmp_path, "larger", 2, 3, side=48, origin="real", split="val")
    _tell_if_sizes_tell(replace(given, real=larger), told.append)
    assert "candidates are 24 pixels wide and the real images among them 48" in told[0]
