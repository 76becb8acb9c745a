"""The weights that ship with the package are trained."""

from __future__ import annotations

from dataclasses import asdict

from synthvision import artifact
from synthvision.classification.pretrain import pretrain_vit
from synthvision.diffusion.pretrain import pretrain
from synthvision.diffusion.pretrain_upscaler import pretrain_upscaler
from synthvision.stages.context import Context, Result, versions


def run_pretrain(given: Context) -> Result:
    """Train the weights that ship with the package, and say beside each how it was made."""
    settings = given.study.pretrain
    tiny = pretrain(settings.backbone, given.out / "tiny", given.work / "tiny", settings.seed, given.logger)
    x4 = pretrain_upscaler(
        settings.upscaler,
        given.out / "tiny",
        given.out / "tiny_x4",
        given.work / "tiny_x4",
        settings.seed,
        given.logger,
    )
    vit = pretrain_vit(settings.vit, given.out / "tiny_vit", given.work / "tiny_vit", settings.seed, given.logger)
    parts = (("tiny", settings.backbone, tiny), ("tiny_x4", settings.upscaler, x4), ("tiny_vit", settings.vit, vit))
    for name, config, metrics in parts:
        made = {"command": given.commands["this stage"], "seed": settings.seed, "config": asdict(config)}
        artifact.write_json(given.out / name / "provenance.json", {**made, "metrics": metrics, "versions": versions()})
    return Result({**tiny, **x4, **vit}, [given.out / name / "samples.png" for name in ("tiny", "tiny_x4")])
