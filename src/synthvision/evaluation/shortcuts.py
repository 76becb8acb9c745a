"""Which probes a study's images are put to: could its test be won without seeing the disease?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from synthvision.artifact import write_json
from synthvision.data.audit import Trait
from synthvision.data.images import load_batch
from synthvision.evaluation.evaluate import SUBGROUP_COLUMNS
from synthvision.evaluation.features import SMALLEST, Images, column_features, corner_patches, mean_colour
from synthvision.evaluation.intervals import Estimate
from synthvision.evaluation.metrics import Floats
from synthvision.evaluation.probes import (
    FOLDS,
    NEGLIGIBLE,
    STRONG,
    Kind,
    Probe,
    image_probes,
    metadata_probe,
    probe,
    probe_groups,
)
from synthvision.manifest import Manifest

COLOUR, BORDERS = "mean colour", "borders and corners"
MOST = 3000  # pictures that the probes of intake are asked about


def probe_study(known: Manifest, synthetic: Manifest, positive: str, size: int) -> tuple[Probe, ...]:
    """Return the probes that these images are enough for.

    Args:
        known: real images but for the test set's: of a test set nothing may be known before it is opened.
        synthetic: accepted images of the disease; may be empty.
        positive: the disease class.
        size: side at which pictures are compared, in pixels.
    """
    return (*_of_origin(known, synthetic, positive, size), *_of_class(known, positive))


def probe_intake(traits: Sequence[Trait], pixels: Images, classes: Sequence[str], seed: int) -> tuple[Probe, ...]:
    """Return how well small models tell the classes apart that never look at the disease.

    Nobody asks pictures of a test set: what is said of their labels is said once it is opened.

    Args:
        traits: of the usable pictures but those of test sets.
        pixels: of all pictures in the cache, uint8 (rows, S, S, 3), may be memory-mapped.
        classes: of the study. Of more than two each is told from the others, and the strongest of a clue is returned.
        seed: of folds and models, and of the sample of at most MOST pictures.
    """
    rng = np.random.default_rng(seed)
    chosen = [traits[index] for index in sorted(rng.permutation(len(traits))[:MOST].tolist())]
    groups = [trait.group for trait in chosen]
    asked = [classes[0]] if len(classes) == 2 else classes
    clues = _clues(chosen, pixels)
    found: list[Probe] = []
    for name, features in clues.items():
        kind: Kind = "picture" if name in (COLOUR, BORDERS) else "class"
        probes = []
        for label in asked:
            target = np.array([trait.label == label for trait in chosen])
            if _fewest(groups, target.tolist()) >= FOLDS:
                probes.append(probe(name, features, target, groups, f"{label} from the other classes", kind, seed))
        found += [max(probes, key=lambda each: max(e.value for e in each.models.values()))] if probes else []
    return tuple(found)


def _clues(traits: Sequence[Trait], pixels: Images) -> dict[str, Floats]:
    facts = {name: [trait.facts[name] for trait in traits] for name in (traits[0].facts if traits else ())}
    places = {name: [trait.places[name] for trait in traits] for name in (traits[0].places if traits else ())}
    clues = {"file metadata": _varying(facts), "source and site": _varying(places)}
    if traits and min(pixels.shape[1:3]) >= SMALLEST:
        images = np.asarray(pixels[[trait.row for trait in traits]])
        clues |= {COLOUR: mean_colour(images), BORDERS: corner_patches(images)}
    return {name: features for name, features in clues.items() if features.shape[1]}


def _varying(columns: Mapping[str, Sequence[str | float]]) -> Floats:
    """Return the features of the columns that are not the same for all."""
    varying = {name: cells for name, cells in columns.items() if len(set(cells)) > 1}
    return column_features(varying) if varying else np.empty((0, 0))


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


def in_words(probe: Probe) -> dict[str, Any]:
    """Return a probe as the audit's page shows it.

    It is grave where a clue that has nothing to do with the disease is more than negligible, or where one that the
    disease may change nearly settles the question.
    """
    limit = STRONG if probe.name in (COLOUR, BORDERS) else NEGLIGIBLE
    best = max(probe.models.values(), key=lambda estimate: estimate.value)
    told = {"name": probe.name, "question": probe.question, "sentence": probe.sentence, "images": probe.images}
    return {**told, "auc": best.value, "low": best.low, "high": best.high, "grave": best.low > limit}


def probe_metrics(probes: Sequence[Probe], kind: str = "probe") -> dict[str, float]:
    """Return each probe's best AUC under an MLflow name."""
    return {f"{kind}/{probe.name}": max(each.value for each in probe.models.values()) for probe in probes}
