"""Pictures encoded once: each keeps its caption, its mask and what SDXL is told of it, in all its views."""

from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import SIDE, make
from torch.nn.functional import adaptive_avg_pool2d

from synthvision.artifact import sha256_file
from synthvision.data.images import UnusableImage, fit, write_png
from synthvision.data.masks import write_mask
from synthvision.diffusion.examples import Picture, encode, pictures_of
from synthvision.manifest import Manifest, Record

STORED = 4 * SIDE


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture
def guides(tmp_path: Path) -> Manifest:
    """Two pictures of 64 pixels; the first has a lesion of 8 x 8 pixels at (40, 8)."""
    rng = np.random.default_rng(0)
    records = []
    for name in ("a", "b"):
        write_png(tmp_path / f"{name}.png", rng.integers(0, 256, (STORED, STORED, 3), dtype=np.uint8))
        digest = sha256_file(tmp_path / f"{name}.png")
        mask = "a.mask.png" if name == "a" else ""
        records.append(Record(name, f"{name}.png", digest, "lesion", "real", "guide", caption=name, mask=mask))
    lesion = np.zeros((STORED, STORED), dtype=bool)
    lesion[40:48, 8:16] = True
    write_mask(tmp_path / "a.mask.png", lesion)
    return Manifest(tuple(records), tmp_path)


def test_examples_keep_the_caption_of_each_picture_and_hold_all_eight_views(weights: Path) -> None:
    backbone = make("sd15", weights / "sd15")
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    pictures = [Picture("x", images[0], "b"), Picture("y", images[1], "a")]
    examples = encode(backbone, pictures, ["a", "b"], 8)
    assert examples.prompt.tolist() == [1] * 8 + [0] * 8
    assert examples.image_ids == ("x",) * 8 + ("y",) * 8
    turned = torch.from_numpy(np.ascontiguousarray(np.rot90(images[1], 3)))[None].permute(0, 3, 1, 2) / 127.5 - 1
    expected = backbone.encode_images(turned).mean
    assert min((examples.latents.mean[8:] - expected).abs().amax(dim=(1, 2, 3))) < 1e-4
    assert len({value.numpy().tobytes() for value in examples.latents.mean}) == 16
    assert examples.lesion is None


def test_a_view_is_sampled_anew_each_time_and_not_indexed_by_step(weights: Path) -> None:
    """Trap 4: the cache holds the Gaussian of each picture and view; what is drawn of it has its mean and deviation."""
    backbone = make("sd15", weights / "sd15")
    pixels = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    examples = encode(backbone, [Picture("x", pixels, "a")], ["a"], 2)
    mean, std = examples.latents.mean[1], examples.latents.std[1]
    noise = torch.randn((4000, *mean.shape), generator=torch.Generator().manual_seed(0))
    drawn = examples.draw(torch.ones(4000, dtype=torch.int64), noise)
    assert ((drawn.mean(0) - mean).abs() < 5 * std / 4000**0.5).all()
    torch.testing.assert_close(drawn.std(0), std, rtol=0.1, atol=0)


def test_the_latents_are_scaled_by_the_vaes_own_factor(weights: Path) -> None:
    """Trap 7: the scaling factor comes from the VAE's config."""
    backbone = make("sd15", weights / "sd15")
    pictures = [Picture("x", np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), "a")]
    before = encode(backbone, pictures, ["a"], 1).latents
    backbone.vae.register_to_config(scaling_factor=2 * backbone.vae.config.scaling_factor)
    after = encode(backbone, pictures, ["a"], 1).latents
    torch.testing.assert_close(after.mean, 2 * before.mean)
    torch.testing.assert_close(after.std, 2 * before.std)


def test_the_lesion_can_be_seen_whole_close_or_both(guides: Manifest) -> None:
    views = {view: pictures_of(guides, ["a", "b"], SIDE, view) for view in ("whole", "crop", "both")}
    assert {view: [each.image_id for each in shown] for view, shown in views.items()} == {
        "whole": ["a", "b"],
        "crop": ["a", "b"],  # b has no mask
        "both": ["a", "a", "b"],
    }
    whole, close = views["both"][:2]
    assert (whole.original, whole.corner) == (STORED, (0, 0))
    # The lesion's 8 pixels with margins are 12; no crop is smaller than a quarter of the side, which is 16.
    assert (close.original, close.corner) == (STORED, (36, 4))
    assert close.mask is not None
    assert whole.mask is not None
    assert close.mask.mean() == pytest.approx(64 / 256)
    assert whole.mask.mean() == pytest.approx(64 / STORED**2)
    assert close.pixels.shape == whole.pixels.shape == (SIDE, SIDE, 3)


def test_the_mask_turns_with_its_picture(weights: Path, guides: Manifest) -> None:
    backbone = make("sd15", weights / "sd15")
    pictures = pictures_of(guides, ["a", "b"], SIDE)
    examples = encode(backbone, pictures, ["a", "b"], 8)
    assert examples.lesion is not None
    assert pictures[0].mask is not None
    lesion = torch.from_numpy(pictures[0].mask).float()
    for row, turn in ((0, lesion), (1, lesion.flip(1)), (2, torch.rot90(lesion)), (7, torch.rot90(lesion.flip(1), 3))):
        expected = adaptive_avg_pool2d(turn[None, None], backbone.latent_size[1:])[0]
        assert torch.equal(examples.lesion[row], expected)
    assert not examples.lesion[8:].any()


def test_sdxl_is_told_size_corner_and_target_in_fp32(weights: Path, guides: Manifest) -> None:
    """Trap 10: time_ids = original (h, w), crop (top, left), target (h, w), per picture, not rounded by bf16."""
    backbone = make("sdxl", weights / "sdxl")
    examples = encode(backbone, pictures_of(guides, ["a", "b"], SIDE, "crop"), ["a", "b"], 1)
    assert examples.time_ids.dtype == torch.float32
    assert examples.time_ids.tolist() == [[64, 64, 36, 4, 16, 16], [64, 64, 0, 0, 16, 16]]


def test_what_is_shown_is_what_a_single_resize_of_the_file_gives(guides: Manifest) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (STORED, STORED, 3), dtype=np.uint8)
    assert (pictures_of(guides, ["a", "b"], SIDE)[0].pixels == fit(pixels, SIDE)).all()


def test_a_damaged_picture_is_named_by_its_id(guides: Manifest) -> None:
    file = guides.root / "b.png"
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(UnusableImage, match=r"image 'b' \(b\.png\): damaged"):
        pictures_of(guides, ["a", "b"], SIDE)
