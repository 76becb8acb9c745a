"""A trained classifier's folder: written once, read by everything that predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthvision.artifact import write_json
from synthvision.classification.model import WEIGHTS_FILE, ModelConfig, as_input, build, load_weights, save_weights
from synthvision.data.images import load_batch
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions

MODEL_FILE = "model.json"


@dataclass(frozen=True)
class TrainedModel:
    """A network in evaluation mode with all that is needed to use it; the first class is the positive one."""

    network: nn.Module
    config: ModelConfig
    classes: tuple[str, ...]
    threshold: float  # on the probability of the positive class
    epoch: int  # after which the weights were taken, from 0
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of every rule, for the table of operating points
    temperature: float = 1.0  # that makes validation probabilities honest; see calibration.py

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return float64 (N, C) for uint8 images (N, S, S, 3), in fp32 on the network's device, in one batch."""
        device = next(self.network.parameters()).device
        pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255  # (N, 3, S, S)
        with torch.inference_mode():
            logits: Tensor = self.network(as_input(pixels, self.network))
        return np.asarray(logits.double().softmax(1).cpu().numpy(), dtype=np.float64)

    def predict(self, manifest: Manifest, batch_size: int) -> Predictions:
        """Return what the network says of every image of a manifest, in the manifest's order.

        Raises:
            ValueError: the manifest is empty, or a label is not one of the classes.
        """
        if not len(manifest):
            raise ValueError("nothing to predict: the manifest is empty; check the split and the arm")
        size = self.config.image_size
        parts = [self.probabilities(load_batch(part, size)) for part in _parts(manifest, batch_size)]
        ids, labels = tuple(manifest.column("image_id")), tuple(manifest.column("label"))
        return Predictions(ids, labels, self.classes, np.concatenate(parts))


def save_classifier(model: TrainedModel, training: Mapping[str, Any], folder: Path) -> None:
    """Write `model.safetensors` (fp32) and `model.json`; `training` is how it was trained, for the record."""
    save_weights(model.network, folder, half=False)
    description = {
        "model": asdict(replace(model.config, weights=None)),
        "classes": model.classes,
        "positive": model.classes[0],
        "threshold": model.threshold,
        "thresholds": model.thresholds,
        "temperature": model.temperature,
        "epoch": model.epoch,
        "training": training,
    }
    write_json(folder / MODEL_FILE, description)


def load_classifier(folder: Path) -> TrainedModel:
    """Read a folder written by `save_classifier`.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: the weights do not fit the description.
    """
    for name in (MODEL_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no classifier: it has no {name}; run stage=classify first")
    description = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    config, classes = ModelConfig(**description["model"]), tuple(description["classes"])
    network = read_network(config, len(classes), folder / WEIGHTS_FILE)
    fields = {name: description[name] for name in ("threshold", "epoch", "thresholds", "temperature")}
    return TrainedModel(network, config, classes, **fields)


def read_network(config: ModelConfig, classes: int, file: Path) -> nn.Module:
    """Return a network in evaluation mode with all its weights from `file`, which `save_weights` wrote.

    Raises:
        ValueError: the weights do not fit.
    """
    with torch.random.fork_rng([]):  # initial weights are drawn and at once replaced; leave no trace of it
        network = build(replace(config, weights=None), classes)
    load_weights(network, file)
    return network.eval()


def predict(folder: Path, manifest: Manifest, batch_size: int) -> Predictions:
    """Return what the classifier in `folder` says of a manifest; see `load_classifier` and `TrainedModel.predict`."""
    return load_classifier(folder).predict(manifest, batch_size)


def _parts(manifest: Manifest, size: int) -> Sequence[Manifest]:
    starts = range(0, len(manifest), size)
    return [Manifest(manifest.records[start : start + size], manifest.root) for start in starts]
