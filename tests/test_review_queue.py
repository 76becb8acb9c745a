"""Queues are seeded, blinded, salted and hold repeats; the rule turns votes into a data set, as many as wanted."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given as drawn_from
from hypothesis import settings
from hypothesis import strategies as st
from reviews import material, vote

from synthvision.review.export import choose, export, missing, target
from synthvision.review.policy import RULES
from synthvision.review.queue import GAP, Material
from synthvision.review.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "decisions.sqlite") as store:
        yield store


def test_each_reader_has_an_own_order_that_stays(tmp_path: Path) -> None:
    given = material(tmp_path, 40, salt=0.1, repeats=0.1)
    ada, grace = given.queue("ada"), given.queue("grace")
    assert ada == material(tmp_path, 40, salt=0.1, repeats=0.1).queue("ada")
    assert [item.record for item in ada] != [item.record for item in grace]
    assert Counter((i.record.image_id, i.shown_as) for i in ada) == Counter(
        (i.record.image_id, i.shown_as) for i in grace
    )
    assert ada != material(tmp_path, 40, salt=0.1, repeats=0.1, seed=1).queue("ada")
    assert not {item.token for item in ada} & {item.token for item in grace}


def test_every_candidate_is_shown_once_and_shares_are_salted_and_repeated(tmp_path: Path) -> None:
    given = material(tmp_path, 60, salt=0.1, repeats=0.2)
    queue = given.queue("ada")
    shown = {kind: [i.record.image_id for i in queue if i.shown_as == kind] for kind in ("candidate", "salt", "repeat")}
    assert sorted(shown["candidate"]) == sorted(given.candidates.column("image_id"))
    assert len(shown["salt"]) == len(set(shown["salt"])) == 6
    assert set(shown["salt"]) <= set(given.real.column("image_id"))
    assert len(shown["repeat"]) == 12
    places = {(item.record.image_id, item.shown_as): place for place, item in enumerate(queue)}
    apart = [places[name, "repeat"] - places[name, "candidate"] for name in shown["repeat"]]
    assert min(apart) > 0
    late = [
        places[name, "candidate"]
        for name in shown["repeat"]
        if places[name, "repeat"] - places[name, "candidate"] <= GAP
    ]
    assert all(place + GAP >= 60 + 6 - 1 for place in late)  # nearer only where the queue ends


def test_nothing_in_an_item_tells_a_real_image(tmp_path: Path) -> None:
    given = material(tmp_path, 20, salt=0.3)
    queue = given.queue("ada")
    told = {
        kind: {(i.set, given.description(i)) for i in queue if i.shown_as == kind} for kind in ("candidate", "salt")
    }
    assert told["salt"] <= told["candidate"]
    assert not any("sks" in given.description(item).split() for item in queue)
    assert all(len(item.token) == 32 for item in queue)


def test_copies_and_an_empty_study_are_refused(tmp_path: Path) -> None:
    given = material(tmp_path)
    with pytest.raises(ValueError, match="no candidates"):
        Material(given.candidates.where(set="none"), *list(vars(given).values())[1:])
    twice = given.candidates + given.candidates.with_values(lambda record: {"image_id": f"{record.image_id}-again"})
    with pytest.raises(ValueError, match="12 candidates are copies"):
        Material(twice, *list(vars(given).values())[1:])


VERDICT = st.sampled_from(["accept", "reject", "unsure"])


def model(rule: str, first: str, second: str, judge: str | None) -> bool:
    """Say again, and more plainly, whether two votes and a judge accept an image."""
    accepts = [first, second].count("accept")
    if rule == "adjudicated" and {first, second} not in ({"accept"}, {"reject"}):
        return judge == "accept"
    return accepts >= {"any": 1, "majority": 2, "all": 2, "adjudicated": 2}[rule]


@settings(max_examples=20, deadline=None)
@drawn_from(votes=st.lists(st.tuples(VERDICT, VERDICT, VERDICT), min_size=6, max_size=6), rule=st.sampled_from(RULES))
def test_export_is_the_rule(
    votes: list[tuple[str, str, str]], rule: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("study")
    given = material(root, 6, reads=2, rule=rule)
    names = given.candidates.column("image_id")
    with Store(root / "decisions.sqlite") as store:
        for reader, column in (("ada", 0), ("grace", 1)):
            for item in given.queue(reader):
                store.add(vote(item, reader, votes[names.index(item.record.image_id)][column]))
        disputed = given.disputes("judge", store.current())
        assert {item.record.image_id for item in disputed} == {
            name for name, (first, second, _) in zip(names, votes, strict=True)
            if {first, second} not in ({"accept"}, {"reject"})
        }  # fmt: skip
        assert missing(given.candidates, store.current(), given.policy).decisions == (
            len(disputed) if rule == "adjudicated" else 0
        )
        for item in disputed:
            store.add(vote(item, "judge", votes[names.index(item.record.image_id)][2]))
        wanted = [model(rule, *each) for each in votes]
        if not any(wanted):
            with pytest.raises(ValueError, match=rf"no candidate is accepted under review\.rule={rule}"):
                export(given.candidates, store.current(), given.policy)
            return
        result = export(given.candidates, store.current(), given.policy)
    assert [decision == "accept" for decision in result.column("decision")] == wanted
    assert all("ada, grace" in reviewer for reviewer in result.column("reviewer"))
    for record, (first, second, _) in zip(result, votes, strict=True):
        assert ("judge" in record.reviewer) == (
            rule == "adjudicated" and first + second not in ("accept" * 2, "reject" * 2)
        )


def test_missing_counts_every_open_decision(tmp_path: Path, store: Store) -> None:
    given = material(tmp_path, 6, reads=2, salt=0.5, repeats=0.5)
    assert missing(given.candidates, {}, given.policy).decisions == 12
    items = [item for item in given.queue("ada") if item.shown_as == "candidate"]
    for item in items[:4]:
        store.add(vote(item, "ada", "accept"))
    lacking = missing(given.candidates, store.current(), given.policy)
    assert (lacking.reads, lacking.images, lacking.disputes) == (8, 6, 0)
    with pytest.raises(ValueError, match="8 decisions are missing"):
        export(given.candidates, store.current(), given.policy)


def test_real_images_and_repeats_never_enter_the_data(tmp_path: Path, store: Store) -> None:
    given = material(tmp_path, 6, salt=1.0, repeats=1.0)
    for item in given.queue("ada"):
        verdict = "accept" if item.shown_as == "salt" or item.record.image_id == "made-3" else "reject"
        store.add(vote(item, "ada", "accept" if item.shown_as == "repeat" else verdict))
    result = export(given.candidates, store.current(), given.policy)
    assert result.where(decision="accept").column("image_id") == ["made-3"]
    assert result.column("image_id") == given.candidates.column("image_id")
    assert set(result.where(decision="reject").column("reason")) == {"artefact: 0 of 1 accept"}


def test_sets_take_turns_until_enough_are_chosen(tmp_path: Path) -> None:
    given = material(tmp_path, 20, accept=7)
    everything = list(given.candidates)
    chosen = choose(everything, given.policy)
    assert sorted(Counter(record.set for record in chosen).values()) == [3, 4]
    assert chosen == choose(everything[::-1], given.policy)  # whatever the order they come in
    few = [record for record in everything if record.set == "a"][:2] + [r for r in everything if r.set == "b"]
    assert Counter(record.set for record in choose(few, given.policy)) == {"a": 2, "b": 5}
    capped = material(tmp_path, 20, per_set=[1, 3]).policy
    assert Counter(record.set for record in choose(everything, capped)) == {"a": 3, "b": 3}
    assert choose(everything, material(tmp_path, 20, accept=7, seed=5).policy) != chosen
    assert target(given.policy, given.candidates, "a") == (4, 4)
    assert target(capped, given.candidates, "a") == (1, 3)


def test_surplus_is_said(tmp_path: Path, store: Store) -> None:
    given = material(tmp_path, 6, accept=4)
    for item in given.queue("ada"):
        store.add(vote(item, "ada", "accept"))
    result = export(given.candidates, store.current(), given.policy)
    assert Counter(result.column("reason")) == {
        "accepted: 1 of 1 accept": 4,
        "surplus: 4 images were chosen of 6 accepted": 2,
    }


def test_new_candidates_leave_the_order_of_the_others(tmp_path: Path) -> None:
    """A next round adds candidates; the reader's old ones keep their order among themselves, and their decisions."""
    few, many = material(tmp_path, 10).queue("ada"), material(tmp_path, 20).queue("ada")
    place = {item.token: index for index, item in enumerate(many)}
    assert all(place[first.token] < place[second.token] for first, second in pairwise(few))
