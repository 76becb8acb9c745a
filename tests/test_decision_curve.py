"""Net benefit by hand and by its properties; abstention by hand."""

import numpy as np
import pytest

from synthvision.evaluation.decision_curve import COVERAGES, GRID, abstention, decision_curve
from synthvision.evaluation.intervals import patient_draws, wilson

RNG = np.random.default_rng(0)
SCORE = RNG.random(300)
TRUTH = RNG.random(300) < SCORE
WEIGHTS = patient_draws([str(n) for n in range(300)], 200, 0)


def test_net_benefit_is_true_positives_less_the_odds_times_false_ones():
    curve = decision_curve(TRUTH, SCORE, WEIGHTS)
    for at in (4, 19, 49, 79):
        risk, called = GRID[at], GRID[at] <= SCORE
        expected = ((called & TRUTH).sum() - (called & ~TRUTH).sum() * risk / (1 - risk)) / 300
        assert curve.classifier[at] == pytest.approx(expected)
        assert curve.act_on_all[at] == pytest.approx(TRUTH.mean() - (1 - TRUTH.mean()) * risk / (1 - risk))
        assert curve.low[at] <= curve.classifier[at] <= curve.high[at]


def test_honest_probabilities_are_never_worse_than_acting_on_all_or_none_and_perfect_ones_reach_the_prevalence():
    curve = decision_curve(TRUTH, SCORE, WEIGHTS)
    better = np.array(curve.classifier) - np.maximum(curve.act_on_all, 0)
    assert better.min() > -0.02
    perfect = decision_curve(TRUTH, TRUTH.astype(float), WEIGHTS)
    np.testing.assert_allclose(perfect.classifier, TRUTH.mean())


def test_abstention_answers_the_surest_first():
    truth, score = np.array([True, False, True, False]), np.array([0.99, 0.6, 0.45, 0.01])
    found = abstention(truth, score, 0.5)
    assert found.coverage == (0.25, 0.5, 0.75, 1.0)
    assert found.risk == pytest.approx((0, 0, 1 / 3, 1 / 2))
    assert found.area == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert found.table[COVERAGES.index(0.5)] == wilson(0, 2)


def test_answering_less_helps_where_confidence_means_something():
    found = abstention(TRUTH, SCORE, 0.5)
    assert found.table[0].value > found.table[-1].value + 0.1
    shuffled = abstention(RNG.permutation(TRUTH), SCORE, 0.5)
    assert shuffled.table[0].value == pytest.approx(shuffled.table[-1].value, abs=0.1)
