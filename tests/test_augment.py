"""Each operation against its equation, and the whole against its promises."""

from dataclasses import fields

import pytest
import torch
from scipy.ndimage import gaussian_filter

from synthvision.classification.augment import AugmentConfig, augment
from synthvision.classification.draws import Draw, generator, key

STANDARD = AugmentConfig(True, 15, 0.06, 0.1, 0.1, 0.1, 0.1, 0.03, 0.006, 0.02)
HEAVY = AugmentConfig(True, 45, 0.12, 0.3, 0.2, 0.2, 0.2, 0.06, 0.015, 0.04)  # for an arm of a few images, repeated


def images(count: int = 8, side: int = 12) -> torch.Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(1))


def draw(index: int = 0) -> torch.Generator:
    return generator(0, Draw.AUGMENT, index)


def apply(x: torch.Tensor, index: int = 0, **strengths: float) -> torch.Tensor:
    return augment(x, AugmentConfig(**strengths), draw(index))


def test_without_operations_nothing_changes():
    x = images()
    torch.testing.assert_close(apply(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("config", [STANDARD, HEAVY])
def test_the_same_key_gives_the_same_bits_and_another_key_others(config):
    x = images()
    before = x.clone()
    first, again, other = augment(x, config, draw(0)), augment(x, config, draw(0)), augment(x, config, draw(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)  # the input is left alone


@pytest.mark.parametrize("name", [field.name for field in fields(AugmentConfig)])
def test_each_operation_changes_images_and_keeps_shape_range_and_type(name):
    x = images()
    y = apply(x, **{name: True if name == "flips" else 0.3})
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.min() >= 0
    assert y.max() <= 1
    assert not torch.equal(x, y)


def test_equal_images_are_changed_each_in_its_own_way():
    y = augment(images(1).expand(6, -1, -1, -1), STANDARD, draw())
    assert len({image.numpy().tobytes() for image in y}) == 6


def test_flips_are_the_eight_symmetries_of_the_square_equally_often():
    x = images(1)
    symmetries = [torch.rot90(z, turns, (2, 3)) for z in (x, x.flip(3)) for turns in range(4)]
    y = apply(x.expand(4000, -1, -1, -1), flips=True)
    distance = torch.stack([(y - symmetry).abs().amax((1, 2, 3)) for symmetry in symmetries], 1)  # (N, 8)
    assert distance.amin(1).max() < 1e-4
    shares = torch.bincount(distance.argmin(1), minlength=8) / len(y)
    assert (shares - 1 / 8).abs().max() < 0.025


def test_shift_moves_a_dot_by_at_most_its_share():
    x = torch.zeros(200, 3, 21, 21)
    x[:, :, 10, 10] = 1
    y = apply(x, shift=0.2)[:, 0]
    place = torch.arange(21.0)
    centre = torch.stack([(y.sum(2) * place).sum(1), (y.sum(1) * place).sum(1)], 1) / y.sum((1, 2))[:, None]
    assert (centre - 10).abs().max() <= 0.2 * 21 + 1e-3
    assert (centre - 10).abs().max() > 0.15 * 21


def test_moving_a_plain_image_shows_no_border():
    x = torch.full((50, 3, 16, 16), 0.7)
    torch.testing.assert_close(apply(x, flips=True, rotation=45, shift=0.3, scale=0.5), x)


def test_colour_operations_match_their_equations():
    x = images() * 0.4 + 0.3  # far enough from 0 and 1 that nothing is clipped
    u = 2 * torch.rand((len(x), 14), generator=draw()) - 1
    bright, contrast, saturation = (1 + 0.2 * u[:, 6 + i, None, None, None] for i in range(3))
    gain = 1 + 0.1 * u[:, 9:12, None, None]
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    expected = x * gain
    grey = (expected * luma).sum(1, keepdim=True)
    expected = grey + saturation * (expected - grey)
    mean = (expected * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    expected = bright * (mean + contrast * (expected - mean))
    y = apply(x, brightness=0.2, contrast=0.2, saturation=0.2, colour=0.1)
    torch.testing.assert_close(y, expected.clamp(0, 1))


def test_blur_is_a_gaussian_as_scipy_computes_it():
    x = torch.zeros(4, 3, 31, 31)
    x[:, :, 15, 15] = 1
    sigma = 0.08 * 31 * torch.rand((4, 14), generator=draw())[:, 12]
    y = apply(x, blur=0.08)
    for image, blurred, s in zip(x, y, sigma, strict=True):
        expected = gaussian_filter(image[0].numpy(), float(s), truncate=8)
        torch.testing.assert_close(blurred[0], torch.from_numpy(expected), rtol=1e-3, atol=2e-4)


def test_noise_has_the_drawn_spread():
    x = torch.full((30, 3, 40, 40), 0.5)
    spread = 0.05 * torch.rand((30, 14), generator=draw())[:, 13]
    measured = (apply(x, noise=0.05) - x).std((1, 2, 3))
    torch.testing.assert_close(measured, spread, rtol=0.06, atol=1e-4)


def test_one_strength_does_not_change_another_operations_draws():
    x = images()
    both, alone = apply(x, flips=True, noise=1e-6), apply(x, flips=True)
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [({"noise": -0.1}, "noise must be in .*it is -0.1"), ({"shift": 0.6}, "shift"), ({"rotation": 200}, "rotation")],
)
def test_broken_rules_are_named(strengths, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**strengths)


def test_keys_differ_in_every_part():
    keys = {key(s, w, a, b) for s in range(3) for w in Draw for a in range(3) for b in range(3)}
    assert len(keys) == 3 * len(Draw) * 9
    assert key(1, Draw.AUGMENT, 2, 3) == key(1, Draw.AUGMENT, 2, 3)
