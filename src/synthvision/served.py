"""The classifier as MLflow serves it: `mlflow.pyfunc.load_model` calls `_load_pyfunc` with the weights folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synthvision.classification.apply import Application

BATCH = 32
DECISION, CALIBRATED, FOREIGN, QUALITY = "decision", "calibrated", "foreign", "quality"  # columns beside the classes


@dataclass(frozen=True)
class ServedClassifier:
    """Answers a batch of images with a probability per class. Research use; not a medical device."""

    application: Application

    def predict(self, model_input: NDArray[np.uint8], params: Any = None) -> pd.DataFrame:  # noqa: ARG002  # MLflow's
        """Return one row per image: a probability per class, then what the folder's threshold and checks say of it.

        Args:
            model_input: uint8 (N, H, W, 3); cut to a square and resized as in training.
            params: none are known.
        """
        images = list(np.asarray(model_input, dtype=np.uint8))
        parts = [self._rows(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        return pd.concat(parts, ignore_index=True)

    def _rows(self, images: list[NDArray[np.uint8]]) -> pd.DataFrame:
        answer, classes = self.application.answer(images), self.application.model.classes
        rows = pd.DataFrame(answer.probability, columns=list(classes))
        rows[DECISION] = list(answer.called)
        rows[CALIBRATED] = answer.calibrated[:, 0]
        rows[FOREIGN] = list(answer.foreign)
        rows[QUALITY] = list(answer.faults)
        return rows


def _load_pyfunc(data_path: str) -> ServedClassifier:
    """Read a classifier's folder: safetensors and JSON, nothing is unpickled."""
    return ServedClassifier(Application.load(Path(data_path)))
