"""Comparing arms: against definitions and scipy, by their error rates, and what a test set can show at all."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp

from synthvision.evaluation.comparison import (
    ArmRuns,
    Difference,
    Truth,
    bootstrap_p,
    delong_paired,
    differences,
    mcnemar_p,
    mean_over_seeds,
    measure,
    smallest_difference,
)
from synthvision.evaluation.intervals import delong
from synthvision.evaluation.metrics import roc_auc

N = 200
TRUTH = np.arange(N) < N // 2
TRUTHS = [Truth(TRUTH, tuple(str(n // 2) for n in range(N)))] * 3


def arm(rng: np.random.Generator, shift: float, seeds: int = 3, base: np.ndarray | None = None) -> ArmRuns:
    """Return runs whose scores separate the classes by `shift`; runs of arms share what is hard in an image."""
    hard = np.zeros(N) if base is None else base
    score = rng.normal(np.where(TRUTH, shift, -shift) + hard, 0.7, (seeds, N))
    return ArmRuns(list(score > 0), list(1 / (1 + np.exp(-score))))


def compared(arms: dict[str, ArmRuns], baseline: str, truths: list[Truth], draws: int) -> tuple[Difference, ...]:
    return differences(arms, baseline, truths, measure(arms, truths, draws))


def test_mcnemar_is_a_binomial_test_of_the_images_on_which_both_differ():
    rng = np.random.default_rng(0)
    a, b = rng.random(80) < 0.9, rng.random(80) < 0.75
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert mcnemar_p(a, b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)


def test_paired_delong_equals_the_definition_by_pairs():
    rng = np.random.default_rng(1)
    first, second = (np.round(rng.normal(TRUTH, 1.0), 1) for _ in range(2))

    def wins(score):
        return (score[TRUTH][:, None] > score[~TRUTH]) + 0.5 * (score[TRUTH][:, None] == score[~TRUTH])

    components = [(wins(s).mean(1), wins(s).mean(0)) for s in (first, second)]
    across = np.cov(components[0][0], components[1][0]) / TRUTH.sum()
    down = np.cov(components[0][1], components[1][1]) / (~TRUTH).sum()
    variance = (across + down)[0, 0] + (across + down)[1, 1] - 2 * (across + down)[0, 1]
    estimate, p = delong_paired(TRUTH, first, second)
    assert estimate.value == pytest.approx(float(roc_auc(TRUTH, first) - roc_auc(TRUTH, second)))
    assert estimate.high - estimate.value == pytest.approx(1.959964 * math.sqrt(variance))
    assert p == pytest.approx(math.erfc(abs(estimate.value) / math.sqrt(2 * variance)))
    assert delong_paired(TRUTH, first, first)[1] == 1.0


def test_delong_gives_what_proc_gives():
    """Against pROC 1.18 (R 4.2): `ci.auc` and `roc.test` on a table with many ties that a rule makes in both languages.

    i <- 0:59; truth <- i %% 3 == 0; a <- (7*i) %% 11 + 3*truth; b <- (5*i*i) %% 13 + 2*truth
    """
    i = np.arange(60)
    truth = i % 3 == 0
    a, b = ((7 * i) % 11 + 3.0 * truth), ((5 * i * i) % 13 + 2.0 * truth)
    for score, published in (
        (a, (0.7725, 0.64977175546, 0.89522824454)),
        (b, (0.64875, 0.495246591231, 0.802253408769)),
    ):
        alone = delong(truth, score)
        assert (alone.value, alone.low, alone.high) == pytest.approx(published, abs=1e-10)
    estimate, p = delong_paired(truth, a, b)
    assert (estimate.low, estimate.high, p) == pytest.approx((-0.0649472587989, 0.3124472587989, 0.198663487), abs=1e-9)


def test_a_better_arm_is_found_better_and_an_equal_one_is_not():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 0.5, N)
    arms = {"base": arm(rng, 0.6, base=hard), "same": arm(rng, 0.6, base=hard), "better": arm(rng, 1.6, base=hard)}
    same, better = compared(arms, "base", TRUTHS, 2000)
    assert (same.arm, better.arm) == ("same", "better")
    assert better.accuracy.low > 0
    assert better.p_adjusted < 0.01
    assert same.accuracy.low < 0 < same.accuracy.high
    assert max(better.mcnemar) < 0.05
    right = {name: (np.stack(runs.called) == TRUTH).mean() for name, runs in arms.items()}
    assert better.accuracy.value == pytest.approx(right["better"] - right["base"])
    assert better.detectable < better.accuracy.value
    assert len(better.delong) == 3


def test_holm_makes_p_larger_the_more_arms_are_compared():
    rng = np.random.default_rng(3)
    arms = {"base": arm(rng, 0.6)} | {f"a{n}": arm(rng, 0.9) for n in range(4)}
    alone = compared({name: arms[name] for name in ("base", "a0")}, "base", TRUTHS, 500)[0]
    among = compared(arms, "base", TRUTHS, 500)[0]
    assert alone.p == alone.p_adjusted == among.p
    assert among.p_adjusted >= among.p


def test_equal_arms_are_called_different_about_one_time_in_twenty():
    rng, called = np.random.default_rng(4), 0
    for _ in range(60):
        hard = rng.normal(0, 0.5, N)
        arms = {"a": arm(rng, 0.7, 1, hard), "b": arm(rng, 0.7, 1, hard)}
        called += compared(arms, "a", [Truth(TRUTH, tuple(str(n) for n in range(N)))], 400)[0].p < 0.05
    assert called <= 8


OWN = [Truth(TRUTH, tuple(f"{seed} {n}" for n in range(N))) for seed in range(5)]
SHARED = [Truth(TRUTH, tuple(str(n) for n in range(N)))] * 5


def test_seeds_with_patients_of_their_own_are_tested_by_students_t():
    rng = np.random.default_rng(7)
    arms = {name: arm(rng, shift, 5) for name, shift in (("a", 0.6), ("b", 0.8))}
    found = compared(arms, "a", OWN, 50)[0]
    change = [(np.stack(runs.called) == TRUTH).mean(1) for runs in (arms["b"], arms["a"])]
    expected = ttest_1samp(change[0] - change[1], 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.accuracy.n == 5 * N


def test_seeds_that_share_their_patients_tell_no_more_than_these_do():
    """Training that makes no difference leaves the standard error of one test set, however many seeds there are."""
    hard = np.random.default_rng(7).random(N) < 0.2
    arms = {"a": ArmRuns([TRUTH ^ hard] * 5, [np.zeros(N)] * 5), "b": ArmRuns([TRUTH] * 5, [np.zeros(N)] * 5)}
    found = compared(arms, "a", SHARED, 4000)[0].accuracy
    share = hard.mean()
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(math.sqrt(share * (1 - share) / N), rel=0.06)
    assert found.n == N


@pytest.mark.parametrize("truths", [OWN, SHARED], ids=["patients of their own", "patients shared"])
@pytest.mark.parametrize("training", [0.0, 1.0, 4.0])
def test_equal_arms_of_five_seeds_are_called_different_one_time_in_twenty(truths, training):
    """Whether chance is in the training or in the patients, whose standard error for one seed is 1."""
    rng, repeats = np.random.default_rng(11), 1000
    called = 0
    for _ in range(repeats):
        patients = rng.normal(size=1 if truths is SHARED else 5)
        change = patients + training * rng.normal(size=5)
        anew = rng.normal(size=(200, len(patients)))  # what a bootstrap of these patients draws
        called += mean_over_seeds(change, change + anew, truths)[1] < 0.05
    assert 0.03 < called / repeats < 0.07


def test_the_smallest_difference_is_shown_four_times_in_five():
    rng, n, discordant = np.random.default_rng(5), 400, 0.15
    smallest = smallest_difference(n, discordant)
    shown = 0
    for _ in range(400):
        both = rng.binomial(n, discordant)
        wins = rng.binomial(both, 0.5 + smallest / discordant / 2)
        z = (2 * wins - both) / math.sqrt(both)
        shown += z > 1.959964
    assert shown / 400 == pytest.approx(0.8, abs=0.07)


def test_few_images_show_nothing_smaller_than_six_discordant_ones():
    assert smallest_difference(140, 0.0) == pytest.approx(6 / 140)  # 4.3 points, on the HPV paper's test set
    assert smallest_difference(140, 0.1) > 6 / 140
    assert smallest_difference(10_000, 0.1) < smallest_difference(140, 0.1)


def test_no_draw_on_the_other_side_is_not_a_p_of_zero():
    assert bootstrap_p(np.ones(99)) == pytest.approx(0.02)
    assert bootstrap_p(np.zeros(99)) == 1.0


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(6)
    with pytest.raises(ValueError, match="baseline must be one of"):
        compared({"a": arm(rng, 1)}, "b", TRUTHS, 10)
    with pytest.raises(ValueError, match=r"arm a has \[200, 200, 200\] test images, by seed; there are \[200, 200\]"):
        compared({"a": arm(rng, 1)}, "a", TRUTHS[1:], 10)
    with pytest.raises(ValueError, match=r"must be \(images,\) each"):
        ArmRuns([], [])
    with pytest.raises(ValueError, match=r"must be \(images,\) each"):
        ArmRuns([np.zeros(3, dtype=bool)], [np.zeros(4)])
    with pytest.raises(ValueError, match="each image needs a patient"):
        Truth(TRUTH, ("a",))
