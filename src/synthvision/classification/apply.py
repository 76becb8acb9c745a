"""A finished classifier on images from anywhere: all that it needs to answer lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthvision.classification.calibration import Floats, at_temperature
from synthvision.classification.predict import TrainedModel, load_classifier
from synthvision.classification.reference import Reference, embed_images, read_reference
from synthvision.data.images import Pixels, fit


@dataclass(frozen=True)
class Answer:
    """What is said of N images."""

    probability: Floats  # (N, C), as in predictions.csv
    calibrated: Floats  # (N, C), honest on validation images
    called: tuple[str, ...]  # the decision: a class
    distance: Floats  # (N,) from the training images
    foreign: tuple[bool, ...]  # further away than nearly all validation images
    faults: tuple[str, ...]  # what is wrong with the image's quality; empty for nothing


@dataclass(frozen=True)
class Application:
    """All that a classifier's folder holds."""

    model: TrainedModel
    reference: Reference

    @classmethod
    def load(cls, folder: Path) -> Application:
        """Read a folder that `stage=classify` wrote.

        Raises:
            FileNotFoundError: it is no such folder.
            ValueError: the weights do not fit the description.
        """
        return cls(load_classifier(folder), read_reference(folder))

    def threshold(self, rule: str | None) -> float:
        """Return the threshold of a rule; None for the one that the study was judged by.

        Raises:
            ValueError: the classifier knows no such rule.
        """
        if rule is None:
            return self.model.threshold
        if rule not in self.model.thresholds:
            raise ValueError(f"predict.rule must be one of {sorted(self.model.thresholds)} or null; it is {rule!r}")
        return self.model.thresholds[rule]

    def preprocess(self, image: Pixels) -> Pixels:
        """Return uint8 (H, W, 3) as the network takes it, by the same two steps as the test images."""
        side = self.model.config.image_size
        return fit(fit(image, self.model.prepared or side), side)

    def answer(self, images: list[Pixels], rule: str | None = None) -> Answer:
        """Return what is said of some images of any size, in one batch."""
        batch = np.stack([self.preprocess(image) for image in images])
        probability = self.model.probabilities(batch)
        positive = probability[:, 0] >= self.threshold(rule)
        others = 1 + probability[:, 1:].argmax(1)
        distance = self.reference.distances(embed_images(self.model, batch))
        return Answer(
            probability,
            at_temperature(probability, self.model.temperature),
            tuple(self.model.classes[index] for index in np.where(positive, 0, others)),
            distance,
            tuple((distance > self.reference.limit).tolist()),
            tuple(self.reference.faults(batch)),
        )
