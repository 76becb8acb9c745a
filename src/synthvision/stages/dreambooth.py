"""The diffusion model is personalised on the guides."""

from __future__ import annotations

from pathlib import Path

from synthvision import artifact
from synthvision.diffusion import backbone, dreambooth
from synthvision.diffusion.backbone import PACKAGE, PACKAGE_WEIGHTS
from synthvision.diffusion.prompts import expand
from synthvision.stages.context import Context, Result

CLASS_IMAGES = "class_images"  # in the study's folder: trainings of one backbone share them


def run_dreambooth(given: Context) -> Result:
    """Personalise the diffusion model on the guides."""
    study, disease = given.study, given.study.disease
    guides = given.manifest("prepare").where(split="guide")
    templates = disease.class_prompts or [disease.subject.class_prompt]
    prompts = expand(templates, disease.attributes, study.dreambooth.class_images, study.seed)
    done = dreambooth.train(
        backbone.load(study.backbone), guides, disease.subject, [prompt.text for prompt in prompts], study.dreambooth,
        given.out, given.work, study.seed, given.logger, study.folder / CLASS_IMAGES,
    )  # fmt: skip
    metrics = {f"final/{name}_loss": value for name, value in done.final.items()}
    metrics |= {f"reached/{name}": value for name, value in done.reached.items()}
    tags = {f"chosen/{name}": value for name, value in done.chosen.items()}
    return Result(metrics, files=done.grids, inputs={"guides": guides}, tags=tags)


def weights_digest(source: str | None) -> str:
    """Return a digest of weights on disk or in the package; what the Hub's id and revision name has none here."""
    if source is None:
        return ""
    path = PACKAGE_WEIGHTS / source.removeprefix(PACKAGE) if source.startswith(PACKAGE) else Path(source)
    if path.is_dir():
        return artifact.tree_digest(path)
    return artifact.sha256_file(path) if path.is_file() else ""
