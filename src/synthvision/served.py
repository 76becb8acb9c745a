"""The classifier as MLflow serves it: `mlflow.pyfunc.load_model` calls `_load_pyfunc` with the weights folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synthvision.classification.predict import TrainedModel, load_classifier
from synthvision.data.images import fit

BATCH = 32


@dataclass(frozen=True)
class ServedClassifier:
    """Answers a batch of images with a probability per class. Research use; not a medical device."""

    model: TrainedModel

    def predict(self, model_input: NDArray[np.uint8], params: Any = None) -> pd.DataFrame:  # noqa: ARG002  # MLflow's
        """Return one row per image and one column per class.

        Args:
            model_input: uint8 (N, H, W, 3); cut to a square and resized as in training.
            params: none are known.
        """
        side = self.model.config.image_size
        images = np.stack([fit(image, side) for image in np.asarray(model_input, dtype=np.uint8)])
        parts = [self.model.probabilities(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return pd.DataFrame(np.concatenate(parts), columns=list(self.model.classes))


def _load_pyfunc(data_path: str) -> ServedClassifier:
    """Read a classifier's folder: safetensors and JSON, nothing is unpickled."""
    return ServedClassifier(load_classifier(Path(data_path)))
