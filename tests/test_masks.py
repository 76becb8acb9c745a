"""A mask takes the same way as its image."""

import io

import numpy as np
import pytest
from PIL import Image

from synthvision.data.images import encode_png, fit
from synthvision.data.masks import prepared_mask
from synthvision.data.unusable import UnusableImage

SHAPE = (40, 60, 3)


def mask() -> np.ndarray:
    drawn = np.zeros(SHAPE[:2], dtype=np.uint8)
    drawn[10:20, 20:30] = 255
    return drawn


def test_it_is_cut_and_resized_as_the_image_is() -> None:
    image = np.repeat(mask()[:, :, None], 3, axis=2)
    prepared = prepared_mask(encode_png(mask()), SHAPE, 20)
    assert prepared.shape == (20, 20)
    assert set(np.unique(prepared)) == {0, 255}
    assert np.array_equal(prepared > 0, fit(image, 20)[:, :, 0] > 127)


def test_a_label_map_and_a_palette_are_masks_too() -> None:
    levels = mask() // 2 + 1  # 0 -> 1, 255 -> 128
    assert prepared_mask(encode_png(levels), SHAPE, 40).any()
    out = io.BytesIO()
    Image.fromarray(mask()).convert("P").save(out, "PNG")
    assert np.array_equal(prepared_mask(out.getvalue(), SHAPE, 40), prepared_mask(encode_png(mask()), SHAPE, 40))


def test_a_mask_that_does_not_fit_or_is_empty_is_refused() -> None:
    with pytest.raises(UnusableImage, match="60 x 40 pixels and its image 40 x 60"):
        prepared_mask(encode_png(mask()), (60, 40, 3), 20)
    with pytest.raises(UnusableImage, match="empty"):
        prepared_mask(encode_png(np.zeros_like(mask())), SHAPE, 20)
