"""The diffusion model is personalised on the guides, once for each set of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from synthvision import artifact
from synthvision.data.guide_sets import GuideSet, sets_of
from synthvision.diffusion import backbone, dreambooth
from synthvision.diffusion.backbone import PACKAGE, PACKAGE_WEIGHTS
from synthvision.diffusion.prompts import expand
from synthvision.manifest import Manifest
from synthvision.stages.context import WEIGHTS, Context, Result
from synthvision.stages.sets import each
from synthvision.study import Study
from synthvision.training import gpus

CLASS_IMAGES = "class_images"  # in the study's folder: sets and trainings of one backbone share them
SET_FILE = "set.json"  # written last: this set is finished


@dataclass(frozen=True)
class SetTask:
    """One fine-tune, in plain values that travel to another process."""

    study: Study
    guides: Manifest
    out: Path
    work: Path


def run_dreambooth(given: Context) -> Result:
    """Personalise the diffusion model on each set of guides."""
    sets = sets_of(given.study.disease.guides)
    guides = given.manifest("prepare").where(split="guide")
    if len(sets) == 1:
        done = _train(SetTask(given.study, guides, given.out, given.work), given.logger)
        return Result(_metrics(done), files=done.grids, inputs={"guides": guides}, tags=_tags(done.chosen))
    tasks = [
        SetTask(given.study, guides.where(set=one.name), given.out / one.name, given.work / one.name) for one in sets
    ]
    alone = given.study.dreambooth.devices > 1  # each training takes several GPUs: one after another
    finished = each(train_set, tasks, [] if alone else gpus())
    metrics = {
        name.replace("/", f"/{one.name}/", 1): value
        for one, content in zip(sets, finished, strict=True)
        for name, value in content["metrics"].items()
    }
    tags = _tags(finished[0]["chosen"])  # one recipe for all sets
    return Result(metrics, files=_last_grids(given.out, sets), inputs={"guides": guides}, tags=tags)


def train_set(task: SetTask) -> dict[str, Any]:
    """Train on one set, or read what its training said where it was finished before: metrics, choices, digest."""
    marker = task.out / SET_FILE
    if not marker.is_file():
        # Curves of several sets would lie over one another in one run; each set keeps its losses.csv.
        done = _train(task, None)
        digest = artifact.tree_digest(done.weights)
        # Without what was `reached`: seconds and memory differ each time, and the stage's output digest must not.
        artifact.write_json(marker, {"metrics": _losses(done), "chosen": done.chosen, "weights": digest})
    return dict(json.loads(marker.read_text()))


def _train(task: SetTask, logger: Logger | None) -> dreambooth.DreamBoothResult:
    study, disease = task.study, task.study.disease
    # All sets keep the same knowledge of the class, whatever a set's own attributes: their class images are the same.
    templates = disease.class_prompts or [disease.subject.class_prompt]
    prompts = expand(templates, disease.attributes, study.dreambooth.class_images, study.seed)
    base = backbone.load(study.backbone)
    if study.generate.resolution:  # else `generate` would find out, after hours of training
        base.check_side(study.generate.resolution, "generate.resolution")
    return dreambooth.train(
        base, task.guides, disease.subject, [prompt.text for prompt in prompts],
        study.dreambooth, task.out, task.work, study.seed, logger, study.folder / CLASS_IMAGES,
    )  # fmt: skip


def _losses(done: dreambooth.DreamBoothResult) -> dict[str, float]:
    return {f"final/{name}_loss": value for name, value in done.final.items()}


def _metrics(done: dreambooth.DreamBoothResult) -> dict[str, float]:
    return _losses(done) | {f"reached/{name}": value for name, value in done.reached.items()}


def _tags(chosen: Mapping[str, str]) -> dict[str, object]:
    return {f"chosen/{name}": value for name, value in chosen.items()}


def personalised(folder: Path, one: GuideSet, sets: Sequence[GuideSet]) -> tuple[Path, str]:
    """Return where a finished stage keeps a set's weights, and the digest that says which they are."""
    if len(sets) > 1:
        return folder / one.name / WEIGHTS, json.loads((folder / one.name / SET_FILE).read_text())["weights"]
    record = artifact.finished(folder)
    assert record is not None  # pipeline.py runs a stage only after those it reads
    return folder / WEIGHTS, record.output


def _last_grids(out: Path, sets: Sequence[GuideSet]) -> list[Path]:
    return [grid for one in sets for grid in sorted((out / one.name / "samples").glob("step_*.png"))[-1:]]


def weights_digest(source: str | None) -> str:
    """Return a digest of weights on disk or in the package; what the Hub's id and revision name has none here."""
    if source is None:
        return ""
    path = PACKAGE_WEIGHTS / source.removeprefix(PACKAGE) if source.startswith(PACKAGE) else Path(source)
    if path.is_dir():
        return artifact.tree_digest(path)
    return artifact.sha256_file(path) if path.is_file() else ""
