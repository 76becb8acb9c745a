"""Which probes a study's images are put to: could its test be won without seeing the disease?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from synthvision.artifact import write_json
from synthvision.data.images import load_batch
from synthvision.evaluation.evaluate import SUBGROUP_COLUMNS
from synthvision.evaluation.intervals import Estimate
from synthvision.evaluation.probes import FOLDS, Probe, image_probes, metadata_probe, probe_groups
from synthvision.manifest import Manifest


def probe_study(known: Manifest, synthetic: Manifest, positive: str, size: int) -> tuple[Probe, ...]:
    """Return the probes that these images are enough for.

    Args:
        known: real images but for the test set's: of a test set nothing may be known before it is opened.
        synthetic: accepted images of the disease; may be empty.
        positive: the disease class.
        size: side at which pictures are compared, in pixels.
    """
    return (*_of_origin(known, synthetic, positive, size), *_of_class(known, positive))


def _of_origin(known: Manifest, synthetic: Manifest, positive: str, size: int) -> tuple[Probe, ...]:
    images = known.where(label=positive) + synthetic
    is_synthetic = [record.origin == "synthetic" for record in images]
    groups = probe_groups(images, known)
    if _fewest(groups, is_synthetic) < FOLDS:
        return ()
    question = "synthetic from real images of the disease"
    return image_probes(load_batch(images, size), np.array(is_synthetic), groups, question, "origin")


def _of_class(known: Manifest, positive: str) -> tuple[Probe, ...]:
    columns = {name: known.column(name) for name in SUBGROUP_COLUMNS if any(known.column(name))}
    is_positive = [record.label == positive for record in known]
    groups = probe_groups(known, known)
    if not columns or _fewest(groups, is_positive) < FOLDS:
        return ()
    return (metadata_probe(columns, np.array(is_positive), groups, f"{positive} from the other classes", "class"),)


def _fewest(groups: Sequence[str], sides: Sequence[bool]) -> int:
    """Return the number of groups on the side that has fewer."""
    paired = list(zip(groups, sides, strict=True))
    return min(len({group for group, side in paired if side == each}) for each in (True, False))


def write_probes(file: Path, probes: Sequence[Probe]) -> None:
    """Write probes as JSON."""
    write_json(file, [asdict(probe) for probe in probes])


def read_probes(file: Path) -> list[Probe]:
    """Read what `write_probes` wrote."""
    rows = json.loads(file.read_text())
    models = [{name: Estimate(**value) for name, value in row.pop("models").items()} for row in rows]
    return [Probe(models=each, **row) for row, each in zip(rows, models, strict=True)]


def probe_metrics(probes: Sequence[Probe]) -> dict[str, float]:
    """Return each probe's best AUC under an MLflow name."""
    return {f"probe/{probe.name}": max(each.value for each in probe.models.values()) for probe in probes}
