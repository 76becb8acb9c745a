"""What automatic checks say of each image. A reader is told after the own decision, never before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track

from synthvision.artifact import digest_of, write_json
from synthvision.data.images import load_batch
from synthvision.data.similarity import contrast, difference, nearest_guides
from synthvision.manifest import Manifest
from synthvision.review.policy import PhysicianPolicy

BLOCK = 64  # images held in memory at once


@dataclass(frozen=True)
class Finding:
    """The guide that an image is most like, and what is wrong with it; empty where nothing is."""

    similarity: float  # correlation with that guide; see data/similarity.py
    guide: str  # image_id
    fault: str


def findings(
    images: Manifest, guides: Manifest, backgrounds: Manifest, policy: PhysicianPolicy, size: int, folder: Path
) -> Mapping[str, Finding]:
    """Return the finding of each image by its digest; kept in `folder`, so that the page opens at once next time.

    Args:
        images: candidates and the real images among them, alike: a real one must not be told by having no finding.
        guides: that no candidate may copy.
        backgrounds: real images, among them those that candidates were painted into.
        policy: its limits.
        size: side at which images are compared, in pixels.
        folder: of the decisions.
    """
    limits = [policy.max_similarity, policy.min_change, size]
    file = folder / f"findings-{digest_of([images.digest(), guides.digest(), limits])[:16]}.json"
    if not file.is_file():
        rows = _findings(images, guides, backgrounds, policy, size)
        write_json(file, {digest: asdict(finding) for digest, finding in rows})
    return {digest: Finding(**values) for digest, values in json.loads(file.read_text()).items()}


def _findings(
    images: Manifest, guides: Manifest, backgrounds: Manifest, policy: PhysicianPolicy, size: int
) -> Iterator[tuple[str, Finding]]:
    templates, ground = load_batch(guides, size), {record.image_id: record for record in backgrounds}
    starts = range(0, len(images), BLOCK)
    for start in track(starts, description="automatic checks", disable=len(starts) < 2):
        block = images.records[start : start + BLOCK]
        pixels = load_batch(Manifest(block, images.root), size)
        for row, (record, near) in enumerate(zip(block, nearest_guides(pixels, templates), strict=True)):
            guide = guides.records[near.guide].image_id
            painted_on = ground.get(record.painted_on)
            one = pixels[row : row + 1]
            change = (
                difference(one, load_batch(Manifest((painted_on,), backgrounds.root), size))
                if painted_on
                else contrast(one)
            )
            fault = "near copy of a guide" if near.similarity > policy.max_similarity else ""
            fault = fault or ("shows next to nothing" if change[0] < policy.min_change else "")
            yield record.sha256, Finding(round(near.similarity, 3), guide, fault)
