"""The wrong calls, what the classifier looked at in them, and which training images they resemble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image
from scipy.special import logit

from synthvision.artifact import write_json
from synthvision.classification.explain import (
    DeletionTest,
    Floats,
    attention_rollout,
    deletion_test,
    embeddings,
    nearest,
    occlusion,
)
from synthvision.classification.predict import TrainedModel
from synthvision.data.images import Pixels, load_batch, write_png
from synthvision.evaluation.metrics import decide
from synthvision.evaluation.report_input import ErrorCase
from synthvision.manifest import Manifest
from synthvision.predictions import Predictions

NEIGHBOURS = 4
FILE = "errors.json"
LEAST_SIDE = 192  # pixels of each picture, so that small images can be seen
TINY = 1e-9


def write_errors(
    model: TrainedModel, predictions: Predictions, test: Manifest, training: Manifest, cases: int, seed: int, out: Path
) -> list[ErrorCase]:
    """Write a picture and a line for each of the chosen cases into `out`, and return them.

    Args:
        model: that made the predictions.
        predictions: of the test set.
        test: its images.
        training: what the model was trained on; each case is shown beside its nearest images there.
        cases: how many to look at: at most so many wrong ones, and a third as many right ones.
        seed: of the deletion test's random orders.
    """
    chosen = choose(predictions, model.threshold, cases)
    if not chosen:
        write_json(out / FILE, [])
        return []
    by_id = {record.image_id: record for record in test}
    shown = Manifest(tuple(by_id[predictions.image_id[at]] for at in chosen), test.root)
    pixels = load_batch(shown, model.config.image_size)
    near = nearest(embeddings(model, shown), embeddings(model, training), NEIGHBOURS)
    called = decide(predictions.probability, 0, model.threshold)
    rollouts = attention_rollout(model, pixels)
    made = []
    for row, at in enumerate(chosen):
        index, name = int(called[at]), predictions.image_id[at]
        maps = {"covering": occlusion(model, pixels[row], index)}
        if rollouts is not None:
            maps = {"attention": rollouts[row], **maps}
        tests = {kind: deletion_test(model, pixels[row], heat, index, seed) for kind, heat in maps.items()}
        file = out / f"{name}.png"
        write_png(file, _beside(pixels[row], list(maps.values())))
        probability = float(predictions.probability[at, 0])
        neighbours = tuple(training.records[place].image_id for place in near[row])
        truth = predictions.label[at]
        made.append(ErrorCase(name, truth, model.classes[index], probability, file, neighbours, _sentence(tests)))
    write_json(out / FILE, [{**asdict(case), "picture": case.picture.name} for case in made])
    return made


def read_errors(folder: Path) -> list[ErrorCase]:
    """Read what `write_errors` wrote."""
    rows = json.loads((folder / FILE).read_text())
    return [
        ErrorCase(**{**row, "picture": folder / row["picture"], "neighbours": tuple(row["neighbours"])}) for row in rows
    ]


def choose(predictions: Predictions, threshold: float, cases: int) -> list[int]:
    """Return the wrong calls furthest from the threshold, at most `cases`, then a third as many right ones."""
    called = decide(predictions.probability, 0, threshold)
    truth = np.array([predictions.classes.index(label) for label in predictions.label])
    odds = logit(np.clip(predictions.probability[:, 0], TINY, 1 - TINY)) - logit(np.clip(threshold, TINY, 1 - TINY))
    order = np.argsort(-np.abs(odds), kind="stable")
    wrong = [int(at) for at in order if called[at] != truth[at]]
    right = [int(at) for at in order if called[at] == truth[at]]
    return wrong[:cases] + right[: cases // 3]


def _sentence(tests: dict[str, DeletionTest]) -> str:
    parts = []
    for kind, test in tests.items():
        verdict = "means something here" if test.means_something else "means nothing here: any order does as well"
        left = f"{100 * test.area:.0f}% against {100 * test.random_area:.0f}% at random"
        parts.append(f"The map of {kind} {verdict} ({left} of the called class's probability left while covering).")
    return " ".join(parts)


def _beside(image: Pixels, maps: Sequence[Floats]) -> Pixels:
    """Return uint8 (S, S * (1 + maps), 3): the image, then each map laid over it."""
    side = max(LEAST_SIDE, image.shape[0])
    large = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST))
    return np.concatenate([large, *(_over(large, heat) for heat in maps)], axis=1)


def _over(image: Pixels, heat: Floats) -> Pixels:
    spread = np.ptp(heat)
    share = (heat - heat.min()) / spread if spread > 0 else np.zeros_like(heat)
    grown = Image.fromarray((255 * share).astype(np.uint8)).resize(image.shape[:2], Image.Resampling.BICUBIC)
    colours = colormaps["cividis"](np.asarray(grown) / 255)[..., :3]  # equally clear to the colour-blind
    grey = image.mean(2, keepdims=True) / 255
    laid: Pixels = (255 * (0.45 * grey + 0.55 * colours)).astype(np.uint8)
    return laid
