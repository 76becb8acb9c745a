"""Splits are exact, keep patients whole, and depend on seed and content alone."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from synthvision.data.splits import ShortageError, groups_of, split
from synthvision.manifest import Record

COUNTS = {"lesion": {"train": 20, "val": 4, "test": 15}, "normal": {"train": 30, "test": 15}}


def records(seed: int, sizes: tuple[int, int] = (1, 4), number: int = 60) -> list[Record]:
    """Draw patients with a few images each, some of both labels, and some images without a patient."""
    rng = np.random.default_rng(seed)
    out = []
    for patient in range(number):
        for image in range(int(rng.integers(*sizes))):
            name = f"{patient}-{image}"
            label = str(rng.choice(["lesion", "normal", "other"], p=[0.45, 0.45, 0.1]))
            known = f"p{patient}" if patient % 5 else ""
            out.append(Record(name, f"{name}.png", "0" * 64, label, "real", patient=known))
    return out


def table(chosen: tuple[Record, ...]) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = defaultdict(dict)
    for (label, part), number in Counter((r.label, r.split) for r in chosen).items():
        out[label][part] = number
    return dict(out)


@pytest.mark.parametrize("seed", range(20))
def test_exact_counts_and_no_patient_on_two_sides(seed: int) -> None:
    chosen = split(records(seed), COUNTS, seed)
    assert table(chosen) == COUNTS
    sides = defaultdict(set)
    for record in chosen:
        sides[record.patient].add(record.split)
    assert all(len(parts) == 1 for patient, parts in sides.items() if patient)


def test_the_papers_table() -> None:
    """66 training and 70 test images with 4 for validation, single images of unknown patients."""
    pool = [Record(f"{label}-{i}", "a.png", "0" * 64, label, "real") for label in ("hpv", "normal") for i in range(140)]
    counts = {label: {"train": 66, "val": 4, "test": 70} for label in ("hpv", "normal")}
    assert table(split(pool, counts, 0)) == counts


def test_exact_even_where_every_image_is_needed() -> None:
    pool = [
        Record(f"{patient}-{image}", "a.png", "0" * 64, "lesion", "real", patient=str(patient))
        for patient, size in enumerate([1, 2, 3] * 10)
        for image in range(size)
    ]
    counts = {"lesion": {"train": 31, "val": 7, "test": 22}}
    for seed in range(20):
        assert table(split(pool, counts, seed)) == counts


def test_order_of_records_does_not_matter_and_is_kept() -> None:
    pool = records(0)
    chosen = split(pool, COUNTS, 1)
    backwards = split(pool[::-1], COUNTS, 1)
    assert chosen == backwards[::-1]
    names = [record.image_id for record in pool]
    assert sorted(chosen, key=lambda record: names.index(record.image_id)) == list(chosen)


def test_seed_changes_who_goes_where() -> None:
    pool = records(0)
    assert split(pool, COUNTS, 1) == split(pool, COUNTS, 1)
    assert split(pool, COUNTS, 1) != split(pool, COUNTS, 2)


def test_large_patients_are_not_favoured() -> None:
    """Of single images and pairs, both equally many, a small draw takes patients of both kinds."""
    pool = records(3, sizes=(1, 3), number=400)
    counts = {"lesion": {"train": 60}, "normal": {"train": 60}}
    taken = {record.patient for record in split(pool, counts, 0)} - {""}
    sizes = Counter(Counter(r.patient for r in pool if r.patient and r.label != "other")[patient] for patient in taken)
    assert min(sizes[1], sizes[2]) > 15


def test_shortage_names_label_split_and_number() -> None:
    pool = [Record(f"{i}", "a.png", "0" * 64, "lesion", "real") for i in range(10)]
    with pytest.raises(ShortageError, match=r"label 'lesion'.*8 images wanted, \d missing \(10 usable images for 12"):
        split(pool, {"lesion": {"train": 8, "test": 4}}, 0)
    with pytest.raises(ShortageError, match=r"label 'normal', split 'test': 1 images wanted, 1 missing \(0 usable"):
        split(pool, {"normal": {"test": 1}}, 0)


def test_one_patient_cannot_fill_two_splits() -> None:
    pool = [Record(f"{i}", "a.png", "0" * 64, "lesion", "real", patient="p") for i in range(10)]
    with pytest.raises(ShortageError, match="patients are kept whole"):
        split(pool, {"lesion": {"train": 4, "test": 4}}, 0)


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"lesion": {"guide": 1}}, "splits must be among"), ({"lesion": {"test": -1}}, "0 or more; it is -1")],
)
def test_impossible_counts_are_refused(counts: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split([], counts, 0)


def test_subgroups_are_spread_as_they_are_over_all() -> None:
    rng = np.random.default_rng(0)
    pool = [replace(r, skin_tone=str(rng.choice(["fair", "dark"], p=[0.8, 0.2]))) for r in records(1, (1, 2), 400)]
    pool = [r for r in pool if r.label != "other"]
    counts = {label: {"train": 60, "val": 20, "test": 30} for label in ("lesion", "normal")}
    chosen = split(pool, counts, 0, ["skin_tone"])
    assert table(chosen) == counts
    for label in counts:
        share = sum(r.skin_tone == "dark" for r in pool if r.label == label) / sum(r.label == label for r in pool)
        for part, wanted in counts[label].items():
            dark = sum(r.skin_tone == "dark" for r in chosen if (r.label, r.split) == (label, part))
            assert abs(dark - share * wanted) <= 1.5


@pytest.mark.parametrize("seed", range(5))
def test_an_image_keeps_its_split_when_others_are_added(seed: int) -> None:
    pool = records(seed, number=120)
    few = [r for r in pool if int(r.image_id.split("-")[0]) < 70]
    before = {r.image_id: r.split for r in split(few, COUNTS, seed)}
    after = {r.image_id: r.split for r in split(pool, COUNTS, seed, kept=before)}
    assert after == before  # the counts are full
    more = {label: {part: 2 * n for part, n in parts.items()} for label, parts in COUNTS.items()}
    grown = split(pool, more, seed, kept=before)
    assert table(grown) == more
    assert {r.image_id: r.split for r in grown if r.image_id in before} == before


def test_a_split_that_is_given_is_kept_and_a_patient_follows() -> None:
    pool = records(0)
    pool[0] = replace(pool[0], split="test", label="lesion", patient="p")
    pool[1] = replace(pool[1], label="lesion", patient="p")
    chosen = {r.image_id: r.split for r in split(pool, COUNTS, 0)}
    assert chosen[pool[0].image_id] == "test"
    assert chosen.get(pool[1].image_id, "test") == "test"


def test_what_is_tied_goes_to_one_side() -> None:
    pool = [replace(r, patient="", lesion=f"l{i // 3}", siblings=f"s{i // 2}") for i, r in enumerate(records(2))]
    assert len(groups_of(pool)) < len(pool) / 3
    chosen = split(pool, {"lesion": {"train": 5, "test": 5}, "normal": {"train": 5, "test": 5}}, 0)
    by_lesion = defaultdict(set)
    for record in chosen:
        by_lesion[record.lesion].add(record.split)
    assert all(len(parts) == 1 for parts in by_lesion.values())


def test_a_shortage_says_that_earlier_splits_hold_images() -> None:
    pool = [Record(f"{i}", "a.png", "0" * 64, "lesion", "real") for i in range(10)]
    with pytest.raises(ShortageError, match="8 images have a split already"):
        split(pool, {"lesion": {"train": 4, "test": 4}}, 0, kept={f"{i}": "train" for i in range(8)})
