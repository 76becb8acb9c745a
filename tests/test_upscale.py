"""Enlarging: as the stock pipeline does it, but with each picture's own prompt; seams, sides, colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from upscalers import KINDS, LEVELS, make

from synthvision.data.images import Pixels
from synthvision.diffusion.degradation import shrink
from synthvision.diffusion.restoration import closeness, colour_shift, psnr, ssim
from synthvision.diffusion.sampler import to_tensor
from synthvision.diffusion.upscale import UpscalingConfig, back_project, tiled, upscale
from synthvision.diffusion.upscaler import Upscaler

CONFIG = UpscalingConfig(steps=3, guidance=2.0, noise_level=4, average=1, back_projections=0, tile=None, batch_size=3)


@pytest.fixture(scope="module", params=KINDS)
def upscaler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    return make(request.param, tmp_path_factory.mktemp("upscalers") / request.param)


def pictures(count: int, height: int = 8, width: int = 8) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_picture_is_what_the_stock_pipeline_makes_of_it(guidance: float, upscaler: Upscaler) -> None:
    small = pictures(1)
    ours = upscale(upscaler, replace(CONFIG, guidance=guidance, batch_size=1), small, ["a wart"], [7])
    pipeline = upscaler.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        prompt=["a wart"],
        image=(to_tensor(small) + 1) / 2,
        num_inference_steps=CONFIG.steps,
        guidance_scale=guidance,
        noise_level=CONFIG.noise_level,
        generator=[torch.Generator().manual_seed(7)],
        output_type="np",
    ).images
    assert ours.shape == (1, 32, 32, 3)
    assert np.abs(ours - 255 * stock).max() <= 0.51  # rounding


def test_a_batch_equals_single_calls_each_with_its_own_prompt(upscaler: Upscaler) -> None:
    """The stock pipeline pairs pictures with other pictures' prompts when both are several."""
    small, prompts, seeds = pictures(4), ["a wart", "a mole", "", "rings"], [3, 1, 4, 1]
    together = upscale(upscaler, CONFIG, small, prompts, seeds)
    for index in range(4):
        place = slice(index, index + 1)
        assert np.array_equal(together[place], upscale(upscaler, CONFIG, small[place], prompts[place], seeds[place]))
    swapped = upscale(upscaler, CONFIG, small, prompts[::-1], seeds)
    assert not np.array_equal(together, swapped)


@pytest.mark.parametrize(("height", "width"), [(5, 8), (8, 11), (3, 1)])
def test_sides_that_the_unet_cannot_take_come_out_four_times_as_large(
    height: int, width: int, upscaler: Upscaler
) -> None:
    made = upscale(upscaler, CONFIG, pictures(1, height, width), ["a wart"], [0])
    assert made.shape == (1, 4 * height, 4 * width, 3)


def test_an_average_is_the_mean_of_its_draws_and_varies_less(upscaler: Upscaler) -> None:
    small = pictures(1)
    draws = [upscale(upscaler, replace(CONFIG, average=k), small, ["a"], [s]) for k in (1, 8) for s in (1, 2)]
    single, mean = (np.abs(a.astype(float) - b).mean() for a, b in (draws[:2], draws[2:]))
    assert mean < 0.7 * single


def test_one_tile_is_no_tile(upscaler: Upscaler) -> None:
    small = pictures(2)
    whole = upscale(upscaler, CONFIG, small, ["a", "b"], [1, 2])
    assert np.array_equal(whole, upscale(upscaler, replace(CONFIG, tile=8), small, ["a", "b"], [1, 2]))


def test_tiles_leave_no_seam(upscaler: Upscaler) -> None:
    """What differs is what the UNet sees beyond a tile: its attention and its normalisation look at the whole."""
    grid = np.linspace(60, 200, 24).astype(np.uint8)
    small = np.broadcast_to(grid[None, :, None, None], (1, 24, 24, 3)).copy()
    config = replace(CONFIG, guidance=1.0, back_projections=3)
    whole = upscale(upscaler, config, small, ["a"], [1]).astype(float)
    tiles = upscale(upscaler, replace(config, tile=16), small, ["a"], [1]).astype(float)
    assert np.abs(whole - tiles).mean() < 6


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("height", "width", "tile"), [(16, 16, 8), (20, 12, 8), (9, 31, 12), (8, 40, 16)])
def test_blending_leaves_what_is_local_unchanged(height: int, width: int, tile: int, scale: int) -> None:
    picture, shapes = torch.randn(2, 3, height, width), set()

    def local(square: torch.Tensor) -> torch.Tensor:
        shapes.add(tuple(square.shape[-2:]))
        return 2 * square.repeat_interleave(scale, -1).repeat_interleave(scale, -2) + 1

    blended = tiled(local, (picture,), tile, scale)
    assert shapes == {(min(height, tile), min(width, tile))}
    torch.testing.assert_close(blended, local(picture))


