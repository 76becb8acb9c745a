"""The threshold: where it must lie by hand, steadier than Youden's, and blind to how frequent the disease is."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import balanced_accuracy_score, roc_curve

from synthvision.classification.threshold import RULES, ThresholdConfig, balanced_threshold, thresholds_by_rule


def scores(rng, images):
    """Return probabilities and truth of a classifier whose best threshold is expit(1), about 0.73."""
    positive = rng.random(images) < 0.5
    return expit(rng.normal(np.where(positive, 3.0, -1.0), 1.5)), positive


def test_symmetric_classes_are_cut_halfway():
    probability, positive = np.array([0.1, 0.3, 0.9, 0.7]), np.array([False, False, True, True])
    assert balanced_threshold(probability, positive) == pytest.approx(0.5)


def test_it_finds_where_both_classes_are_equally_likely():
    assert balanced_threshold(*scores(np.random.default_rng(0), 20_000)) == pytest.approx(expit(1.0), abs=0.01)


def test_the_share_of_positives_does_not_move_it():
    probability, positive = scores(np.random.default_rng(1), 20_000)
    kept = ~positive | (np.random.default_rng(2).random(20_000) < 0.1)
    assert balanced_threshold(probability[kept], positive[kept]) == pytest.approx(expit(1.0), abs=0.03)


def test_on_few_images_it_is_better_than_youdens():
    unseen, truth = scores(np.random.default_rng(3), 20_000)
    ours, youdens = [], []
    for seed in range(40):
        probability, positive = scores(np.random.default_rng([4, seed]), 100)
        false, true, cuts = roc_curve(positive, probability)
        for found, cut in ((ours, balanced_threshold(probability, positive)), (youdens, cuts[(true - false).argmax()])):
            found.append(balanced_accuracy_score(truth, unseen >= cut))
    assert np.mean(ours) > np.mean(youdens)
    assert np.min(ours) > np.min(youdens)


@pytest.mark.parametrize("probability", [np.full(4, 0.5), np.array([0.1, 0.9, 0.2, 0.8])])
def test_a_useless_classifier_is_cut_at_one_half(probability):
    assert balanced_threshold(probability, np.array([True, False, True, False])) == 0.5


def test_certain_probabilities_are_borne():
    assert 0 < balanced_threshold(np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, False, True, True])) < 1


@pytest.mark.parametrize("truth", [True, False])
def test_one_class_alone_is_refused(truth):
    with pytest.raises(ValueError, match="positives and negatives"):
        balanced_threshold(np.array([0.1, 0.9]), np.array([truth, truth]))


def rates(probability, positive, threshold):
    called = probability >= threshold
    return called[positive].mean(), (~called[~positive]).mean()


@pytest.mark.parametrize("seed", range(8))
def test_every_rule_keeps_its_word_on_the_images_it_was_chosen_on(seed):
    probability, positive = scores(np.random.default_rng([5, seed]), 120)
    probability = probability.round(2)  # ties
    config = ThresholdConfig(sensitivity=0.9, specificity=0.8, miss_cost=4, prevalence=0.3)
    found = thresholds_by_rule(probability, positive, config)
    assert set(found) == set(RULES)
    assert found["logistic"] == balanced_threshold(probability, positive)
    sensitivity, specificity = rates(probability, positive, found["sensitivity"])
    assert sensitivity >= 0.9
    higher = probability[probability >= found["sensitivity"]].min() + 1e-9  # one more image is called normal
    assert rates(probability, positive, higher)[0] < 0.9
    assert rates(probability, positive, found["specificity"])[1] >= 0.8
    lower = probability[probability < found["specificity"]].max()  # one more image is called positive
    assert rates(probability, positive, lower)[1] < 0.8
    false, true, _ = roc_curve(positive, probability, drop_intermediate=False)
    assert sum(rates(probability, positive, found["youden"])) == pytest.approx((true - false).max() + 1)
    cost = 0.3 * 4 * (1 - true) + 0.7 * false
    sensitivity, specificity = rates(probability, positive, found["cost"])
    assert 0.3 * 4 * (1 - sensitivity) + 0.7 * (1 - specificity) == pytest.approx(cost.min())


def test_a_miss_that_costs_more_lowers_the_threshold():
    probability, positive = scores(np.random.default_rng(6), 500)
    cuts = [thresholds_by_rule(probability, positive, ThresholdConfig(miss_cost=c))["cost"] for c in (1, 5, 50)]
    assert cuts == sorted(cuts, reverse=True)
    assert cuts[0] > cuts[-1]


def test_thresholds_of_certain_scores_stay_probabilities():
    found = thresholds_by_rule(np.array([0.0, 1.0, 1.0]), np.array([False, False, True]), ThresholdConfig())
    assert all(0 <= value <= 1 for value in found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "best"}, "threshold.rule must be one of .*'best'"),
        ({"sensitivity": 0.0}, r"threshold.sensitivity must be in \(0, 1\]; it is 0.0"),
        ({"prevalence": 1.0}, r"threshold.prevalence must be in \(0, 1\); it is 1.0"),
        ({"prevalence": 0.0}, "threshold.prevalence"),
        ({"miss_cost": -1.0}, "threshold.miss_cost must be above 0"),
    ],
)
def test_broken_rules_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ThresholdConfig(**changes)
