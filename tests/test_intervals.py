"""Intervals against statsmodels, against the definition, and by their coverage."""

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from synthvision.evaluation.intervals import Z, bootstrap, delong, patient_draws, wilson
from synthvision.evaluation.metrics import roc_auc


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"), [(66, 70, 86.2, 97.8), (70, 70, 94.8, 100.0), (290, 300, 94.0, 98.2)]
)
def test_wilsons_intervals_of_the_papers_figures(successes, n, low, high):
    estimate = wilson(successes, n)
    assert (round(100 * estimate.low, 1), round(100 * estimate.high, 1)) == (low, high)
    assert (estimate.value, estimate.n) == (successes / n, n)


@pytest.mark.parametrize("successes", range(0, 21, 4))
def test_wilson_equals_statsmodels_and_solves_its_equation(successes):
    estimate, n = wilson(successes, 20), 20
    np.testing.assert_allclose(
        (estimate.low, estimate.high), proportion_confint(successes, n, method="wilson"), atol=1e-12
    )
    for limit in (estimate.low, estimate.high):
        assert (estimate.value - limit) ** 2 == pytest.approx(Z**2 * limit * (1 - limit) / n, abs=1e-12)
    assert estimate.low <= estimate.value <= estimate.high


def test_nothing_counted_gives_no_interval():
    assert all(math.isnan(value) for value in (wilson(0, 0).value, wilson(0, 0).low))


def test_delong_equals_the_definition_by_pairs():
    rng = np.random.default_rng(1)
    truth = rng.random(80) < 0.4
    score = np.round(rng.normal(truth, 1.0), 1)  # with ties
    wins = (score[truth][:, None] > score[~truth]) + 0.5 * (score[truth][:, None] == score[~truth])
    variance = wins.mean(1).var(ddof=1) / truth.sum() + wins.mean(0).var(ddof=1) / (~truth).sum()
    estimate = delong(truth, score)
    assert estimate.value == pytest.approx(wins.mean())
    assert estimate.value == pytest.approx(float(roc_auc(truth, score)))
    assert estimate.high - estimate.value == pytest.approx(Z * math.sqrt(variance))
    assert estimate.method == "DeLong"


def test_delong_gives_the_published_figures_of_procs_example():
    """Outcome after aneurysmal haemorrhage by WFNS grade (Robin et al., BMC Bioinformatics 12:77, 2011).

    The published points of the curve fix the counts: good and poor outcomes at grades 1 to 5. The two continuous
    markers of that study are not in this repository, see benchmarks/proc_examples.py.
    """
    grade, good, poor = np.arange(1.0, 6.0), [37, 20, 3, 8, 4], [2, 12, 1, 8, 18]
    truth = np.repeat([False, True], [sum(good), sum(poor)])
    estimate = delong(truth, np.concatenate([np.repeat(grade, good), np.repeat(grade, poor)]))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.8236789, 0.7485349, 0.8988228), abs=5e-8)


def test_delong_covers_the_truth_about_19_times_in_20():
    rng = np.random.default_rng(2)
    true_area, hits = 0.5 * (1 + math.erf(0.5)), 0  # normal scores one standard deviation apart
    truth = np.arange(120) < 60
    for _ in range(400):
        estimate = delong(truth, rng.normal(truth, 1.0))
        hits += estimate.low <= true_area <= estimate.high
    assert 0.91 <= hits / 400 <= 0.985


def test_perfect_separation_is_not_certainty():
    truth = np.arange(40) < 20
    perfect = delong(truth, truth.astype(float))
    assert (perfect.value, perfect.high, perfect.method) == (1.0, 1.0, "Newcombe")
    assert 0.8 < perfect.low < 0.95
    reversed_ = delong(~truth, truth.astype(float))
    assert (reversed_.low, reversed_.high) == pytest.approx((0.0, 1 - perfect.low))
    useless = delong(truth, np.zeros(40))
    assert useless.low == pytest.approx(1 - useless.high)
    assert useless.low < 0.4


def test_one_positive_gives_an_area_and_no_interval():
    estimate = delong(np.array([True, False, False]), np.array([0.5, 0.2, 0.7]))
    assert estimate.value == 0.5
    assert math.isnan(estimate.low)


def test_bootstrap_draws_whole_patients_the_same_for_the_same_seed():
    patients = ["a", "a", "b", "c", "c", "c"]
    drawn = patient_draws(patients, 500, seed=3)
    assert drawn.shape == (500, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, [0, 2, 3]].sum(axis=1) == 3).all()
    np.testing.assert_array_equal(drawn, patient_draws(patients, 500, seed=3))
    assert (drawn != patient_draws(patients, 500, seed=4)).any()


def test_bootstrap_by_patient_is_wider_where_a_patients_images_agree():
    rng = np.random.default_rng(5)
    right = np.repeat(rng.random(40) < 0.8, 5)  # five images of each patient, all right or all wrong
    value = float(right.mean())

    def width(patients: list[str]) -> float:
        drawn = patient_draws(patients, 1000, 0)
        estimate = bootstrap(value, drawn @ right / drawn.sum(axis=1), len(set(patients)))
        return estimate.high - estimate.low

    by_patient, by_image = width([str(n // 5) for n in range(200)]), width([str(n) for n in range(200)])
    assert by_patient / by_image == pytest.approx(math.sqrt(5), rel=0.15)
    assert by_image == pytest.approx(wilson(int(right.sum()), 200).high - wilson(int(right.sum()), 200).low, rel=0.15)


def test_bootstrap_that_says_nothing_has_no_limits():
    assert math.isnan(bootstrap(1.0, np.ones(100), 10).low)
    assert math.isnan(bootstrap(0.5, np.r_[np.full(60, np.nan), np.arange(40.0)], 10).low)
