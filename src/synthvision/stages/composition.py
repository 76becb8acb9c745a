"""What an arm trains on: of the disease what the arm says, of the other classes real images or their counterparts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synthvision.artifact import digest_of
from synthvision.manifest import Manifest
from synthvision.stages.context import Context

WHAT = "composition"  # keeps these draws apart from others made with the same seed


def training_phases(given: Context) -> list[Manifest]:
    """Return the training images of each phase, the last of which is the arm's own.

    Raises:
        ValueError: the arm asks for more images than there are.
    """
    arm, real = given.study.arm, given.manifest("prepare")
    if arm.symmetric:
        real = _replaced(real, given.manifest("counterparts"))
    of_disease = _of_disease(given, real)
    before = [arm.before.positives] if arm.before else []
    return [_phase(given, real, of_disease, positives) for positives in (*before, arm.positives)]


def _replaced(real: Manifest, counterparts: Manifest) -> Manifest:
    """Return the real images with each one's counterpart in its place, where it has one."""
    made = {record.painted_on: record for record in counterparts}
    return Manifest(tuple(made.get(record.image_id, record) for record in real), real.root)


def _of_disease(given: Context, real: Manifest) -> dict[str, Manifest]:
    """Return the images of the disease by their origin."""
    arm, positive = given.study.arm, given.study.disease.positive
    there = {"guides": real.where(split="guide"), "real": real.where(split="train", label=positive)}
    if "synthetic" in arm.origins:
        there["synthetic"] = given.manifest("review").where(decision="accept").with_values(lambda _: {"split": "train"})
    found = {name: _some(given, there[name], arm.counts.get(name), f"arm.counts.{name}") for name in arm.origins}
    if arm.ratio is not None:
        number = round(arm.ratio * sum(len(images) for name, images in found.items() if name != "synthetic"))
        found["synthetic"] = _some(given, there["synthetic"], number, f"arm.ratio={arm.ratio:g}, number of synthetic")
    return found


def _phase(given: Context, real: Manifest, of_disease: Mapping[str, Manifest], positives: Sequence[str]) -> Manifest:
    arm, disease = given.study.arm, given.study.disease
    diseased = [of_disease[name] for name in positives]
    most = sum(len(images) for images in diseased) if arm.equal_classes else None
    kept: set[str] = set()
    for name in disease.classes[1:]:
        images = _some(given, real.where(split="train", label=name), arm.counts.get(name), f"arm.counts.{name}")
        kept |= set(_first(given, images, len(images) if most is None else most))
    return sum(diseased, real.where(lambda record: record.image_id in kept))


def _some(given: Context, images: Manifest, number: int | None, key: str) -> Manifest:
    """Return so many of some images, in their own order; all where there is no number."""
    if number is None:
        return images
    if number > len(images):
        name = given.study.arm.name
        raise ValueError(f"arm={name}: {key} must be at most the {len(images)} there are; it is {number}")
    kept = set(_first(given, images, number))
    return images.where(lambda record: record.image_id in kept)


def _first(given: Context, images: Manifest, number: int) -> list[str]:
    """Return ids in an order that depends on seed and id alone: a smaller number's are among a greater one's."""
    return sorted(images.column("image_id"), key=lambda name: digest_of([given.study.seed, WHAT, name]))[:number]