def test_blending_passes_gradually_from_tile_to_tile() -> None:
    """Two tiles that disagree by 1 make a ramp, not a step."""
    values = iter([0.0, 1.0])
    blended = tiled(lambda square: torch.full_like(square, next(values)), (torch.zeros(1, 1, 16, 28),), 16, 1)
    row = blended[0, 0, 0]
    assert row[0] == 0
    assert row[-1] == 1
    assert (row.diff() >= 0).all()
    assert row.diff().max() < 0.4


def test_back_projection_keeps_colour_and_leaves_detail() -> None:
    truth = torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, (1, 3, 32, 32))).float()
    small = torch.nn.functional.interpolate(truth, (8, 8), mode="bicubic", antialias=True)
    shifted = truth + torch.tensor([0.2, -0.1, 0.1]).view(1, 3, 1, 1)
    restored = back_project(shifted, small, 5)
    assert (restored - truth).abs().max() < 0.02
    assert torch.equal(back_project(shifted, small, 0), shifted)


def test_enlarged_pictures_keep_their_colours(upscaler: Upscaler) -> None:
    """Random weights shift colours wildly; with back-projection the picture, shrunk, is the small one again."""
    small = np.full((2, 8, 8, 3), 90, np.uint8)
    small[1] = [200, 150, 120]
    small[:, 3:5, 3:5] += 20
    plain = upscale(upscaler, CONFIG, small, ["a", "b"], [1, 2])
    kept = upscale(upscaler, replace(CONFIG, back_projections=20), small, ["a", "b"], [1, 2])

    def error(made: Pixels) -> float:
        return float(np.abs(np.stack([shrink(image) for image in made]).astype(float) - small).mean())

    assert error(plain) > 10
    assert error(kept) < 0.2 * error(plain)


def test_closeness_against_its_definitions() -> None:
    true = pictures(3, 32, 32)
    rng = np.random.default_rng(1)
    made = np.clip(true + rng.normal(0, 10, true.shape), 0, 255).astype(np.uint8)
    error = ((made.astype(float) - true) ** 2).reshape(3, -1).mean(1)
    np.testing.assert_allclose(psnr(made, true), 20 * np.log10(255 / np.sqrt(error)))
    assert np.isinf(psnr(true, true)).all()
    np.testing.assert_allclose(ssim(true, true), 1)
    assert (ssim(made, true) < 0.999).all()
    shifted = np.clip(true.astype(int), 0, 250).astype(np.uint8)
    np.testing.assert_allclose(colour_shift(shifted + np.array([3, 4, 0], np.uint8), shifted), 5)
    assert {name: values.shape for name, values in closeness(made, true).items()} == dict.fromkeys(
        ("psnr", "ssim", "colour_shift"), (3,)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("guidance", 0.5), ("noise_level", -1), ("average", 0), ("back_projections", -1), ("tile", 3)],
)
def test_a_bad_config_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"superres\.upscaling\.{key} must be .*; it is {value!r}"):
        replace(CONFIG, **{key: value})  # type: ignore[arg-type]


def test_settings_that_do_not_fit_the_upscaler_are_refused(upscaler: Upscaler) -> None:
    with pytest.raises(ValueError, match=rf"noise_level must be below superres\.upscaler\.max_noise_level={LEVELS}"):
        upscale(upscaler, replace(CONFIG, noise_level=LEVELS), pictures(1), ["a"], [0])
    with pytest.raises(ValueError, match=r"superres\.upscaling\.tile must be a multiple of 2 .*; it is 9"):
        upscale(upscaler, replace(CONFIG, tile=9), pictures(1), ["a"], [0])
