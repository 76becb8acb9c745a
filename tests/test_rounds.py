"""Rounds of generation accumulate: decided images of alike rounds count, each once; others stay apart."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from reviews import POLICY, desk, drawn, material, vote

from synthvision import artifact
from synthvision.manifest import Manifest
from synthvision.review.export import complete, export
from synthvision.review.queue import Material
from synthvision.review.store import Store
from synthvision.stages.context import MANIFEST
from synthvision.stages.rounds import other_rounds, rounds_digest

RECIPE = {"dreambooth": {"unet_steps": 1000}, "weights": "base"}


def finish(folder: Path, output: str, config: Mapping[str, object], **inputs: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stage = folder.parent.name
    artifact.finish(folder, artifact.StageRecord(stage, folder.name, dict(config), inputs, output, "", "0", 1.0))
    return folder


def trained(root: Path, name: str, recipe: Mapping[str, object] = RECIPE) -> str:
    """Finish a fine-tune; return the digest of its weights."""
    finish(root / "dreambooth" / name, f"weights {name}", recipe, prepare="images")
    return f"weights {name}"


def made(root: Path, name: str, candidates: Manifest, weights: str, **inputs: str) -> Path:
    """Finish a round of generation."""
    folder = root / "generate" / name
    candidates.write(folder / MANIFEST)
    given = {"prepare": "images", "dreambooth": weights, **inputs}
    return finish(folder, f"round {name}", {"backbone": {"source": "tiny"}}, **given)


def of(candidates: Manifest, given: Material) -> Material:
    return replace(given, candidates=candidates)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        yield store


@pytest.fixture
def first(tmp_path: Path, store: Store) -> Material:
    """A first round of twelve, of which ada accepts the first six she is shown and rejects four; two stay open."""
    given = material(tmp_path)
    made(tmp_path, "first", given.candidates, trained(tmp_path, "one"))
    for number, item in enumerate(given.queue("ada")[:10]):
        store.add(vote(item, "ada", "accept" if number < 6 else "reject"))
    return given


def test_what_was_accepted_before_is_pooled_and_not_asked_again(tmp_path: Path, store: Store, first: Material) -> None:
    """Other prompts and another seed: the fine-tune was made again, by the same recipe."""
    second = drawn(tmp_path, "second", 8, 5, prompt="photo of large spots")
    folder = made(tmp_path, "second", second, trained(tmp_path, "two"))
    others = other_rounds(tmp_path, folder, store.current(), POLICY)
    decided = {item.record.sha256 for item in first.queue("ada")[:10]}
    assert set(others.column("sha256")) == decided
    given = replace(of(second, first), others=others)
    assert not decided & {item.record.sha256 for item in given.queue("ada")}
    told = desk(given, store).queue("ada", "read")["sets"]
    assert sum(each["before"] for each in told) == 6
    assert sum(each["least"] for each in told) == 18  # both rounds together give no more
    assert [each["before"] for each in desk(given, store).queue("grace", "read")["sets"]] == [0, 0]  # not hers

    for item in given.queue("ada"):
        store.add(vote(item, "ada", "accept"))
    result = export(second + others, store.current(), POLICY)
    assert len(result.where(decision="accept")) == 8 + 6
    assert len(result.where(decision="reject")) == 4
    assert {record.path for record in result} == {record.path for record in second + others}
    # The same pool whichever round asks; of the first one two are still open.
    back = other_rounds(tmp_path, tmp_path / "generate" / "first", store.current(), POLICY)
    mine = complete(first.candidates, store.current(), POLICY)
    again = export(mine + back, store.current(), POLICY)
    wanted = [set(each.where(decision="accept").column("sha256")) for each in (again, result)]
    assert wanted[0] == wanted[1]


def test_the_quota_is_of_all_rounds(tmp_path: Path, store: Store, first: Material) -> None:
    second = drawn(tmp_path, "second", 8, 5)
    folder = made(tmp_path, "second", second, trained(tmp_path, "two"))
    for item in of(second, first).queue("ada"):
        store.add(vote(item, "ada", "accept"))
    policy = replace(POLICY, accept=10)
    result = export(second + other_rounds(tmp_path, folder, store.current(), policy), store.current(), policy)
    assert len(result.where(decision="accept")) == 10
    assert len(result.where(lambda record: record.reason.startswith("surplus"))) == 4


def test_an_image_that_comes_again_counts_once(tmp_path: Path, store: Store, first: Material) -> None:
    """More candidates of the same prompts: the first ones come again, one of them not to the last bit."""
    new = drawn(tmp_path, "new", 4, 6)
    again = first.queue("ada")[0].record
    other = replace(again, sha256=new.records[0].sha256, path=new.records[0].path)
    kept = first.candidates.where(lambda record: record.image_id != again.image_id)
    larger = kept + Manifest((other, *new.records[1:]), tmp_path)
    folder = made(tmp_path, "larger", larger, "weights one")
    assert list(other_rounds(tmp_path, folder, store.current(), POLICY)) == []


@pytest.mark.usefixtures("first")
def test_the_same_draws_with_other_settings_are_another_image(tmp_path: Path, store: Store) -> None:
    other = drawn(tmp_path, "other", 12, 7).with_values(
        lambda record: {"image_id": record.image_id.replace("other", "made"), "settings": "guidance 5"}
    )
    folder = made(tmp_path, "other", other, "weights one")
    others = other_rounds(tmp_path, folder, store.current(), POLICY)
    assert len(others) == 10
    assert len(other + others) == 22  # no two share a name


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("recipe", "inputs"),
    [
        ({**RECIPE, "dreambooth": {"unet_steps": 0}}, {}),  # the control
        ({**RECIPE, "weights": "another base"}, {}),
        (RECIPE, {"prepare": "another split"}),  # what was painted into may be a test image now
        (RECIPE, {"superres": "upscaler"}),
    ],
)
def test_rounds_that_differ_in_more_than_what_was_asked_for_stay_apart(
    recipe: Mapping[str, object], inputs: Mapping[str, str], tmp_path: Path, store: Store
) -> None:
    second = drawn(tmp_path, "second", 8, 5)
    folder = made(tmp_path, "second", second, trained(tmp_path, "two", recipe), **inputs)
    assert len(other_rounds(tmp_path, folder, store.current(), POLICY)) == 0


def test_rounds_apart_on_request_unfinished_or_copies_of_guides(tmp_path: Path, store: Store, first: Material) -> None:
    second = drawn(tmp_path, "second", 8, 5)
    folder = made(tmp_path, "second", second, "weights one")
    assert len(other_rounds(tmp_path, folder, store.current(), POLICY)) == 10
    assert len(other_rounds(tmp_path, folder, store.current(), replace(POLICY, rounds="this"))) == 0
    assert len(other_rounds(tmp_path, folder, store.current(), replace(POLICY, reads=2))) == 0
    before = rounds_digest(tmp_path)
    judged = first.candidates.with_values(lambda _: {"decision": "reject", "reason": "copy", "reviewer": "gate"})
    judged.write(tmp_path / "generate" / "first" / MANIFEST)
    assert len(other_rounds(tmp_path, folder, store.current(), POLICY)) == 0
    (tmp_path / "generate" / "first" / MANIFEST).write_text("another table")
    with pytest.raises(ValueError, match=r"generate/first.*set review\.rounds=this"):
        other_rounds(tmp_path, folder, store.current(), POLICY)
    (tmp_path / "generate" / "first" / "stage.json").unlink()
    assert len(other_rounds(tmp_path, folder, store.current(), POLICY)) == 0
    assert rounds_digest(tmp_path) != before
