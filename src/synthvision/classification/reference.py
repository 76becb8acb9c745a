"""What the classifier's training images look like: by this an image of another kind is told, and one that shows little.

Only a mean, a covariance and ranges are kept: no training image can be read back from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from sklearn.covariance import LedoitWolf

from synthvision.artifact import write_bytes
from synthvision.classification.explain import BATCH, embed
from synthvision.classification.predict import TrainedModel
from synthvision.data.images import Pixels

REFERENCE_FILE = "reference.safetensors"
LEVEL = 0.99  # share of validation images that count as of the same kind
MARGIN = 0.1  # share of the range of quality by which an image may lie outside of it
QUALITIES = (("too dark", "too bright"), ("too little contrast", "too much contrast"), ("blurred", "noisy"))
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """The distribution of training images' embeddings, and the range of their quality."""

    mean: Floats  # (D,)
    precision: Floats  # (D, D)
    limit: float  # on the distance: LEVEL of the validation images lie below
    low: Floats  # (3,) of brightness, contrast and sharpness
    high: Floats

    def distances(self, vectors: Floats) -> Floats:
        """Return Mahalanobis' distance of each embedding (N, D) from the training images."""
        away = vectors - self.mean
        return np.asarray(np.sqrt(np.einsum("nd,de,ne->n", away, self.precision, away).clip(0)), dtype=np.float64)

    def faults(self, images: Pixels) -> list[str]:
        """Return for each of uint8 (N, S, S, 3) what is wrong with its quality, empty for nothing."""
        values = quality(images)
        return [
            "; ".join(
                names[int(value > high)]
                for names, value, low, high in zip(QUALITIES, row, self.low, self.high, strict=True)
                if not low <= value <= high
            )
            for row in values
        ]


def fit_reference(model: TrainedModel, train: Pixels, val: Pixels) -> Reference:
    """Return the reference of a classifier's training images, its limits from validation; both uint8 (N, S, S, 3)."""
    fitted = LedoitWolf().fit(embed_images(model, train))
    seen = np.concatenate([quality(part) for part in (train, val)])
    spare = MARGIN * np.ptp(seen, axis=0)
    found = Reference(fitted.location_, fitted.precision_, 0.0, seen.min(0) - spare, seen.max(0) + spare)
    limit = float(np.quantile(found.distances(embed_images(model, val)), LEVEL))
    return Reference(found.mean, found.precision, limit, found.low, found.high)


def quality(images: Pixels) -> Floats:
    """Return brightness, contrast and sharpness (log variance of the Laplacian) of uint8 (N, S, S, 3), (N, 3)."""
    grey = images.mean(3) / 255.0
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    edges = around - 4 * grey[:, 1:-1, 1:-1]
    return np.stack([grey.mean((1, 2)), grey.std((1, 2)), np.log(edges.var((1, 2)) + 1e-8)], axis=1)


def write_reference(reference: Reference, folder: Path) -> None:
    """Write the reference beside a classifier's weights."""
    arrays = {name: np.asarray(value, dtype=np.float64) for name, value in vars(reference).items()}
    write_bytes(folder / REFERENCE_FILE, save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))


def read_reference(folder: Path) -> Reference:
    """Read what `write_reference` wrote.

    Raises:
        FileNotFoundError: the folder has none.
    """
    file = folder / REFERENCE_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {REFERENCE_FILE}; run stage=classify again")
    arrays = load_file(file)
    mean, precision, limit, low, high = (arrays[name] for name in ("mean", "precision", "limit", "low", "high"))
    return Reference(mean, precision, float(limit.item()), low, high)


def embed_images(model: TrainedModel, images: Pixels) -> Floats:
    """Return the embeddings (N, D) of uint8 (N, S, S, 3)."""
    device = next(model.network.parameters()).device
    parts = [torch.from_numpy(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    return np.concatenate([embed(model.network, part.to(device).permute(0, 3, 1, 2).float() / 255) for part in parts])
