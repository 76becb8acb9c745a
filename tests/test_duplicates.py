"""Planted copies are found, in any position and a little cropped; different pictures are not taken for copies."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthvision.data import duplicates
from synthvision.data.cache import THUMB
from synthvision.data.duplicates import eight_views, near_duplicates
from synthvision.data.reading import fit_and_thumbnail

Pixels = NDArray[np.uint8]
SIDE = 96


def pictures(number: int, seed: int = 0) -> Pixels:
    """Draw smooth blobs on shaded ground, all dark in the middle: alike at a glance, different in detail."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    out = []
    for _ in range(number):
        image = 190 + 40 * (rng.normal() * x + rng.normal() * y)
        image -= 90 * np.exp(-(x**2 + y**2) / 0.03)
        for _ in range(12):
            cx, cy, width = rng.uniform((-0.5, -0.5, 0.03), (0.5, 0.5, 0.08))
            image += rng.normal() * 40 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / width**2)
        colour = image[..., None] * np.array([1.0, 0.8, 0.7]) + rng.normal(0, 3, (SIDE, SIDE, 3))
        out.append(np.clip(colour, 0, 255).astype(np.uint8))
    return np.stack(out)


def jpeg(image: Pixels, quality: int = 70) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "JPEG", quality=quality)
    with Image.open(out) as coded:
        return np.array(coded)


def resized(image: Pixels, side: int) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.BICUBIC))


def cells(number: int) -> Pixels:
    """Draw round cells, one in the middle of each picture: dark, with a paler rim, and hardly anything around."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    out = []
    for _ in range(number):
        turn, angle = rng.uniform(0, 2 * np.pi), np.arctan2(y, x)
        edge = rng.uniform(0.19, 0.23) * (1 + sum(rng.normal(0, 0.03) * np.cos(k * angle + turn) for k in (2, 3, 4)))
        outside = 1 / (1 + np.exp((edge - np.hypot(x, y)) / 0.012))
        core = rng.uniform(0.6, 0.8)
        inside = 1 / (1 + np.exp((np.hypot(x - 0.03 * np.cos(turn), y - 0.03 * np.sin(turn)) - core * edge) / 0.015))
        stain = Image.fromarray(rng.normal(0, 20, (16, 16)).astype(np.float32)).resize((SIDE, SIDE), 3)
        grey = 235 * outside + (1 - outside) * (110 - 60 * inside + np.asarray(stain))
        for _ in range(3):  # outlines of other cells
            away = np.hypot(x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5))
            grey = grey - 12 * outside * np.exp(-(((away - 0.15) / 0.01) ** 2))
        colour = grey[..., None] + rng.normal(0, 3, (SIDE, SIDE, 3))
        out.append(np.clip(colour, 0, 255).astype(np.uint8))
    return np.stack(out)


CUT = round(SIDE * 0.05)
EDITS: dict[str, Callable[[Pixels], Pixels]] = {
    "re-encoded": jpeg,
    "halved": lambda image: resized(image, SIDE // 2),
    "enlarged": lambda image: resized(image, SIDE * 2),
    "brighter": lambda image: np.clip(image * 1.05 + 5, 0, 255).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned": lambda image: np.rot90(image, 3),
    "transposed and re-encoded": lambda image: jpeg(image.transpose(1, 0, 2)),
    "cropped by 5%": lambda image: image[CUT // 2 : CUT // 2 - CUT, CUT // 2 : CUT // 2 - CUT],
    "a corner cropped by 5%": lambda image: image[CUT:, :-CUT],
    "cropped, resized, mirrored and re-encoded": lambda image: jpeg(resized(image[CUT:, CUT:], 70)[:, ::-1]),
}


def thumbs(images: list[Pixels]) -> Pixels:
    return np.stack([fit_and_thumbnail(np.ascontiguousarray(image), THUMB)[1] for image in images])


@pytest.fixture(scope="module")
def drawn() -> Pixels:
    return pictures(100)


@pytest.fixture(scope="module")
def clean(drawn: Pixels) -> Pixels:
    return thumbs(list(drawn))


@pytest.mark.parametrize("tables", [False, True], ids=["all pairs", "tables"])
@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_are_found_and_nothing_else(
    edit: str, tables: bool, drawn: Pixels, clean: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tables:
        monkeypatch.setattr(duplicates, "ALL_PAIRS", 0)
    copies = thumbs([EDITS[edit](image) for image in drawn[:30]])
    found = near_duplicates(np.concatenate([clean, copies]))
    assert {(i, j) for i, j, _ in found} == {(i, 100 + i) for i in range(30)}
    assert all(duplicates.CORRELATION <= alike <= 1.0001 for _, _, alike in found)


@pytest.mark.parametrize("limit", [0, 1000])
def test_different_pictures_raise_no_alarm(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "ALL_PAIRS", limit)
    assert len(near_duplicates(thumbs(list(pictures(300, seed=3))))) == 0


def test_cells_that_are_merely_alike_are_no_copies_and_theirs_are_found() -> None:
    drawn = cells(150)
    edits = [EDITS[edit] for edit in ("re-encoded", "halved", "mirrored", "turned")]
    copies = [edit(image) for edit in edits for image in drawn[:10]]
    found = near_duplicates(thumbs([*drawn, *copies]))
    assert {(i, j) for i, j, _ in found if i < 150} == {(number % 10, 150 + number) for number in range(40)}


def test_uniform_pictures_resemble_nothing() -> None:
    assert len(near_duplicates(np.full((5, 64, 64), 9, dtype=np.uint8))) == 0


@pytest.mark.parametrize("number", [0, 1])
def test_few_pictures_have_no_copies(number: int) -> None:
    assert len(near_duplicates(np.zeros((number, 64, 64), dtype=np.uint8))) == 0


def test_two_pictures_suffice(clean: Pixels) -> None:
    assert next(iter(near_duplicates(np.stack([clean[0], clean[0]]))))[:2] == (0, 1)


def test_many_copies_of_one_picture_are_tied_without_comparing_all(clean: Pixels, monkeypatch) -> None:
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 0)
    rng = np.random.default_rng(0)
    copies = np.clip(clean[:1].astype(int) + rng.normal(0, 2, (200, 64, 64)), 0, 255).astype(np.uint8)
    found = near_duplicates(np.concatenate([copies, clean[1:]]))
    tied = {0}
    for _ in range(10):
        tied |= {end for i, j, _ in found if i in tied or j in tied for end in (i, j)}
    assert tied == set(range(200))


def test_the_order_of_the_pictures_does_not_matter(clean: Pixels) -> None:
    both = np.concatenate([clean[:20], clean[:5, :, ::-1]])
    backwards = {(24 - j, 24 - i) for i, j, _ in near_duplicates(both[::-1])}
    assert backwards == {(i, j) for i, j, _ in near_duplicates(both)}


def test_eight_views_are_distinct_and_closed() -> None:
    image = np.arange(9.0).reshape(1, 3, 3)
    views = {view.tobytes() for view in eight_views(image)}
    assert len(views) == 8
    for view in eight_views(image):
        assert {again.tobytes() for again in eight_views(view)} == views
