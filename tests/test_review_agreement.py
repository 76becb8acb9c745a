"""Agreement equals other implementations and textbook cases; intervals cover; prompts are told apart by acceptance."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reviews import material, vote
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from synthvision.review.agreement import agreement, cohen, discrimination, fleiss, readers, wilson
from synthvision.review.feedback import acceptance, write_acceptance
from synthvision.review.queue import Material
from synthvision.review.store import Store


@pytest.fixture
def given(tmp_path: Path) -> Material:
    return material(tmp_path, 40, 20, salt=0.5, repeats=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "decisions.sqlite") as store:
        yield store


def test_cohen_is_scikit_learn_s() -> None:
    rng = np.random.default_rng(0)
    first = rng.choice(["accept", "reject", "unsure"], 200)
    second = np.where(rng.random(200) < 0.6, first, rng.choice(["accept", "reject", "unsure"], 200))
    found = cohen(list(zip(first.tolist(), second.tolist(), strict=True)))
    assert found.value == pytest.approx(cohen_kappa_score(first, second))
    assert found.low < found.value < found.high
    assert found.n == 200


@pytest.mark.parametrize("pairs", [[("accept", "accept")] * 5, [("accept", "reject")] * 5])
def test_a_kappa_that_cannot_be_given_is_nan_or_zero(pairs: list[tuple[str, str]]) -> None:
    found = cohen(pairs)
    assert math.isnan(found.value) or found.value == 0


def test_fleiss_s_own_example() -> None:
    """Fleiss (1971), as worked through in textbooks: 10 subjects, 14 raters, 5 categories, kappa 0.210."""
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
             [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    votes = [[str(label) for label, count in enumerate(row) for _ in range(count)] for row in table]
    found = fleiss(votes, 0)
    assert found.value == pytest.approx(0.210, abs=5e-4)
    assert found.low < found.value < found.high


def test_agreement_has_all_sets_and_reasons(given: Material, store: Store) -> None:
    for reader in ("ada", "grace"):
        for item in given.queue(reader):
            number = int(item.record.image_id.split("-")[1])
            verdict = "reject" if number % 3 == 0 or (reader == "grace" and number == 1) else "accept"
            reason = "blurred" if number % 2 else "artefact"
            store.add(vote(item, reader, verdict, reason=reason))
    rows = {(row.part, row.measure): row.kappa for row in agreement(store.current(), 0)}
    parts = ["all", "set a", "set b", "reason artefact", "reason blurred"]
    assert list(rows) == [(part, measure) for part in parts for measure in ("Cohen, ada and grace", "Fleiss")]
    assert rows["set a", "Fleiss"].value == 1
    assert rows["reason artefact", "Cohen, ada and grace"].value == 1
    assert 0.8 < rows["all", "Cohen, ada and grace"].value < 1
    assert rows["all", "Cohen, ada and grace"].n == 40  # real images and repeats are none of the candidates
    assert agreement(store.current(), 0) == agreement(store.current(), 0)


def test_one_reader_agrees_with_nobody(given: Material, store: Store) -> None:
    for item in given.queue("ada"):
        store.add(vote(item, "ada", "accept"))
    assert agreement(store.current(), 0) == []


def test_discrimination_is_the_textbook_s() -> None:
    real, made = np.array([2, 3, 15]), np.array([30, 20, 50])
    d_prime, auc = discrimination(real, made, 0)
    ratings = np.repeat([0, 1, 2, 0, 1, 2], [*real, *made])
    truth = np.repeat([1, 0], [real.sum(), made.sum()])
    assert auc.value == pytest.approx(roc_auc_score(truth, ratings))
    assert d_prime.value == pytest.approx(norm.ppf(15.5 / 21) - norm.ppf(50.5 / 101))
    assert auc.low < auc.value < auc.high
    assert auc.low > 0.5  # this reader tells real images
    assert math.isnan(discrimination(np.array([0, 0, 1]), made, 0)[1].value)


def test_readers_who_accept_all_alike_tell_nothing(given: Material, store: Store) -> None:
    for item in given.queue("ada"):
        store.add(vote(item, "ada", "accept", shown_ms=2500))
    (ada,) = readers(store.current(), 0)
    assert (ada.decisions, ada.accepted.value, ada.seconds, ada.consistency.value) == (40, 1, 2.5, 1)
    assert ada.consistency.n == 20
    assert ada.auc.value == 0.5
    assert math.isnan(ada.auc.low)  # the bootstrap of a constant knows nothing


def test_a_reader_s_consistency_counts_repeats_decided_as_before(given: Material, store: Store) -> None:
    repeats = 0
    for item in given.queue("ada"):
        repeats += item.shown_as == "repeat"
        store.add(vote(item, "ada", "reject" if item.shown_as == "repeat" and repeats % 4 == 0 else "accept"))
    (ada,) = readers(store.current(), 0)
    assert ada.consistency == wilson(15, 20)


def test_prompts_and_words_are_ordered_by_acceptance(given: Material, store: Store, tmp_path: Path) -> None:
    for item in given.queue("ada"):
        store.add(vote(item, "ada", "reject" if "many" in item.prompt else "accept"))
    rows = acceptance(store.current())
    told = {(row.kind, row.text): (row.accepted, row.share.n, row.advice) for row in rows}
    assert told == {
        ("prompt", "photo of many sks spots"): (0, 20, "drop or reword"),
        ("prompt", "photo of few sks spots"): (20, 20, "keep"),
        ("word", "many"): (0, 20, "drop or reword"),
        ("word", "few"): (20, 20, "keep"),
    }
    assert next(iter(told))[1] == "photo of many sks spots"
    write_acceptance(tmp_path / "prompts.csv", rows)
    lines = (tmp_path / "prompts.csv").read_text().splitlines()
    assert lines[1] == "prompt,photo of many sks spots,20,0,0.000,0.000,0.161,drop or reword,artefact 20"


def test_of_many_prompts_few_images_each_give_no_advice(tmp_path: Path, store: Store) -> None:
    """Two rejected images of a prompt are one's bad luck among twenty prompts, as coins show."""
    given = material(tmp_path, 40)
    coins = np.random.default_rng(0).random(40) < 0.75
    for number, item in enumerate(given.queue("ada")):
        store.add(vote(item, "ada", "accept" if coins[number] else "reject", prompt=f"prompt {number // 2}"))
    rows = [row for row in acceptance(store.current()) if row.kind == "prompt"]
    assert len(rows) == 20
    assert rows[0].accepted == 0  # and its own interval, 0 to 0.66, lies below 0.75
    assert {row.advice for row in rows} == {""}
