"""What a report is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthvision.evaluation.evaluate import Evaluation
from synthvision.evaluation.ledger import Opening
from synthvision.evaluation.probes import Probe
from synthvision.manifest import Manifest


@dataclass(frozen=True)
class StageRow:
    """One stage as the provenance table shows it."""

    stage: str
    fingerprint: str
    run_id: str  # empty if it was not tracked
    seconds: float | None  # None where the finished stage was reused
    command: str  # that remakes it
    link: str = ""  # where the MLflow UI shows the run, while it is open


@dataclass(frozen=True)
class ErrorCase:
    """One test image with what the classifier made of it."""

    image_id: str
    truth: str
    called: str
    probability: float  # of the positive class
    picture: Path  # the image beside its maps
    neighbours: Sequence[str]  # image ids of the training images nearest to it, the nearest first
    said: str  # what the maps are worth for this image


@dataclass(frozen=True)
class ExternalTest:
    """What came out on a test set from elsewhere."""

    name: str
    evaluation: Evaluation
    openings: Sequence[Opening]


@dataclass(frozen=True)
class ReportInput:
    """All that the report shows. Paths of images come from the manifests; no other path appears in the page."""

    study: str
    title: str  # the question: "Phantom lesions from ten guide images"
    backbone: str
    arm: str
    real: Manifest  # what `prepare` made: guides, train, val, test
    candidates: Manifest  # generated images with their decisions
    training: Manifest  # what the classifier was trained on
    evaluation: Evaluation
    openings: Sequence[Opening]
    probes: Sequence[Probe]
    diffusion_losses: Sequence[Mapping[str, float]]  # rows with "step"; empty where the base was not trained
    history: Sequence[Mapping[str, float]]  # the classifier's rows with "epoch", e.g. "train/loss", "val/loss"
    best_epoch: int
    stages: Sequence[StageRow]
    commands: Mapping[str, str]  # what it does -> command
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    quarantined: int = 0  # files that could not be used
    duplicates: int = 0
    leaks: int = 0  # found and removed; a leak that is not removed stops the study
    banners: Sequence[str] = ()  # beside those for phantoms and unattended review, which the report adds itself
    warnings: Sequence[str] = ()
    limits: Sequence[str] = ()
    errors: Sequence[ErrorCase] = ()  # wrong calls with what the classifier looked at and what they resemble
    external: Sequence[ExternalTest] = ()
    fidelity: Mapping[str, Mapping[str, float | str]] = field(default_factory=dict)  # set of candidates -> figures
    samples: Sequence[Path] = ()  # grids drawn while the diffusion model trained, in order
