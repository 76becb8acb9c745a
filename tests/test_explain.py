"""Maps against networks whose reasons are known; embeddings and neighbours by their definition."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import MakeManifest
from torch import nn

from synthvision.classification.explain import (
    CELLS,
    attention_rollout,
    covered,
    deletion_test,
    embeddings,
    nearest,
    occlusion,
)
from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel

CONFIG = ModelConfig("vit_tiny_patch16_224", 32, patch_size=4, embed_dim=16, depth=2, heads=2)


class RedCorner(nn.Module):
    """Says "lesion" by how red the upper left cell is, and looks at nothing else."""

    default_cfg: ClassVar[dict[str, tuple[float, ...]]] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, 0, :4, :4].mean((1, 2)) - images[:, 1, :4, :4].mean((1, 2))
        return torch.stack([8 * red, torch.zeros_like(red)], 1)


def known() -> tuple[TrainedModel, np.ndarray]:
    image = np.full((32, 32, 3), 120, np.uint8)
    image[:4, :4] = (250, 20, 20)
    return TrainedModel(RedCorner(), CONFIG, ("lesion", "normal"), 0.5, 0), image


def vit() -> TrainedModel:
    torch.manual_seed(0)
    return TrainedModel(build(CONFIG, 2).eval(), CONFIG, ("lesion", "normal"), 0.5, 0)


def test_covering_finds_the_only_cell_that_counts_and_its_map_means_something():
    model, image = known()
    heat = occlusion(model, image, 0)
    assert heat.argmax() == 0
    assert heat[0, 0] > 1
    np.testing.assert_allclose(heat.ravel()[1:], 0, atol=0.2)  # the mean colour moves a little
    found = deletion_test(model, image, heat, 0, seed=0)
    assert found.means_something
    assert found.area < found.random_area


def test_a_map_of_the_wrong_place_is_said_to_mean_nothing():
    model, image = known()
    wrong = np.arange(CELLS**2, dtype=float).reshape(CELLS, CELLS)  # the corner comes last
    found = deletion_test(model, image, wrong, 0, seed=0)
    assert not found.means_something
    assert found.area > found.random_area


def test_random_maps_seldom_pass():
    model, image = known()
    rng = np.random.default_rng(0)
    passed = [deletion_test(model, image, rng.random((CELLS, CELLS)), 0, seed).means_something for seed in range(40)]
    assert sum(passed) <= 6


def test_covering_touches_the_named_cells_only():
    _, image = known()
    cover = np.zeros((CELLS, CELLS), dtype=bool)
    cover[1, 2] = True
    changed = (covered(image, cover) != image).any(2)
    assert changed[4:8, 8:12].all()
    assert changed.sum() == 16


def test_rollout_is_the_product_of_the_layers_and_shares_one_among_the_cells():
    model = vit()
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    before = model.probabilities(images)
    heat = attention_rollout(model, images)
    assert heat is not None
    assert heat.shape == (3, CELLS, CELLS)
    np.testing.assert_allclose(heat.sum((1, 2)), 1)
    np.testing.assert_array_equal(model.probabilities(images), before)  # attention is as it was
    for block in model.network.blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.attn.qkv.weight)  # every token looks at all alike
        nn.init.zeros_(block.attn.qkv.bias)
    even = attention_rollout(model, images)
    np.testing.assert_allclose(even, 1 / CELLS**2, rtol=1e-5)


def test_a_convolutional_network_has_no_rollout_but_embeddings(make_manifest: MakeManifest):
    torch.manual_seed(0)
    config = ModelConfig("resnet10t", 64)
    model = TrainedModel(build(config, 2).eval(), config, ("lesion", "normal"), 0.5, 0)
    assert attention_rollout(model, np.zeros((1, 64, 64, 3), np.uint8)) is None
    assert embeddings(model, make_manifest(n=1)).shape == (2, 512)


@pytest.mark.parametrize("hidden", [None, 5])
def test_an_image_is_nearest_to_itself(make_manifest: MakeManifest, hidden: int | None):
    torch.manual_seed(0)
    config = ModelConfig("vit_tiny_patch16_224", 32, patch_size=8, embed_dim=16, depth=2, heads=2, hidden=hidden)
    model = TrainedModel(build(config, 2).eval(), config, ("lesion", "normal"), 0.5, 0)
    found = embeddings(model, make_manifest(n=4, size=32))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert nearest(found, found, 3)[:, 0].tolist() == list(range(8))
    direct = ((found[0] - found) ** 2).sum(1).argsort()[:3]
    assert nearest(found, found, 3)[0].tolist() == direct.tolist()
