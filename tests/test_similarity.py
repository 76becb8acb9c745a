"""Copies are found however they are disguised; other pictures are not."""

import io

import numpy as np
import pytest
from PIL import Image

from synthvision.data.similarity import VIEWS, contrast, difference, nearest_guides, views_of

SIDE = 64


def picture(seed):
    """A shaded ground with spots, as skin is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    image = 150 + 30 * x + 20 * y
    for _ in range(8):
        down, right, radius = *rng.random(2), rng.uniform(0.03, 0.12)
        image -= rng.uniform(20, 60) * np.exp(-((y - down) ** 2 + (x - right) ** 2) / radius**2)
    noisy = image[..., None] * [1.0, 0.8, 0.7] + rng.normal(0, 3, (SIDE, SIDE, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def resized(image, side=SIDE):
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.LANCZOS))


def compressed(image):
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=30)
    return np.asarray(Image.open(out))


DISGUISES = {
    "exact": (lambda image: image, "as it is"),
    "mirrored": (lambda image: image[:, ::-1], "mirrored"),
    "turned": (np.rot90, "turned 90"),
    "upside down and mirrored": (lambda image: image[::-1], "mirrored, turned 180"),
    "recoloured": (lambda image: np.clip(image[..., ::-1] * 0.7 + 40, 0, 255).astype(np.uint8), "as it is"),
    "compressed": (compressed, "as it is"),
    "cropped": (lambda image: resized(image[:51, :51]), "80% crop"),
    "cropped in the middle": (lambda image: resized(image[3:61, 3:61]), "90% crop"),
    "smaller": (lambda image: resized(resized(image, 40)), "as it is"),
}


@pytest.fixture(scope="module")
def guides():
    return np.stack([picture(seed) for seed in range(10)])


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_planted_copy_is_found(disguise, guides):
    change, transform = DISGUISES[disguise]
    planted = np.stack([np.ascontiguousarray(change(image)) for image in guides[:4]])
    found = nearest_guides(planted, guides)
    assert [near.guide for near in found] == [0, 1, 2, 3]
    assert min(near.similarity for near in found) > 0.95
    assert {near.transform for near in found} == {transform}


def test_other_pictures_are_not_copies(guides):
    others = nearest_guides(np.stack([picture(seed) for seed in range(100, 140)]), guides)
    assert max(near.similarity for near in others) < 0.85


def test_a_blank_picture_resembles_nothing(guides):
    assert nearest_guides(np.full((1, SIDE, SIDE, 3), 128, np.uint8), guides)[0].similarity == 0


def test_similarity_is_a_correlation_and_ignores_brightness(guides):
    (near,) = nearest_guides((guides[:1] // 2 + 20).astype(np.uint8), guides[:1])
    assert near.similarity == pytest.approx(1, abs=0.01)


def test_no_guides_is_an_error(guides):
    with pytest.raises(ValueError, match="at least one guide"):
        nearest_guides(guides, guides[:0])


def test_the_first_view_is_the_picture_itself(guides):
    assert np.array_equal(views_of(guides[0])[0], guides[0])
    assert len(views_of(guides[0])) == len(VIEWS) == 8 * 19


def test_difference_and_contrast_are_root_mean_squares():
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert difference(black, white).tolist() == [1.0]
    assert contrast(white).tolist() == [0.0]
    half = np.concatenate([black[:, :2], white[:, :2]], axis=1)
    assert contrast(half).tolist() == [0.5]
