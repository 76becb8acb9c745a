"""Operating points, and predictive values at a stated prevalence: Bayes' rule, and intervals that cover."""

import math

import numpy as np
import pytest

from synthvision.evaluation.intervals import wilson
from synthvision.evaluation.operating import at_prevalences, operating_points


def test_every_rule_is_judged_by_its_own_threshold():
    truth, score = np.array([True, True, True, False, False]), np.array([0.9, 0.6, 0.2, 0.7, 0.1])
    rows = operating_points(truth, score, {"youden": 0.5, "sensitivity": 0.15}, used=0.5)
    assert [(row.rule, row.used) for row in rows] == [("youden", True), ("sensitivity", False)]
    assert rows[0].sensitivity == wilson(2, 3)
    assert rows[0].specificity == wilson(1, 2)
    assert rows[0].ppv == wilson(2, 3)
    assert rows[1].npv == wilson(1, 1)


@pytest.mark.parametrize("prevalence", [0.01, 0.3, 0.5])
def test_predictive_values_are_bayes_rule(prevalence):
    found, cleared = wilson(66, 70), wilson(60, 70)
    (row,) = at_prevalences(found, cleared, [prevalence])
    true, false = prevalence * 66 / 70, (1 - prevalence) * 10 / 70
    assert row.ppv.value == pytest.approx(true / (true + false))
    true, false = (1 - prevalence) * 60 / 70, prevalence * 4 / 70
    assert row.npv.value == pytest.approx(true / (true + false))
    assert row.ppv.low < row.ppv.value < row.ppv.high


def test_at_the_test_sets_own_mix_it_is_the_share_counted_there():
    (row,) = at_prevalences(wilson(66, 70), wilson(65, 70), [0.5])
    assert row.ppv.value == pytest.approx(66 / 71)
    assert row.npv.value == pytest.approx(65 / 69)


def test_the_hpv_papers_perfect_specificity_is_not_a_perfect_ppv_where_the_disease_is_rare():
    (row,) = at_prevalences(wilson(66, 70), wilson(70, 70), [0.01])
    assert row.ppv.value == row.ppv.high == 1
    assert 0.1 < row.ppv.low < 0.2  # about one in seven, in the worst case


def test_nobody_called_positive_gives_no_ppv():
    (row,) = at_prevalences(wilson(0, 70), wilson(70, 70), [0.1])
    assert math.isnan(row.ppv.value)
    assert row.npv.value == pytest.approx(0.9)
    assert at_prevalences(wilson(0, 70), wilson(60, 70), [0.1])[0].ppv.low == 0


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, float("nan")])
def test_a_prevalence_of_zero_or_one_is_refused(value):
    with pytest.raises(ValueError, match=r"evaluate\.prevalences must lie between 0 and 1"):
        at_prevalences(wilson(1, 2), wilson(1, 2), [value])


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.9, 0.8), (0.95, 0.98), (0.7, 0.6)])
def test_the_interval_covers_the_truth_about_19_times_in_20(sensitivity, specificity):
    rng, hits, n = np.random.default_rng(0), 0, 600
    true = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))
    for _ in range(n):
        found, cleared = wilson(rng.binomial(80, sensitivity), 80), wilson(rng.binomial(120, specificity), 120)
        ppv = at_prevalences(found, cleared, [0.1])[0].ppv
        hits += ppv.low <= true <= ppv.high
    assert 0.925 <= hits / n <= 0.99
