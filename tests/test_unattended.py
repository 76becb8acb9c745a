"""The unattended policy accepts what passes, says why, and never more than was asked for."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from synthvision.artifact import sha256_file
from synthvision.data.images import write_png
from synthvision.manifest import Manifest, Record
from synthvision.review.unattended import UnattendedPolicy, decide

SIDE = 32
POLICY = UnattendedPolicy(min_change=0.02, accept=2)


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
def candidates(tmp_path):
    blank = np.full((SIDE, SIDE, 3), 90, np.uint8)
    images = {"blank": blank, "copy": noise(0), "a": noise(1), "b": noise(2), "c": noise(3)}
    rejected = {"decision": "reject", "reason": "copy of guide g (mirrored): correlation 1", "reviewer": "the gate"}
    return manifest(tmp_path, images, "synthetic").with_values(
        lambda record: rejected if record.image_id == "copy" else {}
    )


def test_blank_images_are_rejected_copies_stay_so_and_the_rest_is_surplus(candidates):
    decided = decide(candidates, POLICY, SIDE)
    assert decided.column("decision") == ["reject", "reject", "accept", "accept", "reject"]
    assert [reason.split(" ")[0].rstrip(":") for reason in decided.column("reason")] == [
        "blank",
        "copy",
        "passed",
        "passed",
        "surplus",
    ]
    assert decided.column("reviewer") == ["unattended", "the gate", *["unattended"] * 3]
    assert decided.records[1] == candidates.records[1]
    assert decided.column("image_id") == candidates.column("image_id")


def of_sets(tmp_path, **counts):
    images = {f"{name}{k}": noise(100 * len(name) + k) for name, count in counts.items() for k in range(count)}
    return manifest(tmp_path, images, "synthetic").with_values(
        lambda record: {"set": record.image_id.rstrip("0123456789")}
    )


def accepted_by_set(decided):
    return dict(Counter(record.set for record in decided if record.decision == "accept"))


def test_sets_share_what_is_wanted_as_evenly_as_they_can(tmp_path):
    candidates = of_sets(tmp_path, face=2, arms=6, backs=6)
    assert accepted_by_set(decide(candidates, replace(POLICY, accept=9), SIDE)) == {"face": 2, "arms": 4, "backs": 3}
    bounded = replace(POLICY, accept=9, per_set=(1, 3))
    with pytest.raises(ValueError, match=r"per_set=\[1, 3\].*accept=9"):
        decide(candidates, bounded, SIDE)
    assert accepted_by_set(decide(candidates, replace(bounded, accept=8), SIDE)) == {"face": 2, "arms": 3, "backs": 3}
    with pytest.raises(ValueError, match=r"per_set=\[3, 5\].*'face': 2"):
        decide(candidates, replace(POLICY, accept=9, per_set=(3, 5)), SIDE)


def test_a_painted_image_must_differ_from_its_background(candidates, tmp_path):
    grounds = manifest(tmp_path, {"ground": noise(4), "same": noise(1)}, "real", split="train")
    painted = candidates.where(lambda record: record.image_id in ("a", "b"))
    painted = painted.with_values(lambda record: {"painted_on": {"a": "same", "b": "ground"}[record.image_id]})
    decided = decide(painted, replace(POLICY, accept=1), SIDE, grounds)
    assert decided.column("decision") == ["reject", "accept"]
    assert decided.column("reason")[0] == "blank: change 0.000, at least 0.02 wanted"
    with pytest.raises(ValueError, match=r"not among the backgrounds: \['ground'\]"):
        decide(painted, POLICY, SIDE, grounds.where(image_id="same"))


def test_too_few_that_pass_is_an_error_that_says_why(candidates):
    with pytest.raises(ValueError, match=r"review\.accept=4 .* only 3 of 5 .*'blank': 1.*generate\.candidates"):
        decide(candidates, replace(POLICY, accept=4), SIDE)


@pytest.mark.parametrize(
    ("key", "value"), [("min_change", -1), ("min_change", 5), ("accept", 0), ("per_set", (3, 2)), ("per_set", (1,))]
)
def test_a_bad_policy_names_its_key(key, value):
    with pytest.raises(ValueError, match=rf"review\.{key} must be"):
        replace(POLICY, **{key: value})
