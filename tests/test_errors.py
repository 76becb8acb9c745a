"""Which cases are looked at, and what is written of them."""

from pathlib import Path

import numpy as np
import torch
from conftest import MakeManifest

from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel
from synthvision.data.images import read_rgb
from synthvision.evaluation.errors import NEIGHBOURS, choose, read_errors, write_errors
from synthvision.predictions import Predictions

CLASSES = ("lesion", "normal")


def test_the_worst_errors_come_first_and_right_calls_after():
    p = np.array([0.05, 0.4, 0.9, 0.99, 0.2, 0.6])
    label = ("lesion", "lesion", "lesion", "normal", "normal", "normal")
    made = Predictions(tuple("abcdef"), label, CLASSES, np.stack([p, 1 - p], 1))
    assert choose(made, 0.5, 3) == [3, 0, 1, 2]
    assert choose(made, 0.5, 9)[:4] == [3, 0, 1, 5]
    assert choose(made, 0.5, 0) == []


def test_each_case_has_a_picture_its_neighbours_and_the_verdict_on_its_maps(
    make_manifest: MakeManifest, tmp_path: Path
):
    torch.manual_seed(0)
    config = ModelConfig("vit_tiny_patch16_224", 32, patch_size=8, embed_dim=16, depth=1, heads=2)
    model = TrainedModel(build(config, 2).eval(), config, CLASSES, 0.5, 0)
    test = make_manifest(n=3, size=32)
    made = write_errors(model, model.predict(test, 4), test, test, 3, 0, tmp_path / "errors")
    assert read_errors(tmp_path / "errors") == made
    for case in made:
        assert case.neighbours[0] == case.image_id  # here it was trained on what it is tested on
        assert len(case.neighbours) == NEIGHBOURS
        assert read_rgb(case.picture).shape == (192, 3 * 192, 3)
        assert "map of attention means" in case.said
        assert "map of covering means" in case.said
    assert any(case.truth != case.called for case in made)


def test_nothing_to_look_at_is_nothing(make_manifest: MakeManifest, tmp_path: Path):
    config = ModelConfig("vit_tiny_patch16_224", 32, patch_size=8, embed_dim=16, depth=1, heads=2)
    model = TrainedModel(build(config, 2).eval(), config, CLASSES, 0.5, 0)
    test = make_manifest(n=1, size=32)
    assert write_errors(model, model.predict(test, 4), test, test, 0, 0, tmp_path) == []
    assert read_errors(tmp_path) == []
