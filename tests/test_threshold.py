"""Youden's threshold against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from synthvision.classification.threshold import youden_threshold


@pytest.mark.parametrize("seed", range(5))
def test_it_reaches_the_best_index_on_the_roc_curve(seed):
    rng = np.random.default_rng(seed)
    positive = rng.random(80) < 0.4
    probability = np.round(np.clip(0.3 * positive + rng.normal(0.4, 0.2, 80), 0, 1), 2)  # with ties
    cut = youden_threshold(probability, positive)
    said = probability >= cut
    index = said[positive].mean() + (~said)[~positive].mean() - 1
    false, true, _ = roc_curve(positive, probability)
    assert index == pytest.approx((true - false).max())


def test_separated_classes_are_cut_halfway():
    assert youden_threshold(np.array([0.1, 0.3, 0.9, 0.7]), np.array([False, False, True, True])) == pytest.approx(0.5)


def test_among_ties_the_middle_one_is_taken():
    # Cuts at 0.2, 0.4 and 0.6 are equally good.
    probability = np.array([0.1, 0.3, 0.3, 0.5, 0.5, 0.7])
    positive = np.array([False, True, False, True, False, True])
    assert youden_threshold(probability, positive) == pytest.approx(0.4)


def test_equal_probabilities_still_give_a_threshold():
    assert 0 <= youden_threshold(np.full(4, 0.5), np.array([True, False, True, False])) <= 1


@pytest.mark.parametrize("truth", [True, False])
def test_one_class_alone_is_refused(truth):
    with pytest.raises(ValueError, match="positives and negatives"):
        youden_threshold(np.array([0.1, 0.9]), np.array([truth, truth]))
