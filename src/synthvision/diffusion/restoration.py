"""How close large pictures are to the true ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from synthvision.data.images import Pixels


def psnr(made: Pixels, true: Pixels) -> NDArray[np.float64]:
    """Return each picture's peak signal-to-noise ratio in dB, float64 (N,), for uint8 (N, H, W, 3)."""
    error = np.square(made.astype(np.float64) - true).mean((1, 2, 3))
    with np.errstate(divide="ignore"):  # equal pictures: infinite
        ratio: NDArray[np.float64] = 10 * np.log10(255**2 / error)
    return ratio


def ssim(made: Pixels, true: Pixels) -> NDArray[np.float64]:
    """Return each picture's structural similarity [Wang 2004], float64 (N,), at most 1."""
    a, b = (torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255 for images in (made, true))
    similarity = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    values: NDArray[np.float64] = torch.as_tensor(similarity).reshape(len(made)).numpy()
    return values


def colour_shift(made: Pixels, true: Pixels) -> NDArray[np.float64]:
    """Return the distance of each picture's mean colour from the true one's in grey levels of RGB, float64 (N,)."""
    distance: NDArray[np.float64] = np.linalg.norm(made.mean((1, 2)) - true.mean((1, 2)), axis=1)
    return distance


def closeness(made: Pixels, true: Pixels) -> dict[str, NDArray[np.float64]]:
    """Return all three, by name."""
    return {"psnr": psnr(made, true), "ssim": ssim(made, true), "colour_shift": colour_shift(made, true)}
