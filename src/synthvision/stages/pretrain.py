"""The weights that ship with the package are trained."""

from __future__ import annotations

from dataclasses import asdict

from synthvision import artifact
from synthvision.classification.pretrain import pretrain_vit
from synthvision.diffusion.pretrain import pretrain
from synthvision.stages.context import Context, Result, versions


def run_pretrain(given: Context) -> Result:
    """Train the weights that ship with the package, and say beside each how it was made."""
    settings = given.study.pretrain
    tiny = pretrain(settings.backbone, given.out / "tiny", given.work / "tiny", settings.seed, given.logger)
    vit = pretrain_vit(settings.vit, given.out / "tiny_vit", given.work / "tiny_vit", settings.seed, given.logger)
    for name, config, metrics in (("tiny", settings.backbone, tiny), ("tiny_vit", settings.vit, vit)):
        made = {"command": given.commands["this stage"], "seed": settings.seed, "config": asdict(config)}
        artifact.write_json(given.out / name / "provenance.json", {**made, "metrics": metrics, "versions": versions()})
    return Result({**tiny, **vit}, [given.out / "tiny" / "samples.png"])
