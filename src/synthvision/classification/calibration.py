"""Temperature scaling (Guo et al., ICML 2017): one number, fitted on validation, that makes confidence honest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

Floats = NDArray[np.float64]
TINY = 1e-12  # probabilities are read no closer to 0 than this
RANGE = (0.05, 20.0)  # of temperatures: a perfect validation set asks for 0, a useless classifier for infinity


def at_temperature(probability: Floats, temperature: float) -> Floats:
    """Return softmax(logits / temperature), whose logits gave `probability` (N, C) at temperature 1.

    Logits are known but for a constant per row, which softmax does not mind. The order of the classes never changes.
    """
    scaled: Floats = softmax(np.log(np.maximum(probability, TINY)) / temperature, axis=1)
    return scaled


def log_loss(probability: Floats, truth: NDArray[np.int64], temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the true classes (N,) at a temperature."""
    log_p = log_softmax(np.log(np.maximum(probability, TINY)) / temperature, axis=1)
    return float(-log_p[np.arange(len(truth)), truth].mean())


def fit_temperature(probability: Floats, truth: NDArray[np.int64]) -> float:
    """Return the temperature of least log-loss; above 1 where the classifier is too sure of itself.

    Args:
        probability: float64 (N, C), rows sum to 1.
        truth: int64 (N,), indices of the true classes.

    Raises:
        ValueError: there is no image.
    """
    if not len(truth):
        raise ValueError("a temperature needs validation images; there are none")
    found = minimize_scalar(
        lambda log_t: log_loss(probability, truth, float(np.exp(log_t))), bounds=np.log(RANGE), method="bounded"
    )
    return float(np.exp(found.x))
