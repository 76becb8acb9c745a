"""Masks and boxes beside guides: found, checked, and cut as their guide is."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthvision.data.images import fit, read_rgb
from synthvision.data.intake import GuideSource
from synthvision.data.masks import bounding_square, fit_mask, mask_of, read_mask, write_mask


def disc(height: int, width: int, y: int, x: int, r: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r**2


def test_a_mask_is_cut_as_its_guide() -> None:
    mask = disc(60, 90, 30, 50, 10)
    guide = np.where(mask[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    assert (fit_mask(mask, 32) == (fit(guide, 32)[..., 0] > 127)).all()
    assert fit_mask(mask, 32)[16, 19]


def test_a_box_is_the_same_as_its_painted_rectangle(tmp_path: Path) -> None:
    (tmp_path / "g.box.txt").write_text("10, 5, 30, 20\n")
    painted = np.zeros((40, 50), dtype=bool)
    painted[5:20, 10:30] = True
    write_mask(tmp_path / "h.mask.png", painted)
    box, mask = (read_mask(tmp_path / name, 40, 50) for name in ("g.box.txt", "h.mask.png"))
    assert (box == painted).all()
    assert (mask == painted).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", r"g\.box\.txt must hold four whole numbers.*'1 2 3'"),
        ("10 5 60 20", r"inside the guide; it holds \[10, 5, 60, 20\]"),
        ("30 5 10 20", "inside the guide"),
    ],
)
def test_a_bad_box_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "g.box.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_mask(tmp_path / "g.box.txt", 40, 50)


def test_a_bad_mask_is_named(tmp_path: Path) -> None:
    file = tmp_path / "g.mask.png"
    write_mask(file, np.zeros((40, 50), dtype=bool))
    with pytest.raises(ValueError, match=r"g\.mask\.png marks nothing"):
        read_mask(file, 40, 50)
    with pytest.raises(ValueError, match=r"guide's size, 40 x 40 pixels; it has 50 x 40"):
        read_mask(file, 40, 40)
    file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(ValueError, match=r"g\.mask\.png: .*make the mask again"):
        read_mask(file, 40, 50)


@pytest.mark.parametrize(("y", "x", "r"), [(30, 30, 5), (2, 60, 2), (32, 32, 31), (60, 3, 8)])
def test_the_square_holds_the_lesion_and_lies_inside(y: int, x: int, r: int) -> None:
    mask = disc(64, 64, y, x, r)
    top, left, side = bounding_square(mask, 0.25, 16)
    inside = np.zeros_like(mask)
    inside[top : top + side, left : left + side] = True
    assert 16 <= side <= 64
    assert top >= 0
    assert left >= 0
    assert (inside & mask).sum() == mask.sum()
    assert max(top, left) + side <= 64


def guide(folder: Path, name: str) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / name).with_suffix(".txt").write_text("spots")


def test_the_guides_source_finds_masks_and_takes_them_for_nothing_else(tmp_path: Path) -> None:
    guide(tmp_path, "a.png")
    guide(tmp_path, "b.jpg")
    guide(tmp_path, "c.jpg")
    write_mask(tmp_path / "a.mask.png", disc(40, 50, 20, 20, 5))
    (tmp_path / "b.box.txt").write_text("1 1 9 9")
    found = GuideSource(folder=str(tmp_path), label="lesion").read()
    assert [each.file.name for each in found] == ["a.png", "b.jpg", "c.jpg"]
    assert [each.mask and each.mask.name for each in found] == ["a.mask.png", "b.box.txt", None]
    write_mask(tmp_path / "d.mask.png", disc(40, 50, 20, 20, 5))
    with pytest.raises(ValueError, match=r"without an image of the same name: \['d.mask.png'\]"):
        GuideSource(folder=str(tmp_path), label="lesion").read()


def test_a_mask_and_a_box_of_one_guide_are_refused(tmp_path: Path) -> None:
    guide(tmp_path, "a.png")
    write_mask(tmp_path / "a.mask.png", disc(40, 50, 20, 20, 5))
    (tmp_path / "a.box.txt").write_text("1 1 9 9")
    with pytest.raises(ValueError, match="has a mask and a box"):
        mask_of(tmp_path / "a.png")


def test_two_images_or_captions_of_one_name_are_refused(tmp_path: Path) -> None:
    guide(tmp_path, "a.png")
    guide(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=r"two images of one name: \['a'\]"):
        GuideSource(folder=str(tmp_path), label="lesion").read()
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "a.TXT").write_text("other spots")
    with pytest.raises(ValueError, match=r"two captions of one name: \['a'\]"):
        GuideSource(folder=str(tmp_path), label="lesion").read()


def test_a_written_mask_is_black_and_white(tmp_path: Path) -> None:
    write_mask(tmp_path / "m" / "a.png", disc(40, 50, 20, 20, 5))
    assert set(np.unique(read_rgb(tmp_path / "m" / "a.png")).tolist()) == {0, 255}
