"""The personalised model makes candidates."""

from __future__ import annotations

from dataclasses import replace

from synthvision import artifact
from synthvision.diffusion import backbone
from synthvision.diffusion.backbone import BackboneConfig
from synthvision.diffusion.generate import generate
from synthvision.diffusion.prompts import expand, expand_over
from synthvision.stages.context import WEIGHTS, Context, Result


def run_generate(given: Context) -> Result:
    """Make candidates."""
    study, config, disease = given.study, given.study.generate, given.study.disease
    real = given.manifest("prepare")
    parent = artifact.finished(given.before["dreambooth"])
    assert parent is not None  # pipeline.py runs a stage only after those it reads
    painted = config.mode == "paint"
    backgrounds = real.where(lambda r: r.split == "train" and r.label != disease.positive) if painted else None
    negative = disease.negative_prompt
    prompts = (
        expand(disease.templates, disease.attributes, config.candidates, study.seed, negative)
        if backgrounds is None
        else expand_over(disease.templates, disease.attributes, backgrounds, config.candidates, study.seed, negative)
    )
    personalised = backbone.load(_personalised(given))
    candidates = generate(
        personalised, prompts, config, disease.positive, disease.guides.set, study.seed, study.folder, given.out,
        backgrounds, parent.output,
    )  # fmt: skip
    return Result({"candidates": len(candidates)}, [given.out / "contact_sheet.png"], {"candidates": candidates})


def _personalised(given: Context) -> BackboneConfig:
    weights = given.before["dreambooth"] / WEIGHTS
    return replace(given.study.backbone, source=str(weights), revision=None)
