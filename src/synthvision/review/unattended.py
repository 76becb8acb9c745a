"""Review without a reviewer: accept what passes automatic checks. No physician has seen these images.

Copies of guides come here rejected by the memorisation gate, and stay so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthvision.data.images import load_batch
from synthvision.data.similarity import contrast, difference
from synthvision.manifest import Manifest

REVIEWER = "unattended"
BLOCK = 256  # images held in memory at once


@dataclass(frozen=True)
class UnattendedPolicy:
    """What an image must pass.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    min_change: float  # root mean square, 1 is black to white: from the picture painted into, or from one colour
    accept: int  # how many images are wanted of all sets together; the first that pass are taken
    per_set: Sequence[int] | None = None  # fewest and most of each of several sets; None: as even as can be

    def __post_init__(self) -> None:
        if not 0 <= self.min_change < 1:
            raise ValueError(f"review.min_change must be at least 0 and below 1; it is {self.min_change}")
        if self.accept < 1:
            raise ValueError(f"review.accept must be at least 1; it is {self.accept}")
        if self.per_set is not None and (len(self.per_set) != 2 or not 0 <= self.per_set[0] <= self.per_set[1]):
            raise ValueError(
                f"review.per_set must be null or [fewest, most], 0 <= fewest <= most; it is {self.per_set}"
            )


def decide(candidates: Manifest, policy: UnattendedPolicy, size: int, backgrounds: Manifest | None = None) -> Manifest:
    """Return the candidates, each with decision, reason and reviewer: "unattended", or who rejected it before.

    Args:
        candidates: in the order in which they are taken.
        policy: the checks.
        size: side at which images are compared, in pixels.
        backgrounds: the real images that painted candidates were painted into.

    Raises:
        ValueError: a painted candidate's background is missing, fewer than `policy.accept` pass, or a set has too few.
    """
    checked = {name: (check, fault) for name, check, fault in _judge(candidates, policy, size, backgrounds)}
    passing = [record for record in candidates if not checked[record.image_id][1]]
    left = Counter(_shares(Counter(record.set for record in passing), _known_sets(candidates), policy, checked))
    decisions: dict[str, dict[str, str]] = {}
    for record in candidates:
        check, fault = checked[record.image_id]
        if not fault and not left[record.set]:
            fault = f"surplus: {policy.accept} were wanted"
        left[record.set] -= not fault
        values = {"decision": "reject" if fault else "accept", "reason": fault or f"passed: {check}"}
        decisions[record.image_id] = {} if record.decision == "reject" else values | {"reviewer": REVIEWER}
    return candidates.with_values(lambda record: decisions[record.image_id])


def _known_sets(candidates: Manifest) -> list[str]:
    return list(dict.fromkeys(candidates.column("set")))


def _shares(
    passing: Mapping[str, int], sets: Sequence[str], policy: UnattendedPolicy, checked: Mapping[str, tuple[str, str]]
) -> dict[str, int]:
    """Return how many of each set are accepted: `policy.accept` in all, as evenly as those that pass allow."""
    fewest, most = policy.per_set or (0, policy.accept)
    short = {name: passing[name] for name in sets if passing[name] < fewest}
    room = {name: min(passing[name], most) for name in sets}
    if short or sum(room.values()) < policy.accept:
        reasons = Counter(fault.split(":")[0].split(" of ")[0] for _, fault in checked.values() if fault)
        wanted = f"review.per_set={list(policy.per_set)}: " if policy.per_set else ""
        raise ValueError(
            f"{wanted}review.accept={policy.accept} images are wanted, but only {sum(passing.values())} of "
            f"{len(checked)} candidates pass ({dict(reasons)}; by set {dict(passing)}); raise generate.candidates, or "
            f"look at the candidates before changing review.min_change={policy.min_change}"
        )
    shares = dict.fromkeys(sets, 0)
    while sum(shares.values()) < policy.accept:  # one more for the set that has fewest and still has some
        open_sets = [name for name in sets if shares[name] < room[name]]
        shares[min(open_sets, key=lambda name: shares[name])] += 1
    return shares


def _judge(
    candidates: Manifest, policy: UnattendedPolicy, size: int, backgrounds: Manifest | None
) -> Iterator[tuple[str, str, str]]:
    """Yield image_id, what was measured, and the fault or an empty string."""
    for start in range(0, len(candidates), BLOCK):
        block = Manifest(candidates.records[start : start + BLOCK], candidates.root)
        changes = _changes(block, load_batch(block, size), size, backgrounds)
        for record, change in zip(block, changes.tolist(), strict=True):
            fault = f"blank: change {change:.3f}, at least {policy.min_change:g} wanted"
            if record.decision == "reject":
                fault = record.reason or "rejected before"
            elif change >= policy.min_change:
                fault = ""
            yield record.image_id, f"change {change:.3f}", fault


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
