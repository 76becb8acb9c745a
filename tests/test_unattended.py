"""The unattended policy accepts what passes, says why, and never more than was asked for."""

from dataclasses import replace

import numpy as np
import pytest

from synthvision.artifact import sha256_file
from synthvision.data.images import write_png
from synthvision.manifest import Manifest, Record
from synthvision.review.unattended import UnattendedPolicy, decide

SIDE = 32
POLICY = UnattendedPolicy(max_similarity=0.9, min_change=0.02, accept=2)


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def manifest(root, images, origin, **values):
    records = []
    for name, image in images.items():
        write_png(root / f"{name}.png", image)
        digest = sha256_file(root / f"{name}.png")
        records.append(Record(name, f"{name}.png", digest, "lesion", origin, **values))
    return Manifest(tuple(records), root)


@pytest.fixture
def guides(tmp_path):
    return manifest(tmp_path, {"guide": noise(0)}, "real", split="guide")


@pytest.fixture
def candidates(tmp_path):
    blank = np.full((SIDE, SIDE, 3), 90, np.uint8)
    images = {"blank": blank, "copy": noise(0)[:, ::-1].copy(), "a": noise(1), "b": noise(2), "c": noise(3)}
    return manifest(tmp_path, images, "synthetic")


def test_blank_images_and_copies_are_rejected_and_the_rest_is_surplus(candidates, guides):
    decided = decide(candidates, guides, POLICY, SIDE)
    assert decided.column("decision") == ["reject", "reject", "accept", "accept", "reject"]
    assert [reason.split(" ")[0].rstrip(":") for reason in decided.column("reason")] == [
        "blank",
        "near",
        "passed",
        "passed",
        "surplus",
    ]
    assert "guide (mirrored): similarity 1.00, at most 0.9 allowed" in decided.column("reason")[1]
    assert set(decided.column("reviewer")) == {"unattended"}
    assert decided.column("image_id") == candidates.column("image_id")


def test_a_painted_image_must_differ_from_its_background(candidates, guides, tmp_path):
    grounds = manifest(tmp_path, {"ground": noise(4), "same": noise(1)}, "real", split="train")
    painted = candidates.where(lambda record: record.image_id in ("a", "b"))
    painted = painted.with_values(lambda record: {"painted_on": {"a": "same", "b": "ground"}[record.image_id]})
    decided = decide(painted, guides, replace(POLICY, accept=1), SIDE, grounds)
    assert decided.column("decision") == ["reject", "accept"]
    assert decided.column("reason")[0] == "blank: change 0.000, at least 0.02 wanted"
    with pytest.raises(ValueError, match=r"not among the backgrounds: \['ground'\]"):
        decide(painted, guides, POLICY, SIDE, grounds.where(image_id="same"))


def test_too_few_that_pass_is_an_error_that_says_why(candidates, guides):
    with pytest.raises(ValueError, match=r"review\.accept=4 .* only 3 of 5 .*'blank': 1.*generate\.candidates"):
        decide(candidates, guides, replace(POLICY, accept=4), SIDE)


@pytest.mark.parametrize(
    ("key", "value"), [("max_similarity", 0), ("min_change", -1), ("min_change", 5), ("accept", 0)]
)
def test_a_bad_policy_names_its_key(key, value):
    with pytest.raises(ValueError, match=rf"review\.{key} must be"):
        replace(POLICY, **{key: value})
