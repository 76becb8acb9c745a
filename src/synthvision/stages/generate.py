"""The personalised models make candidates, set by set; then the whole is compared with the guides and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from synthvision import artifact
from synthvision.data.guide_sets import GuideSet, sets_of
from synthvision.diffusion import backbone, upscaler
from synthvision.diffusion.encoder import check_safety
from synthvision.diffusion.fidelity import measure
from synthvision.diffusion.generate import Enlarge, generate
from synthvision.diffusion.memorisation import REVIEWER, gate
from synthvision.diffusion.prompt_file import read_prompts
from synthvision.diffusion.prompts import FROM_BACKGROUND, Prompt, expand, expand_over, written
from synthvision.diffusion.upscale import upscale
from synthvision.diffusion.upscaler import UpscalerConfig
from synthvision.manifest import Manifest
from synthvision.stages.context import MANIFEST, Context, Result
from synthvision.stages.dreambooth import personalised
from synthvision.stages.sets import each
from synthvision.stages.superres import fine_tuned
from synthvision.study import Disease, Study
from synthvision.training import best_device, gpus

FIDELITY = "fidelity.json"  # set -> how true and how varied its candidates are


@dataclass(frozen=True)
class SetTask:
    """One set's candidates, in plain values that travel to another process."""

    study: Study
    name: str
    prompts: Sequence[Prompt]
    backgrounds: Manifest | None
    weights: Path
    digest: str
    out: Path
    upscaler: UpscalerConfig | None  # what candidates pass through


def run_generate(given: Context) -> Result:
    """Make candidates for every set; of a shard, its part of the images and nothing else."""
    study = given.study
    real = given.manifest("prepare")
    tasks = _tasks(given, real)
    made = each(make_set, tasks, gpus())
    images = Manifest(tuple(record for one in made for record in one), study.folder)
    if study.generate.shard:
        return Result({"candidates": len(images)})
    guides = real.where(split="guide")
    judged = gate(images, guides, study.memorisation, given.out)
    if study.generate.safety_checker:
        judged = check_safety(judged, study.generate.safety_checker)
    judged.write(given.out / MANIFEST)
    fidelity = measure(judged, _references(real, study.disease))
    artifact.write_json(given.out / FIDELITY, fidelity)
    metrics = {"candidates": float(len(judged)), "copies": float(len(judged.where(reviewer=REVIEWER)))}
    if study.generate.safety_checker:
        metrics["flagged"] = float(len(judged.where(safety="flagged")))
    sheets = [task.out / "contact_sheet.png" for task in tasks]
    files = [*sheets, given.out / "nearest_pairs.png", given.out / "memorisation.csv", given.out / FIDELITY]
    return Result({**metrics, **_flat(fidelity)}, files, {"candidates": judged})


def make_set(task: SetTask) -> Manifest:
    """Make one set's candidates, or read them where they were finished before."""
    config, manifest = task.study.generate, task.out / MANIFEST
    if manifest.is_file() and task.out.name == task.name:  # a lone set's manifest is not final until it is judged
        return Manifest.read(manifest, task.study.folder)
    side = config.resolution or task.study.backbone.resolution
    weights = replace(task.study.backbone, source=str(task.weights), revision=None, resolution=side)
    model = backbone.load(weights, config.dtype)
    return generate(
        model, task.prompts, config, task.study.disease.positive, task.name, task.study.seed,
        task.study.folder, task.out, task.backgrounds, task.digest, _enlarging(task),
    )  # fmt: skip


def _tasks(given: Context, real: Manifest) -> list[SetTask]:
    study, disease = given.study, given.study.disease
    sets = sets_of(disease.guides)
    grounds = None
    if study.generate.from_picture:
        grounds = real.where(lambda record: record.split == "train" and record.label != disease.positive)
    large = fine_tuned(given) if study.superres.candidates else None
    tasks = []
    for number, one in enumerate(sets):
        share = study.generate.candidates // len(sets) + (number < study.generate.candidates % len(sets))
        fitting = grounds and _like(grounds, one)
        weights, digest = personalised(given.before["dreambooth"], one, sets)
        out = given.out / one.name if len(sets) > 1 else given.out
        tasks.append(
            SetTask(study, one.name, _prompts(study, one, share, fitting), fitting, weights, digest, out, large)
        )
    return tasks


def _enlarging(task: SetTask) -> Enlarge | None:
    if task.upscaler is None:
        return None
    return partial(upscale, upscaler.load(task.upscaler).to(best_device()), task.study.superres.upscaling)


def _prompts(study: Study, one: GuideSet, count: int, backgrounds: Manifest | None) -> list[Prompt]:
    disease, seed = study.disease, study.seed
    if study.generate.prompts:
        rows = read_prompts(study.generate.prompts, disease.attributes, disease.negative_prompt)
        mine = one.attributes.items()
        own = [row for row in rows if all(row.attributes.get(key, value) == value for key, value in mine)]
        if not own:
            raise ValueError(
                f"generate.prompts: no prompt of {study.generate.prompts} fits the set {one.name!r}, {dict(mine)}"
            )
        return written(own, backgrounds, seed)
    attributes = {**disease.attributes, **{key: [value] for key, value in one.attributes.items()}}
    if backgrounds is None:
        return expand(disease.templates, attributes, count, seed, disease.negative_prompt)
    return expand_over(disease.templates, attributes, backgrounds, count, seed, disease.negative_prompt)


def _like(backgrounds: Manifest, one: GuideSet) -> Manifest:
    """Return the pictures of a set's skin tone and body part, where it has one."""
    wanted = {key: one.attributes[key] for key in FROM_BACKGROUND if key in one.attributes}
    fitting = backgrounds.where(None, **wanted)
    if wanted and not len(fitting):
        raise ValueError(
            f"the set {one.name!r} is painted into real training images of another class with {wanted}, and there is "
            "none; give them a skin tone and body part (columns of a table), or use generate=noise"
        )
    return fitting


def _references(real: Manifest, disease: Disease) -> Manifest:
    """Return real images of the disease, none of them of the test set."""
    return real.where(lambda record: record.label == disease.positive and record.split in ("train", "val"))


def _flat(fidelity: Mapping[str, Mapping[str, object]]) -> dict[str, float]:
    one = len(fidelity) == 1
    return {
        f"fidelity/{name}" if one else f"fidelity/{group}/{name}": float(value)
        for group, values in fidelity.items()
        for name, value in values.items()
        if isinstance(value, int | float)
    }
