"""For an arm that is symmetric: the other classes' training images, put through what candidates went through.

Origin then no longer tells the class. Candidates that were painted into a real image differ from it by what the model
painted; so do these, with a prompt that asks for nothing. All other candidates come out of the autoencoder whole; so do
these, without noise.
"""

from __future__ import annotations

from dataclasses import replace

from synthvision.data.guide_sets import sets_of
from synthvision.diffusion import backbone
from synthvision.diffusion.counterparts import through_autoencoder
from synthvision.diffusion.generate import generate
from synthvision.diffusion.prompts import expand_over
from synthvision.manifest import Manifest
from synthvision.stages.context import MANIFEST, Context, Result
from synthvision.stages.dreambooth import personalised


def run_counterparts(given: Context) -> Result:
    """Make one image of each real training image of the classes that are not the disease."""
    study = given.study
    others = given.manifest("prepare").where(
        lambda record: record.split == "train" and record.label != study.disease.positive
    )
    sets = sets_of(study.disease.guides)
    weights, digest = personalised(given.before["dreambooth"], sets[0], sets)
    config = replace(study.generate, shard=None)
    side = config.resolution or study.backbone.resolution
    source = replace(study.backbone, source=str(weights), revision=None, resolution=side)
    model = backbone.load(source, config.dtype)
    made = (_painted if config.mode == "paint" else _decoded)(given, others, model, digest)
    made.write(given.out / MANIFEST)
    return Result({"counterparts": float(len(made))}, inputs={"counterparts": made})


def _painted(given: Context, others: Manifest, model: backbone.Backbone, digest: str) -> Manifest:
    study = given.study
    prompts = expand_over(
        study.disease.class_prompts or [study.disease.subject.class_prompt], study.disease.attributes, others,
        len(others), study.seed, study.disease.negative_prompt,
    )  # fmt: skip
    label = {record.image_id: record.label for record in others}
    config = replace(study.generate, shard=None)
    images = generate(
        model, prompts, config, "counterpart", "", study.seed, study.folder, given.out, others, digest
    )  # fmt: skip
    return images.with_values(lambda record: {"label": label[record.painted_on], "split": "train"})


def _decoded(given: Context, others: Manifest, model: backbone.Backbone, _digest: str) -> Manifest:
    return through_autoencoder(model, others, given.study.generate.batch_size, given.out / "images")
