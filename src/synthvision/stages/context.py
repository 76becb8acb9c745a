"""What a stage is given, and what it returns."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pytorch_lightning.loggers import Logger

from synthvision import __version__, artifact
from synthvision.classification.resume import OnEpoch
from synthvision.data.cache import ImageCache
from synthvision.evaluation.report_input import StageRow
from synthvision.manifest import Manifest
from synthvision.study import Study

MANIFEST = "manifest.csv"
WEIGHTS = "weights"
CACHE = ".cache"  # below the root
PACKAGES = ("torch", "diffusers", "transformers", "timm", "pytorch-lightning", "mlflow", "numpy", "pillow")


class Waiting(Exception):  # noqa: N818 - no error: the study waits for people
    """A stage cannot begin before people have done their part; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Result:
    """What a stage wants logged."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()
    inputs: Mapping[str, Manifest] = field(default_factory=dict)  # context ("training") -> images
    classifier: Path | None = None  # weights folder
    tags: Mapping[str, object] = field(default_factory=dict)
    budgets: Mapping[int, Result] = field(default_factory=dict)  # epochs -> what was read off there, a run of its own


@dataclass(frozen=True)
class Context:
    """What a stage is given."""

    study: Study
    out: Path  # the stage's folder
    before: Mapping[str, Path]  # folders of the finished stages it reads
    logger: Logger | None
    run_id: str
    stages: Sequence[StageRow] = ()  # of the finished stages, for the report
    commands: Mapping[str, str] = field(default_factory=dict)
    on_epoch: OnEpoch | None = None  # told of each epoch of the classifier

    @property
    def work(self) -> Path:
        """Resumable state, gone when the stage is finished."""
        return self.out / artifact.WORK

    def manifest(self, stage: str) -> Manifest:
        """Read the manifest of a stage before."""
        return Manifest.read(self.before[stage] / MANIFEST, self.study.folder)


def image_cache(study: Study, size: int) -> ImageCache:
    """Return the cache of decoded images of one size, which all studies and runs below the root share."""
    return ImageCache(Path(study.root) / CACHE, size, study.dataset.seed)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    own = {"synthvision": __version__, "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}
