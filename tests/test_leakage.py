"""Planted copies are found, different pictures are not taken for copies."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthvision.data.images import fit
from synthvision.data.leakage import Leak, eight_views, find_leaks
from synthvision.manifest import Manifest, Record

Pixels = NDArray[np.uint8]


def pictures(number: int, seed: int = 0) -> Pixels:
    """Draw smooth blobs on shaded ground, all dark in the middle: alike at a glance, different in detail."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64] / 63 - 0.5
    out = []
    for _ in range(number):
        image = 190 + 40 * (rng.normal() * x + rng.normal() * y)
        image -= 90 * np.exp(-(x**2 + y**2) / 0.03)
        for _ in range(12):
            cx, cy, width = rng.uniform((-0.5, -0.5, 0.03), (0.5, 0.5, 0.08))
            image += rng.normal() * 40 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width**2)
        colour = image[..., None] * np.array([1.0, 0.8, 0.7]) + rng.normal(0, 3, (64, 64, 3))
        out.append(np.clip(colour, 0, 255).astype(np.uint8))
    return np.stack(out)


def jpeg(image: Pixels, quality: int = 75) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    with Image.open(out) as coded:
        return np.array(coded)


def study(images: Pixels, splits: list[str]) -> Manifest:
    records = [
        Record(f"image-{i}", f"{i}.png", f"{i:064x}", "lesion", "real", split=part) for i, part in enumerate(splits)
    ]
    assert len(images) == len(records)
    return Manifest(tuple(records), Path("study"))


EDITS: dict[str, Callable[[Pixels], Pixels]] = {
    "re-encoded": jpeg,
    "halved": lambda image: fit(fit(image, 32), 64),
    "brighter": lambda image: np.clip(image * 1.05 + 5, 0, 255).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned": lambda image: np.rot90(image, 3),
    "transposed and re-encoded": lambda image: jpeg(np.ascontiguousarray(image.transpose(1, 0, 2))),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_edited_copies_are_found_and_nothing_else(edit: Callable[[Pixels], Pixels]) -> None:
    train = pictures(30)
    test = pictures(30, seed=1)
    test[7] = edit(train[3])
    leaks = find_leaks(
        study(np.concatenate([train, test]), ["train"] * 30 + ["test"] * 30), np.concatenate([train, test])
    )
    assert [(leak.kind, leak.first, leak.second, leak.sides) for leak in leaks] == [
        ("near", "image-37", "image-3", ("test", "train"))
    ]
    assert 0.9 <= leaks[0].similarity <= 1


def test_different_pictures_raise_no_alarm() -> None:
    images = pictures(400)
    assert find_leaks(study(images, ["train", "test"] * 200), images) == []


def test_same_pixels_or_same_file_is_exact() -> None:
    images = pictures(4)
    images[3] = images[0]
    manifest = study(images, ["guide", "train", "val", "test"])
    assert find_leaks(manifest, images) == [Leak("exact", "image-0", "image-3", ("guide", "test"), 1.0)]
    same_file = manifest.with_values(lambda _: {"sha256": "f" * 64})
    assert {leak.kind for leak in find_leaks(same_file, images)} == {"exact"}


def test_copies_on_one_side_or_on_none_are_no_leak() -> None:
    images = np.repeat(pictures(1), 4, axis=0)
    assert find_leaks(study(images, ["train", "train", "", ""]), images) == []


def test_a_patient_on_two_sides_is_a_leak_once_per_pair_of_sides() -> None:
    images = pictures(5)
    manifest = study(images, ["train", "train", "test", "guide", "val"])
    manifest = Manifest(tuple(replace(r, patient="p" if r.split != "val" else "q") for r in manifest), manifest.root)
    leaks = find_leaks(manifest, images)
    assert {leak.kind for leak in leaks} == {"patient"}
    assert {leak.sides for leak in leaks} == {("guide", "test"), ("guide", "train"), ("test", "train")}


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.concatenate([pictures(20), pictures(20)[:, :, ::-1]])
    manifest = study(images, ["train"] * 20 + ["test"] * 20)
    whole = find_leaks(manifest, images)
    assert len(whole) == 20
    monkeypatch.setattr("synthvision.data.leakage.BLOCK", 7)
    assert find_leaks(manifest, images) == whole


def test_eight_views_are_distinct_and_closed() -> None:
    image = np.arange(9.0).reshape(1, 3, 3)
    views = {view.tobytes() for view in eight_views(image)}
    assert len(views) == 8
    for view in eight_views(image):
        assert {again.tobytes() for again in eight_views(view)} == views


def test_images_must_match_the_records() -> None:
    images = pictures(2)
    with pytest.raises(ValueError, match="1 for 2 records"):
        find_leaks(study(images, ["train", "test"]), images[:1])


def test_nothing_leaks_from_nothing() -> None:
    assert find_leaks(Manifest((), Path("study")), np.empty((0, 64, 64, 3), dtype=np.uint8)) == []
