"""The stages: what each reads, what its result depends on, and which of them a study has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from synthvision import artifact
from synthvision.review.policy import PhysicianPolicy
from synthvision.stages.ablation import ablation_inputs, run_ablation
from synthvision.stages.classify import run_classify
from synthvision.stages.context import Context, Result
from synthvision.stages.counterparts import run_counterparts
from synthvision.stages.dreambooth import run_dreambooth, weights_digest
from synthvision.stages.evaluate import check_may_open, run_evaluate
from synthvision.stages.external import check_may_open_external, run_external
from synthvision.stages.generate import run_generate
from synthvision.stages.predict import input_digest, run_export, run_predict
from synthvision.stages.prepare import run_prepare, source_digest
from synthvision.stages.pretrain import run_pretrain
from synthvision.stages.report import run_report
from synthvision.stages.review import check_decided, decisions_digest, run_review
from synthvision.stages.rounds import rounds_digest
from synthvision.stages.superres import run_superres
from synthvision.study import Study


@dataclass(frozen=True)
class Stage:
    """One step: the stages it reads, the part of the study its result depends on, and what it does."""

    reads: tuple[str, ...]
    config: Callable[[Study], Mapping[str, Any]]
    run: Callable[[Context], Result]
    code: tuple[str, ...]  # the folders and modules that do the work: newer code does not reuse an older one's result
    of_synthetic: bool = False  # only arms with synthetic images need it
    ready: Callable[[Study, Mapping[str, Path]], None] = lambda *_: None  # raises Waiting where people must act first
    allowed: Callable[[Study, Path], None] = lambda *_: None  # refuses before others' work, from what prepare left
    device: bool = True  # the kind of device is part of what the result depends on
    part: Callable[[Study], str | None] = lambda _: None  # "0/4": do this part of the work only, and do not finish


def _of(*names: str) -> Callable[[Study], Mapping[str, Any]]:
    def config(study: Study) -> Mapping[str, Any]:
        whole = asdict(study)
        del whole["disease"]["reject_reasons"]  # readers' words change no image
        return {name: whole[name] for name in names}

    return config


def _prepare_config(study: Study) -> Mapping[str, Any]:
    guides, classes = asdict(study.disease.guides), list(study.disease.classes)
    dataset = asdict(study.dataset)
    del dataset["workers"]  # how many read has no influence on what they read
    return {
        "dataset": dataset,
        "guides": guides,
        "classes": classes,
        "files": source_digest(study),
    }


def _dreambooth_config(study: Study) -> Mapping[str, Any]:
    weights = weights_digest(study.backbone.source)
    return {**_of("seed", "backbone", "disease", "dreambooth")(study), "weights": weights}


def _superres_config(study: Study) -> Mapping[str, Any]:
    config, weights = asdict(study.superres), weights_digest(study.superres.upscaler.source)
    del config["candidates"]
    return {**_of("seed", "disease")(study), "superres": config, "weights": weights}


def _generate_config(study: Study) -> Mapping[str, Any]:
    values: dict[str, Any] = dict(_of("seed", "backbone", "disease", "generate", "memorisation")(study))
    values["generate"] = {key: value for key, value in values["generate"].items() if key != "shard"}
    if study.superres.candidates:
        values["upscaling"] = asdict(study.superres.upscaling)
    files = (study.generate.prompts, study.generate.safety_checker, study.memorisation.encoder)
    return {**values, "files": [weights_digest(file) for file in files]}


def _counterparts_config(study: Study) -> Mapping[str, Any]:
    values = dict(_of("seed", "backbone", "disease", "generate")(study))
    values["generate"] = {key: value for key, value in values["generate"].items() if key not in ("shard", "candidates")}
    return values


def _classify_config(study: Study) -> Mapping[str, Any]:
    weights = weights_digest(study.classifier.model.weights)
    return {**_of("seed", "arm", "classifier")(study), "weights": weights}


def _review_config(study: Study) -> Mapping[str, Any]:
    if not isinstance(study.review, PhysicianPolicy):
        return _of("review")(study)
    return {**_of("review")(study), "decisions": decisions_digest(study), "rounds": rounds_digest(study.folder)}


def _predict_config(study: Study) -> Mapping[str, Any]:
    weights = weights_digest(study.predict.weights)
    return {**_of("predict")(study), "images": input_digest(study.predict), "weights": weights}


def _evaluate_config(study: Study) -> Mapping[str, Any]:
    """All but the reason to open the test set again: the same evaluation stays the same opening."""
    return {"seed": study.seed, "evaluate": asdict(replace(study.evaluate, reopen=None, external=(), baseline=""))}


def _external_config(study: Study) -> Mapping[str, Any]:
    return {**_evaluate_config(study), "external": list(study.evaluate.external)}


_MANIFEST = ("artifact.py", "manifest.py", "data")
_DIFFUSION = (*_MANIFEST, "training.py", "diffusion")
_CLASSIFICATION = (*_MANIFEST, "predictions.py", "training.py", "classification")
STAGES: Mapping[str, Stage] = {
    "prepare": Stage((), _prepare_config, run_prepare, (*_MANIFEST, "evaluation"), device=False),
    "dreambooth": Stage(("prepare",), _dreambooth_config, run_dreambooth, _DIFFUSION, of_synthetic=True),
    "generate": Stage(
        ("prepare", "dreambooth", "superres"),
        _generate_config,
        run_generate,
        _DIFFUSION,
        of_synthetic=True,
        part=lambda study: study.generate.shard,
    ),
    "review": Stage(
        ("prepare", "generate"),
        _review_config,
        run_review,
        (*_MANIFEST, "review"),
        of_synthetic=True,
        ready=check_decided,
        device=False,
    ),
    "classify": Stage(("prepare", "review", "counterparts"), _classify_config, run_classify, _CLASSIFICATION),
    "evaluate": Stage(
        ("prepare", "review", "classify"),
        _evaluate_config,
        run_evaluate,
        (*_CLASSIFICATION, "evaluation"),
        allowed=check_may_open,
    ),
    "report": Stage(
        ("prepare", "dreambooth", "generate", "review", "classify", "evaluate", "external"),
        lambda study: {**_of("study", "seed", "arm")(study), **_evaluate_config(study), "openings": _openings(study)},
        run_report,
        (*_MANIFEST, "predictions.py", "evaluation"),
        device=False,
    ),
}
USES: Mapping[str, Stage] = {  # of a finished classifier
    "predict": Stage((), _predict_config, run_predict, _CLASSIFICATION),
    "export": Stage((), _of("predict"), run_export, _CLASSIFICATION),
}
OPTIONAL: Mapping[str, Stage] = {  # part of a study only where its config or the command asks for it
    "counterparts": Stage(
        ("prepare", "dreambooth"), _counterparts_config, run_counterparts, _DIFFUSION, of_synthetic=True
    ),
    "superres": Stage(("prepare",), _superres_config, run_superres, _DIFFUSION, of_synthetic=True),
    "external": Stage(
        ("prepare", "classify"),
        _external_config,
        run_external,
        (*_CLASSIFICATION, "evaluation"),
        allowed=check_may_open_external,
    ),
}
ALONE: Mapping[str, Stage] = {  # no part of a study's way
    "pretrain": Stage((), _of("pretrain"), run_pretrain, (*_DIFFUSION, *_CLASSIFICATION)),
    "ablation": Stage((), ablation_inputs, run_ablation, ("predictions.py", "evaluation"), device=False),
}


def _openings(study: Study) -> list[str]:
    """The report shows the ledgers, so a new opening makes a new report."""
    return [artifact.sha256_file(file) for file in sorted((study.folder / "ledger").glob("*.jsonl"))]


def stages_for(study: Study, stage: str) -> Mapping[str, Stage]:
    """Return the stages that there are in a study, for one that was asked for."""
    if stage in ALONE:
        return {stage: ALONE[stage]}
    if stage in USES and study.predict.weights:
        return {stage: USES[stage]}
    uses = {name: replace(each, reads=("classify",)) for name, each in USES.items() if name == stage}
    wanted = {
        "superres": study.superres.candidates,
        "external": bool(study.evaluate.external),
        "counterparts": study.arm.symmetric,
    }
    asked = {name: each for name, each in OPTIONAL.items() if wanted[name] or stage == name}
    stages = {**STAGES, **asked}
    return {name: each for name, each in stages.items() if study.generates or not each.of_synthetic} | uses


def needed_for(table: Mapping[str, Stage], stage: str) -> set[str]:
    """Return a stage and all before it that there are, or all of the pipeline."""
    found = set(table) if stage == "pipeline" else {stage}
    while more := {name for each in found for name in table[each].reads if name in table} - found:
        found |= more
    return found
