"""Rounds of generation accumulate: images that readers accepted in one round count in the next.

A round is a finished stage `generate`. Other prompts, numbers, seeds and ways of sampling make another round of the
same pool. Another backbone, another recipe of fine-tuning or other prepared images do not: an ablation must not be
trained on images of what it is compared with, nor any classifier on a candidate painted into today's test image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from synthvision import artifact
from synthvision.manifest import Manifest, Record
from synthvision.review.export import complete
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.store import Event, Key
from synthvision.stages.context import MANIFEST


def other_rounds(root: Path, generate: Path, current: Mapping[Key, Event], policy: PhysicianPolicy) -> Manifest:
    """Return the candidates of other rounds on which no decision is missing; none unless the policy wants them.

    What comes again in this round, byte for byte or made with the same draws and settings, is left to this round.

    Args:
        root: the study's folder.
        generate: folder of this round.
        current: the decisions that hold.
        policy: whether other rounds count, and when an image is decided on.

    Raises:
        ValueError: a round cannot be read; the message names its folder and the remedy.
    """
    if policy.rounds == "this":
        return Manifest((), root)
    mine = list(Manifest.read(generate / MANIFEST, root))
    names, known = {record.image_id for record in mine}, {key for record in mine for key in _identities(record)}
    found = []
    for folder in _alike(root, generate):
        for record in complete(_read(folder, root), current, policy):
            if known.isdisjoint(_identities(record)):
                other = f"{record.image_id}-{record.sha256[:8]}"  # the same draws with other settings
                found.append(replace(record, image_id=other) if record.image_id in names else record)
                names.add(record.image_id)
                known.update(_identities(record))
    return Manifest(tuple(found), root)


def rounds_digest(root: Path) -> str:
    """Return a digest of all finished rounds: a new one, or one that was removed, makes a new review."""
    return artifact.digest_of([record.output for _, record in _finished(root, "generate")])


def _identities(record: Record) -> set[str]:
    return {record.sha256, f"{record.image_id} {record.settings}"}


def _alike(root: Path, generate: Path) -> list[Path]:
    """Return the folders of the other rounds that differ from this one in prompts, numbers and draws at most."""
    recipes = {record.output: _recipe(record) for _, record in _finished(root, "dreambooth")}
    rounds = dict(_finished(root, "generate"))
    mine = rounds.pop(generate)

    def alike(other: artifact.StageRecord) -> bool:
        weights = [record.inputs.get("dreambooth", "") for record in (mine, other)]
        recipe = recipes.get(weights[0])
        return (
            mine.inputs.get("prepare") == other.inputs.get("prepare")
            and mine.inputs.keys()
            == other.inputs.keys()  # of both or of neither, candidates passed through the upscaler
            and mine.config["backbone"] == other.config["backbone"]
            and (weights[0] == weights[1] or (recipe is not None and recipe == recipes.get(weights[1])))
        )

    return [folder for folder, record in rounds.items() if alike(record)]


def _recipe(record: artifact.StageRecord) -> Mapping[str, Any]:
    return {key: record.config[key] for key in ("dreambooth", "weights")}


def _finished(root: Path, stage: str) -> Iterator[tuple[Path, artifact.StageRecord]]:
    for folder in sorted((root / stage).glob("*/")):
        record = artifact.finished(folder)
        if record is not None:
            yield folder, record


def _read(folder: Path, root: Path) -> Manifest:
    try:
        return Manifest.read(folder / MANIFEST, root)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"an earlier round of generation cannot be read ({error}); set review.rounds=this to leave it out, or "
            f"remove {folder}"
        ) from error
