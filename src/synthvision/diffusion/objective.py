"""What the UNet is trained towards: noising, targets, weights and DreamBooth's loss, as pure functions.

Symbols are those of the papers: x_t = alpha_t * x_0 + sigma_t * noise, with alpha_t^2 = the cumulative alpha and
sigma_t^2 = 1 - alpha_t^2 [Ho 2020]; v = alpha_t * noise - sigma_t * x_0 [Salimans & Ho 2022]. All arithmetic is done in
the schedule's dtype, float32 or wider: in bf16 sigma is exactly zero at some timesteps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Noised:
    """One step's question and answer: `x_t` and `target` are (B, C, h, w), `t` is int64 (B,)."""

    x_t: Tensor
    target: Tensor
    t: Tensor


@dataclass(frozen=True)
class Losses:
    """Scalars: `total` is what is minimised; `instance` and `prior` are its parts before the prior's weight."""

    total: Tensor
    instance: Tensor
    prior: Tensor


def check_schedule(alphas_cumprod: Tensor, prediction_type: str) -> None:
    """Refuse a schedule that cannot be trained.

    Raises:
        ValueError: an unknown prediction type, or epsilon prediction from pure noise, which says nothing of x_0.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"the scheduler's prediction_type must be one of {PREDICTION_TYPES}; it is {prediction_type!r}"
        )
    if prediction_type == "epsilon" and alphas_cumprod[-1] <= 0:
        raise ValueError("a scheduler with zero terminal SNR needs prediction_type v_prediction; it is 'epsilon'")


def add_noise(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return x_t for latents and noise (B, C, h, w) at timesteps int64 (B,)."""
    alpha, sigma = _coefficients(t, alphas_cumprod)
    return alpha * x_0 + sigma * noise


def offset_noise(noise: Tensor, offset: Tensor, strength: float) -> Tensor:
    """Return noise (B, C, h, w) plus one value per picture and channel, (B, C), so that brightness is learnt too.

    Plain noise leaves a picture's mean nearly untouched; a model trained on it alone paints no very dark or very pale
    skin.
    """
    return noise + strength * offset[:, :, None, None]


def lesion_weights(mask: Tensor, share: float) -> Tensor:
    """Return each latent cell's weight, mean 1 per picture, from how much of it is lesion: float (B, 1, h, w).

    The mean of weighted errors is (1 - share) times the picture's mean error plus `share` times the lesion's own: that
    is divided by the lesion's area, or small lesions would starve. A picture whose mask is empty counts evenly.

    Args:
        mask: in [0, 1], 1 where all of the cell is lesion; all zero for a picture without a mask.
        share: in [0, 1].
    """
    area = mask.mean(dim=(1, 2, 3), keepdim=True)
    return torch.where(area > 0, (1 - share) + share * mask / area.clamp(min=torch.finfo(mask.dtype).tiny), 1.0)


def target_of(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Return what the UNet should say: the noise itself, or v; (B, C, h, w)."""
    if prediction_type == "epsilon":
        return noise
    alpha, sigma = _coefficients(t, alphas_cumprod)
    return alpha * noise - sigma * x_0


def noised(x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor, prediction_type: str) -> Noised:
    """Return x_t and its target; see `add_noise` and `target_of`."""
    x_t = add_noise(x_0, noise, t, alphas_cumprod)
    return Noised(x_t, target_of(x_0, noise, t, alphas_cumprod, prediction_type), t)


def snr(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Return the signal-to-noise ratio alpha_t^2 / sigma_t^2 at timesteps (B,); zero at zero terminal SNR."""
    alpha_squared = alphas_cumprod[t]
    return alpha_squared / (1 - alpha_squared)


def min_snr_weight(t: Tensor, alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """Return the min-SNR-gamma weight of each sample's loss [Hang 2023], float (B,).

    In terms of x_0 the weight is min(snr, gamma). The loss on epsilon already carries a factor snr, that on v snr + 1.
    """
    ratio = snr(t, alphas_cumprod)
    if prediction_type == "epsilon":
        return (gamma / ratio).clamp(max=1)
    return ratio.clamp(max=gamma) / (ratio + 1)


def dreambooth_loss(
    prediction: Tensor,
    target: Tensor,
    n_instance: int,
    prior_weight: float,
    weights: Tensor | None = None,
    cells: Tensor | None = None,
) -> Losses:
    """Return the mean squared error of the instance half plus `prior_weight` times that of the class half.

    Args:
        prediction: (B, C, h, w), the first `n_instance` of them from guides, the others from class images.
        target: same shape.
        n_instance: how many samples are guides; with no others the prior is zero.
        prior_weight: lambda in the DreamBooth paper.
        weights: float (B,), per sample, for both halves; None is all ones.
        cells: float (B, 1, h, w), see `lesion_weights`; None is all ones.
    """
    squared = (prediction.float() - target.float()).square()
    errors = (squared if cells is None else squared * cells).mean(dim=(1, 2, 3))  # (B,)
    if weights is not None:
        errors = errors * weights
    instance = errors[:n_instance].mean()
    prior = errors[n_instance:].mean() if len(errors) > n_instance else torch.zeros_like(instance)
    return Losses(instance + prior_weight * prior, instance, prior)


def _coefficients(t: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    alpha_squared = alphas_cumprod[t].reshape(-1, 1, 1, 1)
    return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()
