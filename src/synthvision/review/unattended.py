"""Review without a reviewer: accept what passes automatic checks. No physician has seen these images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthvision.data.images import load_batch
from synthvision.data.similarity import Nearest, contrast, difference, nearest_guides
from synthvision.manifest import Manifest

REVIEWER = "unattended"
BLOCK = 256  # images held in memory at once


@dataclass(frozen=True)
class UnattendedPolicy:
    """What an image must pass.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    max_similarity: float  # to any guide, a correlation; above it the image is a near copy
    min_change: float  # root mean square, 1 is black to white: from the picture painted into, or from one colour
    accept: int  # how many images are wanted; the first that pass are taken

    def __post_init__(self) -> None:
        if not 0 < self.max_similarity <= 1:
            raise ValueError(f"review.max_similarity must be above 0 and at most 1; it is {self.max_similarity}")
        if not 0 <= self.min_change < 1:
            raise ValueError(f"review.min_change must be at least 0 and below 1; it is {self.min_change}")
        if self.accept < 1:
            raise ValueError(f"review.accept must be at least 1; it is {self.accept}")


def decide(
    candidates: Manifest, guides: Manifest, policy: UnattendedPolicy, size: int, backgrounds: Manifest | None = None
) -> Manifest:
    """Return the candidates, each with decision, reason and the reviewer "unattended".

    Args:
        candidates: in the order in which they are taken.
        guides: that no candidate may copy.
        policy: the checks.
        size: side at which images are compared, in pixels.
        backgrounds: the real images that painted candidates were painted into.

    Raises:
        ValueError: a painted candidate's background is missing, or fewer than `policy.accept` pass.
    """
    decisions: dict[str, dict[str, str]] = {}
    accepted = 0
    for name, check, fault in _judge(candidates, guides, policy, size, backgrounds):
        if not fault and accepted >= policy.accept:
            fault = f"surplus: {policy.accept} were wanted"
        accepted += not fault
        values = {"decision": "reject" if fault else "accept", "reason": fault or f"passed: {check}"}
        decisions[name] = values | {"reviewer": REVIEWER}
    if accepted < policy.accept:
        reasons = Counter(values["reason"].split(":")[0] for values in decisions.values())
        raise ValueError(
            f"review.accept={policy.accept} images are wanted, but only {accepted} of {len(candidates)} candidates "
            f"pass ({dict(reasons)}); raise generate.candidates, or look at the candidates before changing "
            f"review.max_similarity={policy.max_similarity} or review.min_change={policy.min_change}"
        )
    return candidates.with_values(lambda record: decisions[record.image_id])


def _judge(
    candidates: Manifest, guides: Manifest, policy: UnattendedPolicy, size: int, backgrounds: Manifest | None
) -> Iterator[tuple[str, str, str]]:
    """Yield image_id, what was measured, and the fault or an empty string."""
    templates = load_batch(guides, size)
    for start in range(0, len(candidates), BLOCK):
        block = Manifest(candidates.records[start : start + BLOCK], candidates.root)
        images = load_batch(block, size)
        changes = _changes(block, images, size, backgrounds)
        for record, change, near in zip(block, changes, nearest_guides(images, templates), strict=True):
            guide = guides.records[near.guide].image_id
            measured = f"change {change:.3f}, similarity {near.similarity:.2f} to guide {guide}"
            yield record.image_id, measured, _fault(float(change), near, guide, policy)


def _fault(change: float, near: Nearest, guide: str, policy: UnattendedPolicy) -> str:
    if change < policy.min_change:
        return f"blank: change {change:.3f}, at least {policy.min_change:g} wanted"
    if near.similarity > policy.max_similarity:
        return (
            f"near copy of guide {guide} ({near.transform}): similarity {near.similarity:.2f}, "
            f"at most {policy.max_similarity:g} allowed"
        )
    return ""


def _changes(
    candidates: Manifest, images: NDArray[np.uint8], size: int, backgrounds: Manifest | None
) -> NDArray[np.float64]:
    """Return how far each image is from showing nothing: from its background, or from one colour; (N,)."""
    changes = contrast(images)
    painted = [row for row, record in enumerate(candidates) if record.painted_on]
    if painted:
        names = [candidates.records[row].painted_on for row in painted]
        below = (backgrounds or Manifest((), candidates.root)).where(lambda record: record.image_id in names)
        where = {record.image_id: row for row, record in enumerate(below)}
        missing = sorted(set(names) - set(where))
        if missing:
            raise ValueError(f"candidates are painted into images that are not among the backgrounds: {missing[:5]}")
        changes[painted] = difference(images[painted], load_batch(below, size)[[where[name] for name in names]])
    return changes
