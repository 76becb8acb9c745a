"""Batches depend on seed and epoch alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from synthvision.data.images import write_png
from synthvision.data.torch_data import EpochBatches, ImageTensors, balanced, shuffled
from synthvision.manifest import Manifest, Record

LABELS = [0] * 10 + [1] * 90
KINDS = [(label,) for label in LABELS]


def test_tensors_from_a_manifest(tmp_path: Path) -> None:
    records = []
    for index, label in enumerate(["normal", "lesion", "normal"]):
        write_png(tmp_path / f"{index}.png", np.full((8, 8, 3), (index, 50, 100), dtype=np.uint8))
        records.append(Record(str(index), f"{index}.png", "0" * 64, label, "real"))
    manifest = Manifest(tuple(records), tmp_path)
    data = ImageTensors.from_manifest(manifest, ["lesion", "normal"], 4)
    assert data.images.shape == (3, 3, 4, 4)
    assert data.labels.tolist() == [1, 0, 1]
    images, labels = data[[2, 0]]
    assert images[:, :, 0, 0].tolist() == [[2, 50, 100], [0, 50, 100]]
    assert labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"not: \['normal'\]"):
        ImageTensors.from_manifest(manifest, ["lesion", "other"], 4)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_other_shapes_and_types_are_refused(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must be"):
        ImageTensors(images, labels, ["real"] * 2)


def test_order_is_a_permutation_keyed_by_seed_and_epoch() -> None:
    torch.manual_seed(0)
    orders = {(seed, epoch): shuffled(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    torch.manual_seed(1)
    assert shuffled(50, 1, 1).tolist() == orders[1, 1]


def test_balanced_draws_classes_equally_and_images_evenly() -> None:
    order = balanced(KINDS, 101, seed=0, epoch=0)
    drawn = Counter(LABELS[index] for index in order)
    assert sorted(drawn.values()) == [50, 51]
    few = Counter(index for index in order.tolist() if LABELS[index] == 0)
    assert set(few) == set(range(10))
    assert max(few.values()) - min(few.values()) <= 1
    assert balanced(KINDS, 101, 0, 0).tolist() == order.tolist()
    assert balanced(KINDS, 101, 0, 1).tolist() != order.tolist()


def test_within_a_class_origins_come_equally_often() -> None:
    kinds = [("lesion", "guide")] * 10 + [("lesion", "synthetic")] * 70 + [("normal", "real")] * 90
    drawn = Counter(kinds[index] for index in balanced(kinds, 200, seed=0, epoch=0))
    assert drawn == {("lesion", "guide"): 50, ("lesion", "synthetic"): 50, ("normal", "real"): 100}


@pytest.mark.parametrize(("samples", "number"), [(None, 100), (40, 40), (1, 1)])
def test_batches_cover_the_epoch(samples: int | None, number: int) -> None:
    batches = EpochBatches(KINDS, 32, seed=3, samples=samples)
    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == number
    assert len(sizes) == len(batches)
    assert set(sizes[:-1]) <= {32}


def test_a_resumed_epoch_draws_the_same() -> None:
    straight = EpochBatches(KINDS, 32, seed=3)
    epochs = []
    for epoch in range(3):
        straight.set_epoch(epoch)
        epochs.append(list(straight))
    resumed = EpochBatches(KINDS, 32, seed=3)
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert epochs[2] != epochs[1]


@pytest.mark.parametrize(("kinds", "batch_size", "samples"), [([], 1, None), ([(0,)], 0, None), ([(0,)], 1, 0)])
def test_empty_epochs_are_refused(kinds: list[tuple[int]], batch_size: int, samples: int | None) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EpochBatches(kinds, batch_size, 0, samples)
