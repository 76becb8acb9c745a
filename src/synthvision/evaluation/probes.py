"""Probes: what a small model reaches that sees only colour, texture, image corners or metadata.

A classifier's score means little while something that knows nothing of the disease does as well. The same probe asks
two questions: can synthetic be told from real (then the classifier may have learned the origin), and can the classes
be told apart by a shortcut (then the test set may be won without looking at the disease).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import rankdata
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from synthvision.evaluation.features import (
    Images,
    border_patches,
    colour_statistics,
    column_features,
    texture_statistics,
)
from synthvision.evaluation.intervals import DRAWS, Estimate, bootstrap, delong, patient_draws
from synthvision.evaluation.metrics import Flags, Floats, roc_auc
from synthvision.manifest import Manifest

FOLDS = 5
NEGLIGIBLE = 0.65  # the phantom's own limit for a shortcut
STRONG = 0.90

Kind = Literal["origin", "class", "picture"]
MEANING: dict[Kind, str] = {  # what follows if the clue works
    "origin": "A classifier trained on them can learn the generator's traces instead of the disease.",
    "class": "A classifier's score on such images may rest on this clue instead of the disease.",
    "picture": "The disease may change it; where it does not, a classifier's score may rest on it instead.",
}

MODELS: dict[str, Callable[[int], ClassifierMixin]] = {
    "logistic regression": lambda seed: make_pipeline(
        StandardScaler(), LogisticRegression(C=1.0, max_iter=2000, random_state=seed)
    ),
    "gradient boosting": lambda seed: HistGradientBoostingClassifier(
        max_iter=80, max_leaf_nodes=8, min_samples_leaf=5, early_stopping=False, random_state=seed
    ),
}


@dataclass(frozen=True)
class Probe:
    """What small models reach from one kind of clue, cross-validated by patient."""

    name: str  # the clue: "colour", "texture", "borders", "metadata"
    question: str  # what is told from what: "synthetic from real lesions"
    images: int
    groups: int
    models: dict[str, Estimate]  # small model -> AUC with its interval
    sentence: str  # what it means, in plain words


def probe(
    name: str, features: Floats, target: Flags, groups: Sequence[str], question: str, kind: Kind, seed: int = 0
) -> Probe:
    """Return how well small models predict `target` from `features`, each image by models that never saw its group.

    Args:
        name: of the clue.
        features: (N, F).
        target: (N,).
        groups: (N,), the patient; images of a group stay together in a fold.
        question: what is told from what, in words that fit after "tells".
        kind: "origin" where synthetic is told from real, "class" where the classes themselves are told apart, "picture"
            where they are by something that the disease may change.
        seed: of folds, models and bootstrap.

    Raises:
        ValueError: a side has fewer groups than there are folds.
    """
    target, patients = np.asarray(target, dtype=bool), np.asarray(groups)
    fewest = min(len(set(patients[target])), len(set(patients[~target])))
    if fewest < FOLDS:
        raise ValueError(f"a probe needs {FOLDS} patients on either side to tell {question}; there are {fewest}")
    models = {kind: _auc(_out_of_fold(make, features, target, patients, seed), target, groups, seed)
              for kind, make in MODELS.items()}  # fmt: skip
    best = max(models.values(), key=lambda estimate: estimate.value)
    return Probe(name, question, len(target), len(set(groups)), models, _sentence(name, question, kind, best))


def _out_of_fold(
    make: Callable[[int], ClassifierMixin], features: Floats, target: Flags, patients: Floats, seed: int
) -> Floats:
    score = np.full(len(target), np.nan)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for train, held_out in folds.split(features, target, patients):
        raw = make(seed).fit(features[train], target[train]).predict_proba(features[held_out])[:, 1]
        # Folds have models of their own, whose probabilities are not on one scale; their ranks are.
        score[held_out] = rankdata(raw) / len(raw)
    return score


def _auc(score: Floats, target: Flags, groups: Sequence[str], seed: int) -> Estimate:
    drawn = roc_auc(target, score, patient_draws(groups, DRAWS, seed))
    estimate = bootstrap(float(roc_auc(target, score)), drawn, len(set(groups)))
    return estimate if math.isfinite(estimate.low) else delong(target, score)


def _sentence(name: str, question: str, kind: Kind, auc: Estimate) -> str:
    found = (
        f"From {name} alone a small model tells {question} with AUC {auc.value:.2f} ({auc.low:.2f} to {auc.high:.2f})"
    )
    if auc.low > STRONG:
        return f"{found}: almost always. {MEANING[kind]}"
    if auc.low > NEGLIGIBLE:
        return f"{found}: far better than chance. {MEANING[kind]}"
    if auc.low > 0.5:
        return f"{found}: a little better than chance. This clue is weak."
    if auc.high > NEGLIGIBLE:
        return f"{found}: not shown to be better than chance, but these images are too few to rule a clue out."
    return f"{found}: no better than chance. This clue is closed."


def image_probes(
    images: Images, target: Flags, groups: Sequence[str], question: str, kind: Kind, seed: int = 0
) -> tuple[Probe, ...]:
    """Return the probes on colour, texture and borders of images uint8 (N, H, W, 3); see `probe`."""
    clues = {"colour": colour_statistics, "texture": texture_statistics, "borders": border_patches}
    return tuple(probe(name, of(images), target, groups, question, kind, seed) for name, of in clues.items())


def metadata_probe(
    columns: Mapping[str, Sequence[str | float]],
    target: Flags,
    groups: Sequence[str],
    question: str,
    kind: Kind,
    seed: int = 0,
) -> Probe:
    """Return the probe on metadata alone, such as file size or any column of the manifest; see `probe`."""
    return probe("metadata", column_features(columns), target, groups, question, kind, seed)


def probe_groups(manifest: Manifest, backgrounds: Manifest) -> list[str]:
    """Return each record's group: its patient; for a synthetic image painted into one of `backgrounds`, its patient.

    Otherwise the same skin could be in a training fold as real and in the held-out fold as synthetic, or the reverse.
    """
    own = {record.image_id: record.patient or record.image_id for record in (*backgrounds, *manifest)}
    return [own.get(record.painted_on, record.painted_on) or own[record.image_id] for record in manifest]
