"""Subgroups: the right images in each, a planted bias found, no number from a handful."""

import numpy as np
import pytest

from synthvision.evaluation.intervals import delong, wilson
from synthvision.evaluation.subgroups import MINIMUM, subgroups, worth_showing

RNG = np.random.default_rng(0)
TONE = np.array(["fair", "dark", "brown"])[np.arange(300) % 3]
TRUTH = np.arange(300) % 2 == 0


def test_each_subgroup_equals_the_measures_on_its_own_images():
    score = RNG.random(300)
    called = score > 0.5
    for group in subgroups({"skin_tone": TONE.tolist()}, TRUTH, called, score):
        inside = group.value == TONE
        positives = inside & TRUTH
        assert (group.positives, group.others) == (positives.sum(), (inside & ~TRUTH).sum())
        assert group.sensitivity == wilson(int((positives & called).sum()), int(positives.sum()))
        assert group.specificity == wilson(int((inside & ~TRUTH & ~called).sum()), int((inside & ~TRUTH).sum()))
        assert group.auc == delong(TRUTH[inside], score[inside])


def test_subgroups_of_a_column_are_all_images_and_come_in_order():
    groups = subgroups({"skin_tone": TONE.tolist(), "body_part": [""] * 300}, TRUTH, TRUTH, TRUTH.astype(float))
    assert [(group.column, group.value) for group in groups] == [
        ("skin_tone", "brown"), ("skin_tone", "dark"), ("skin_tone", "fair"), ("body_part", "not stated"),
    ]  # fmt: skip
    assert sum(group.positives + group.others for group in groups[:3]) == 300


def test_a_planted_bias_is_found_and_a_fair_classifier_is_not_accused():
    missed = TRUTH & (TONE == "dark") & (np.arange(300) % 4 == 0)  # half of the lesions on dark skin
    biased = {g.value: g for g in subgroups({"skin_tone": TONE.tolist()}, TRUTH, TRUTH & ~missed, TRUTH * 1.0)}
    assert biased["dark"].sensitivity.high < biased["fair"].sensitivity.low
    fair = {g.value: g for g in subgroups({"skin_tone": TONE.tolist()}, TRUTH, TRUTH, TRUTH * 1.0)}
    assert fair["dark"].sensitivity.high > fair["fair"].sensitivity.low


@pytest.mark.parametrize(("positives", "others"), [(MINIMUM - 1, MINIMUM), (MINIMUM, MINIMUM - 1)])
def test_too_few_images_of_a_kind_give_no_number(positives, others):
    truth = np.arange(positives + others) < positives
    (group,) = subgroups({"body_part": ["face"] * len(truth)}, truth, truth, truth * 1.0)
    assert (group.sensitivity is None) == (positives < MINIMUM)
    assert (group.specificity is None) == (others < MINIMUM)
    assert group.auc is None


def test_combinations_of_which_nothing_can_be_said_are_not_shown():
    part = np.where(np.arange(300) < 290, "face", "neck")
    both = [f"{tone}, {place}" for tone, place in zip(TONE, part, strict=True)]
    columns = {"skin_tone": TONE.tolist(), "body_part": part.tolist(), "skin_tone and body_part": both}
    groups = subgroups(columns, TRUTH, TRUTH, RNG.random(300))
    shown = worth_showing(groups)
    assert {group.value for group in groups} - {group.value for group in shown} == {f"{t}, neck" for t in set(TONE)}
    assert next(group for group in shown if group.value == "neck").sensitivity is None  # a single column's value stays
