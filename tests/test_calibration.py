"""Temperature scaling: it finds a known temperature, never changes a decision, and minimises the log-loss."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics as sk

from synthvision.classification.calibration import at_temperature, fit_temperature, log_loss


def drawn(temperature: float, images: int = 20_000, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are too sure by a temperature, and labels drawn from the honest ones."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (images, classes))
    honest = softmax(logits, axis=1)
    truth = (honest.cumsum(1) > rng.random((images, 1))).argmax(1)
    return softmax(logits * temperature, axis=1), truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_finds_the_temperature_by_which_a_classifier_is_too_sure(temperature):
    probability, truth = drawn(temperature)
    assert fit_temperature(probability, truth) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_a_smaller_loss():
    probability, truth = drawn(2.0, images=300)
    best = fit_temperature(probability, truth)
    assert all(
        log_loss(probability, truth, best) <= log_loss(probability, truth, best * f) for f in (0.9, 0.99, 1.01, 1.1)
    )


def test_the_loss_is_that_of_scikit_learn_and_temperature_one_changes_nothing():
    probability, truth = drawn(1.0, images=200)
    assert log_loss(probability, truth) == pytest.approx(sk.log_loss(truth, probability))
    np.testing.assert_allclose(at_temperature(probability, 1.0), probability, atol=1e-12)


def test_the_order_of_classes_never_changes():
    probability, _ = drawn(1.0, images=200)
    for temperature in (0.3, 4.0):
        scaled = at_temperature(probability, temperature)
        assert (scaled.argsort(1) == probability.argsort(1)).all()
        np.testing.assert_allclose(scaled.sum(1), 1)


def test_perfect_and_certain_validation_gives_a_usable_number():
    probability = np.array([[1.0, 0.0], [0.0, 1.0]])
    temperature = fit_temperature(probability, np.array([0, 1]))
    assert np.isfinite(at_temperature(probability, temperature)).all()


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="validation images; there are none"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, dtype=np.int64))
