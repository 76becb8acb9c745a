"""Fidelity and diversity against independent implementations and against what must hold."""

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torchmetrics.image.kid import poly_mmd

from synthvision.diffusion.fidelity import MIN_IMAGES, MIN_VARIED, kid, measure, prdc, vendi


def cloud(n: int, shift: float = 0.0, seed: int = 0, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, width))


def test_kid_is_the_unbiased_estimate_of_torchmetrics() -> None:
    real, made = cloud(60), cloud(60, 0.5, 1)
    theirs = poly_mmd(torch.from_numpy(real), torch.from_numpy(made))
    assert kid(real, made).value == pytest.approx(float(theirs), rel=1e-9)


def test_kid_s_interval_holds_zero_for_equals_and_not_for_others() -> None:
    holds = [
        estimate.low < 0 < estimate.high
        for estimate in (kid(cloud(80, 0, k), cloud(80, 0, 100 + k)) for k in range(60))
    ]
    assert np.mean(holds) > 0.85
    assert kid(cloud(80), cloud(80, 1.0, 1)).low > 0


def test_the_jackknife_leaves_one_out() -> None:
    real, made = cloud(9), cloud(7, 0.5, 1)
    left = [kid(np.delete(real, k, 0), made).value for k in range(9)]
    more = [kid(real, np.delete(made, k, 0)).value for k in range(7)]
    whole = kid(real, made)
    assert whole.high - whole.value == pytest.approx(1.96 * np.sqrt(8 * np.var(left) + 6 * np.var(more)))


@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_prdc_equals_the_authors_package(shift: float) -> None:
    real, made = cloud(70), cloud(55, shift, 1)
    assert prdc(real, made) == pytest.approx(compute_prdc(real, made, 5))


def test_vendi_counts_what_differs() -> None:
    assert vendi(np.ones((12, 3))) == pytest.approx(1)
    assert vendi(np.eye(12)) == pytest.approx(12)
    assert vendi(np.repeat(np.eye(4), 3, axis=0)) == pytest.approx(4)


def test_each_set_has_its_figures_and_too_few_are_refused(make_manifest) -> None:
    enough = make_manifest(("lesion",), MIN_IMAGES, origin="synthetic", set="face")
    few = make_manifest(("other",), MIN_VARIED - 1, origin="synthetic", set="back")
    real = make_manifest(("real",), MIN_IMAGES)
    found = measure(enough + few, real)
    assert list(found) == ["face", "back"]
    assert found["face"]["n"] == found["face"]["n_real"] == MIN_IMAGES
    assert {"kid", "kid_low", "kid_high", "precision", "recall", "density", "coverage", "vendi"} < set(found["face"])
    assert set(found["back"]) == {"n", "n_real", "no_vendi", "no_fidelity"}
    assert f"{MIN_IMAGES} of each are needed" in str(found["back"]["no_fidelity"])
    assert "kid" not in measure(enough, real.where(split="test"))["face"]
