"""Probes: a planted clue is found by the probe that can see it, and nothing is found where there is nothing."""

import numpy as np
import pytest

from synthvision.evaluation.features import (
    border_patches,
    colour_statistics,
    column_features,
    texture_statistics,
)
from synthvision.evaluation.probes import image_probes, metadata_probe, probe, probe_groups
from synthvision.manifest import Manifest, Record

N = 120
TARGET = np.arange(N) % 2 == 0
GROUPS = [f"p{n // 4}" for n in range(N)]  # two images of either kind per patient


def noise_images(seed: int = 0) -> np.ndarray:
    """Return (N, 32, 32, 3) images of smooth colour under noise, with nothing to tell them apart."""
    rng = np.random.default_rng(seed)
    base = rng.integers(80, 170, (N, 1, 1, 3))
    return np.clip(base + rng.normal(0, 12, (N, 32, 32, 3)), 0, 255).astype(np.uint8)


def best(found) -> float:
    return max(estimate.value for estimate in found.models.values())


def test_nothing_to_find_is_not_found():
    for found in image_probes(noise_images(), TARGET, GROUPS, "synthetic from real", "origin"):
        assert any(estimate.low <= 0.5 <= estimate.high for estimate in found.models.values())
        assert "far better" not in found.sentence
        assert "almost always" not in found.sentence
        assert (found.images, found.groups) == (N, 30)


def test_a_tint_is_found_by_colour_and_smoothing_by_texture():
    tinted, smooth = noise_images(1), noise_images(2)
    tinted[TARGET, ..., 0] = (tinted[TARGET, ..., 0] * 0.75).astype(np.uint8)
    blurred = smooth.astype(float)
    smooth[TARGET] = ((blurred + np.roll(blurred, 1, 1) + np.roll(blurred, 1, 2)) / 3)[TARGET].astype(np.uint8)
    colour, _, borders = image_probes(tinted, TARGET, GROUPS, "synthetic from real", "origin")
    assert best(colour) > 0.9
    assert best(borders) > 0.9
    assert "generator's traces" in colour.sentence
    _, texture, _ = image_probes(smooth, TARGET, GROUPS, "synthetic from real", "origin")
    assert best(texture) > 0.99
    assert "almost always" in texture.sentence


def test_a_mark_in_the_middle_is_not_seen_at_the_borders():
    images = noise_images(3)
    images[TARGET, 12:20, 12:20] = 255
    colour, _, borders = image_probes(images, TARGET, GROUPS, "lesion from normal", "class")
    assert best(colour) > 0.99
    assert best(borders) < 0.65


def test_metadata_that_give_the_class_away_are_found_and_others_are_not():
    rng = np.random.default_rng(4)
    leaky = [f"camera-{int(t)}" if rng.random() < 0.9 else "camera-2" for t in TARGET]
    found = metadata_probe({"camera": leaky}, TARGET, GROUPS, "lesion from normal", "class")
    assert best(found) > 0.9
    assert "may rest on this clue" in found.sentence
    innocent = {"file size": rng.integers(7000, 9000, N).tolist(), "site": rng.choice(["face", "leg"], N).tolist()}
    assert best(metadata_probe(innocent, TARGET, GROUPS, "lesion from normal", "class")) < 0.65


def test_a_patients_images_never_help_with_one_another():
    # Every patient has one kind only and a colour of its own: known patients would give AUC 1, new ones nothing.
    rng = np.random.default_rng(5)
    patients = np.arange(200) // 5
    features = rng.normal(size=(40, 6))[patients] + rng.normal(0, 0.01, (200, 6))
    target = rng.permutation(40)[patients] < 20
    grouped = probe("colour", features, target, [str(p) for p in patients], "a from b", "origin")
    alone = probe("colour", features, target, [str(n) for n in range(200)], "a from b", "origin")
    assert grouped.models["gradient boosting"].value < 0.75
    assert alone.models["gradient boosting"].value > 0.95


def test_the_same_seed_gives_the_same_probe():
    first, second = (image_probes(noise_images(6), TARGET, GROUPS, "a from b", "origin", seed=7) for _ in range(2))
    assert first == second


def test_too_few_patients_are_an_error_that_says_so():
    with pytest.raises(ValueError, match="needs 5 patients on either side to tell a from b; there are 4"):
        probe(
            "colour", np.zeros((16, 1)), np.arange(16) % 2 == 0, [str(n // 4) for n in range(16)], "a from b", "origin"
        )


def test_features_have_the_shapes_and_values_that_they_say():
    images = noise_images(8)
    assert colour_statistics(images).shape == (N, 18)
    np.testing.assert_allclose(colour_statistics(images)[:, :3], images.mean(axis=(1, 2)) / 255)
    assert texture_statistics(images).shape == (N, 21)
    assert np.isfinite(texture_statistics(np.zeros_like(images))).all()
    assert np.isfinite(border_patches(np.zeros_like(images))).all()
    with pytest.raises(ValueError, match="images must be uint8"):
        colour_statistics(images.astype(float))


def test_columns_become_numbers_or_one_column_per_value():
    numbers = column_features({"size": ["1", "3", "", "8"], "site": ["leg", "arm", "leg", ""]})
    assert numbers.tolist() == [[1, 0, 0, 0, 1], [3, 0, 0, 1, 0], [3, 1, 0, 0, 1], [8, 0, 1, 0, 0]]


def test_a_painted_image_belongs_to_the_patient_it_was_painted_on():
    real = Record("r", "r.png", "0" * 64, "normal", "real", "train", patient="p1")
    painted = Record("s", "s.png", "0" * 64, "lesion", "synthetic", "train", painted_on="r")
    elsewhere = Record("t", "t.png", "0" * 64, "lesion", "synthetic", "train", painted_on="not-here")
    free = Record("u", "u.png", "0" * 64, "lesion", "synthetic", "train")
    given = Manifest((painted, elsewhere, free), "")
    assert probe_groups(given, Manifest((real,), "")) == ["p1", "not-here", "u"]
