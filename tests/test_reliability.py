"""Calibration against torchmetrics and scikit-learn, and on probabilities whose honesty is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from synthvision.evaluation.intervals import patient_draws
from synthvision.evaluation.reliability import BINS, expected_error, reliability

RNG = np.random.default_rng(0)
SCORE = RNG.random(400)
TRUTH = RNG.random(400) < SCORE  # honest
PATIENTS = [str(n // 2) for n in range(400)]
WEIGHTS = patient_draws(PATIENTS, 300, 0)


def test_the_errors_are_those_of_torchmetrics_and_scikit_learn():
    found = reliability(TRUTH, SCORE, 1.0, WEIGHTS, 200)
    theirs = binary_calibration_error(torch.from_numpy(SCORE), torch.from_numpy(TRUTH).long(), n_bins=BINS)
    assert found.ece.value == pytest.approx(float(theirs), abs=1e-6)
    assert found.brier.value == pytest.approx(brier_score_loss(TRUTH, SCORE))
    assert found.excess.value == pytest.approx(SCORE.mean() - TRUTH.mean())
    assert found.brier.low < found.brier.value < found.brier.high


def test_weights_count_images_as_often_as_they_are_drawn():
    counts = RNG.integers(0, 3, 400)
    again = np.repeat(np.arange(400), counts)
    direct = expected_error(TRUTH[again], SCORE[again], np.ones((1, len(again))))
    np.testing.assert_allclose(expected_error(TRUTH, SCORE, counts[None].astype(float)), direct)


def test_the_diagram_of_honest_probabilities_holds_the_diagonal_and_that_of_sure_ones_does_not():
    bins = reliability(TRUTH, SCORE, 1.0, WEIGHTS, 200).bins
    assert sum(each.came_true.n for each in bins) == 400
    assert sum(each.came_true.low <= each.said <= each.came_true.high for each in bins) >= len(bins) - 1
    sure = SCORE**3 / (SCORE**3 + (1 - SCORE) ** 3)
    found = reliability(TRUTH, sure, 1.0, WEIGHTS, 200)
    assert sum(each.came_true.low <= each.said <= each.came_true.high for each in found.bins) <= len(bins) - 4
    assert found.ece.low > reliability(TRUTH, SCORE, 1.0, WEIGHTS, 200).ece.value


def test_few_images_make_few_bins():
    weights = np.ones((5, 15))
    assert len(reliability(TRUTH[:15], SCORE[:15], 1.0, weights, 15).bins) == 1
