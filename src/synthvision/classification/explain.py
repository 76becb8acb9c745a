"""What a classifier looked at, and whether such a map means anything; which training images it finds most alike.

A map is only as good as a test of it: where covering what it marks lowers the answer no more than covering as much at
random, it explains nothing, and is said to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import logit
from timm.utils import AttentionExtract  # type: ignore[attr-defined]  # it is in timm's documentation
from torch import Tensor, nn

from synthvision.classification.model import as_input
from synthvision.classification.predict import TrainedModel
from synthvision.data.images import Pixels, load_batch
from synthvision.manifest import Manifest

Floats = NDArray[np.float64]
CELLS = 8  # a map is judged on CELLS x CELLS squares of the image
COVERS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # cells covered at each step: the first ones tell most
RANDOM_ORDERS = 19  # beside the map's own: the smallest p is 1 / 20
TINY = 1e-7
BATCH = 64


@dataclass(frozen=True)
class DeletionTest:
    """What is left of an answer while the image is covered in the order of a map, and in random orders."""

    area: float  # mean probability of the called class while covering by the map; smaller is better
    random_area: float  # the same in the mean of RANDOM_ORDERS random orders
    p: float  # share of orders, the map's own among them, that do as well

    @property
    def means_something(self) -> bool:
        """Whether covering what the map marks does more than covering as much elsewhere."""
        return self.p <= 1 / (RANDOM_ORDERS + 1)


def attention_rollout(model: TrainedModel, images: Pixels) -> Floats | None:
    """Return how much each cell reaches the class token (Abnar and Zuidema, ACL 2020), (N, CELLS, CELLS), sum 1.

    None for a network without a class token and attention.

    Args:
        model: any.
        images: uint8 (N, S, S, 3), already of the network's size.
    """
    if getattr(model.network, "cls_token", None) is None or not hasattr(model.network, "blocks"):
        return None
    pixels = _pixels(model, images)
    with _plain_attention(model.network), torch.inference_mode():
        layers = AttentionExtract(model.network, method="hook")(as_input(pixels, model.network))
    joined: Tensor | None = None
    for attention in layers.values():  # (N, heads, tokens, tokens)
        mean = attention.mean(1)
        step = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], device=mean.device)  # the residual branch
        joined = step if joined is None else step @ joined
    assert joined is not None
    extra: int = model.network.num_prefix_tokens  # type: ignore[assignment]  # timm's
    reach = joined[:, 0, extra:]
    side = round(reach.shape[1] ** 0.5)
    grid = F.interpolate(reach.view(-1, 1, side, side), (CELLS, CELLS), mode="area")[:, 0]
    return _numbers(grid / grid.sum((1, 2), keepdim=True))


def occlusion(model: TrainedModel, image: Pixels, index: int) -> Floats:
    """Return how far class `index`'s log-odds fall where each cell of uint8 (S, S, 3) is covered, (CELLS, CELLS)."""
    covers = [np.isin(np.arange(CELLS**2), [cell]).reshape(CELLS, CELLS) for cell in range(CELLS**2)]
    probability = _probability(model, [image, *(covered(image, cover) for cover in covers)], index)
    odds: Floats = logit(np.clip(probability, TINY, 1 - TINY))
    falls: Floats = (odds[0] - odds[1:]).reshape(CELLS, CELLS)
    return falls


def deletion_test(model: TrainedModel, image: Pixels, heat: Floats, index: int, seed: int) -> DeletionTest:
    """Return what covering uint8 (S, S, 3) by falling `heat` (CELLS, CELLS) does to class `index`'s probability."""
    rng = np.random.default_rng([seed, CELLS])
    own = np.argsort(-heat.ravel(), kind="stable")
    orders = [own, *(rng.permutation(CELLS**2) for _ in range(RANDOM_ORDERS))]
    shown = [covered(image, _first(order, count)) for order in orders for count in COVERS]
    areas = _probability(model, shown, index).reshape(len(orders), len(COVERS)).mean(1)
    return DeletionTest(float(areas[0]), float(areas[1:].mean()), float((areas <= areas[0]).mean()))


def covered(image: Pixels, cover: NDArray[np.bool_]) -> Pixels:
    """Return uint8 (S, S, 3) with the cells of `cover` (CELLS, CELLS) in the image's mean colour."""
    place = np.arange(image.shape[0]) * CELLS // image.shape[0]
    mean = image.mean((0, 1)).round().astype(np.uint8)
    shown: Pixels = np.where(cover[place][:, place, None], mean, image)
    return shown


def embeddings(model: TrainedModel, manifest: Manifest) -> Floats:
    """Return what the network makes of each image before its output layer, unit length, (N, D)."""
    side, network = model.config.image_size, model.network
    parts = []
    for start in range(0, len(manifest), BATCH):
        part = Manifest(manifest.records[start : start + BATCH], manifest.root)
        parts.append(embed(network, _pixels(model, load_batch(part, side))))
    return np.concatenate(parts)


def embed(network: nn.Module, pixels: Tensor) -> Floats:
    """Return embeddings (N, D) of float images (N, 3, S, S) in [0, 1]."""
    with torch.inference_mode():
        features = network.forward_features(as_input(pixels, network))  # type: ignore[operator]  # timm's
        pooled = network.forward_head(features, pre_logits=True)  # type: ignore[operator]  # timm's
    return _numbers(F.normalize(pooled.double(), dim=1))


def nearest(query: Floats, reference: Floats, count: int) -> NDArray[np.int64]:
    """Return for each row of `query` (N, D) the `count` nearest rows of `reference` by cosine, the nearest first."""
    order = np.argsort(-(query @ reference.T), axis=1, kind="stable")
    return order[:, :count].astype(np.int64)


def _first(order: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    cover = np.zeros(CELLS**2, dtype=bool)
    cover[order[:count]] = True
    return cover.reshape(CELLS, CELLS)


def _probability(model: TrainedModel, images: Sequence[Pixels], index: int) -> Floats:
    parts = [model.probabilities(np.stack(images[at : at + BATCH])) for at in range(0, len(images), BATCH)]
    column: Floats = np.concatenate(parts)[:, index]
    return column


def _pixels(model: TrainedModel, images: Pixels) -> Tensor:
    device = next(model.network.parameters()).device
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def _numbers(values: Tensor) -> Floats:
    return np.asarray(values.double().cpu().numpy(), dtype=np.float64)


@contextmanager
def _plain_attention(network: nn.Module) -> Iterator[None]:
    """Compute attention step by step for a while: the fused kernel never shows its weights."""
    fused = [(layer, layer.fused_attn) for layer in network.modules() if hasattr(layer, "fused_attn")]
    try:
        for layer, _ in fused:
            layer.fused_attn = False  # type: ignore[assignment]  # a plain bool of timm
        yield
    finally:
        for layer, before in fused:
            layer.fused_attn = before
