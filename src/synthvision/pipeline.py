"""The stages in order: what each reads, what its result depends on, and how finished work is reused.

A stage's folder is `<root>/<study>/<stage>/<fingerprint>/`. The fingerprint is a hash of the config that the stage
reads and of its inputs' digests, so equal work is done once, whichever run, arm or sweep asks for it first.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from filelock import FileLock
from rich.console import Console

from synthvision import __version__, artifact
from synthvision.classification.model import check_start
from synthvision.classification.resume import OnEpoch
from synthvision.diffusion.backbone import find_source
from synthvision.evaluation.report import StageRow
from synthvision.review.policy import PhysicianPolicy
from synthvision.stages.ablation import PAGE, ablation_inputs, read_answer, run_ablation
from synthvision.stages.classify import read_validation, run_classify
from synthvision.stages.context import Context, Result, Waiting
from synthvision.stages.counterparts import run_counterparts
from synthvision.stages.dreambooth import run_dreambooth, weights_digest
from synthvision.stages.evaluate import check_may_open, read_headline, run_evaluate
from synthvision.stages.external import check_may_open_external, run_external
from synthvision.stages.generate import run_generate
from synthvision.stages.predict import input_digest, run_export, run_predict
from synthvision.stages.prepare import draw_phantoms, run_prepare, source_digest
from synthvision.stages.pretrain import run_pretrain
from synthvision.stages.reading import Session, read
from synthvision.stages.report import run_report
from synthvision.stages.review import check_decided, decisions_digest, run_review
from synthvision.stages.rounds import rounds_digest
from synthvision.stages.superres import run_superres
from synthvision.study import Study
from synthvision.tracking.config import JOB_TAG, OF_SWEEP, PARENT, TrackingConfig
from synthvision.tracking.runs import Run
from synthvision.tracking.store import Store, open_store

FILES = ("files", "weights", "images", "decisions")  # keys of a stage's config that are digests of files from outside
FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # of every diffusion model
PAGES = {"report": "report.html", "ablation": PAGE}
HEADLINE = ("accuracy", "sensitivity", "specificity", "auc")


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
ABLATION = Stage((), ablation_inputs, run_ablation, ("predictions.py", "evaluation"), device=False)
PRETRAIN = Stage((), _of("pretrain"), run_pretrain, (*_DIFFUSION, *_CLASSIFICATION))


ALONE: Mapping[str, Stage] = {"pretrain": PRETRAIN, "ablation": ABLATION}  # no part of a study's way


def _openings(study: Study) -> list[str]:
    """The report shows the ledgers, so a new opening makes a new report."""
    return [artifact.sha256_file(file) for file in sorted((study.folder / "ledger").glob("*.jsonl"))]


@dataclass(frozen=True)
class Outcome:
    """Where the finished stages lie, and what the last evaluation found."""

    folders: Mapping[str, Path]
    metrics: Mapping[str, float]  # of the evaluation; empty if it did not run
    validation: Mapping[str, float]  # best/val/... of the classifier; empty if none was trained
    waits_for: str = ""  # what people must do first


@dataclass(frozen=True)
class Swept:
    """What a sweep tells its job."""

    parent: str  # MLflow run of the sweep
    name: str  # what varies
    digest: str  # the job's identity, which its runs of a later start share
    on_epoch: OnEpoch | None = None
    gives_up: tuple[type[BaseException], ...] = ()  # what on_epoch raises where the job will never be resumed


def run(
    study: Study,
    stage: str,
    resolved: Mapping[str, Any],
    overrides: Sequence[str],
    config: TrackingConfig,
    session: Session | None = None,
    swept: Swept | None = None,
) -> Outcome:
    """Run a stage and all that it needs, or the whole pipeline; print where the results are.

    Args:
        study: what to do.
        stage: a name in STAGES, USES, OPTIONAL or ALONE, or "pipeline" for all of the first.
        resolved: the whole config in plain values, kept with each run.
        overrides: of the command line, from which the command is rebuilt.
        config: where runs are tracked.
        session: stage "review": what readers shall be given, where physicians decide.
        swept: the sweep that this is a job of.

    Raises:
        ValueError: the stage has no part in this arm, or a stage refused its input.
        FileNotFoundError: there are no weights where the config says.
        LedgerError: the test set was opened before and no reason is given to open it again.
    """
    torch.set_flush_denormal(True)  # values near zero cost a CPU a hundredfold and change nothing
    check(study, stage)
    store = open_store(config, study.study)
    table = _table(study, stage)
    if table.get("prepare"):
        draw_phantoms(study)
    if stage in USES:
        USES[stage].config(study)  # images that are not there fail at once, not after the stages before
    last = "report" if stage == "pipeline" else stage
    runner = _Runner(study, store, table, resolved, overrides, swept)
    title = swept.name if swept else _title(study, stage)
    below = {PARENT: swept.parent, JOB_TAG: swept.digest} if swept else {}
    with store.pipeline_run(title, resolved, runner.config_text, {**runner.tags, **below}) as parent:
        parent.describe(runner.command())
        waits_for = runner.make_or_wait(last, session)
        parent.set_tags({"waits_for": waits_for} if waits_for else {})
        # A stage that was finished before has its run below another parent; here stands which.
        parent.set_tags({f"run/{name}": record.run_id for name, record in runner.records.items()})
        metrics, validation = runner.evaluation(), runner.validation()
        parent.log_metrics({**validation, **metrics})
        if "report" in runner.done:
            parent.log_file(runner.done["report"] / "report.html")
    _say(runner, metrics, config)
    return Outcome(runner.done, metrics, validation, waits_for)


def check(study: Study, stage: str) -> None:
    """Refuse at once what a stage, or one before it, would refuse later.

    Raises:
        ValueError: the stage has no part in this arm, it cannot be done in parts, or timm does not know the classifier.
        FileNotFoundError: there are no weights where the config says.
    """
    table = _table(study, stage)
    if stage not in (*table, "pipeline"):
        raise ValueError(f"stage={stage} has no part in arm={study.arm.name}, which trains on no synthetic images")
    if study.generate.shard and stage != "generate":
        raise ValueError(
            f"generate.shard={study.generate.shard} makes a part of the candidates, which is for stage=generate alone; "
            f"it is stage={stage}"
        )
    needed = _needed(table, stage)
    if "classify" in needed:
        check_start(study.classifier.model)
    if "dreambooth" in needed:
        find_source(study.backbone, FOLDERS)
    if "superres" in needed:
        find_source(study.superres.upscaler, FOLDERS)


def is_work(stage: str) -> bool:
    """Tell whether a name is that of a stage, or of several, rather than of something done to finished runs."""
    return stage in (*STAGES, *USES, *OPTIONAL, "pipeline", "pretrain")


def inputs_digest(study: Study, stage: str) -> str:
    """Return a digest of the files that a stage and those before it are given from outside: images, weights, decisions.

    New images are read and decoded here, once. Phantoms are drawn from their config: they are no input.
    """
    table = _table(study, stage)
    drawn = {"prepare"} if study.dataset.phantom else set()
    found = {}
    for name in sorted(_needed(table, stage) - drawn - {"report"}):
        config = table[name].config(study)
        found[name] = {key: config[key] for key in FILES if key in config}
    return artifact.digest_of(found)


def _table(study: Study, stage: str) -> Mapping[str, Stage]:
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


def _needed(table: Mapping[str, Stage], stage: str) -> set[str]:
    """Return a stage and all before it that there are, or all of the pipeline."""
    needed = set(table) if stage == "pipeline" else {stage}
    while more := {name for each in needed for name in table[each].reads if name in table} - needed:
        needed |= more
    return needed


def _title(study: Study, stage: str) -> str:
    if stage in ALONE:
        return stage
    name = f"{study.arm.name} seed {study.seed}"
    return name if stage == "pipeline" else f"{name}, {stage}"


class _Runner:
    """Makes stages and all before them, each at most once."""

    def __init__(
        self,
        study: Study,
        store: Store,
        table: Mapping[str, Stage],
        resolved: Mapping[str, Any],
        overrides: Sequence[str],
        swept: Swept | None = None,
    ) -> None:
        self.on_epoch, self.gives_up = (swept.on_epoch, swept.gives_up) if swept else (None, ())
        self.study, self.store, self.table, self.resolved, self.overrides = study, store, table, resolved, overrides
        self.done: dict[str, Path] = {}
        self.records: dict[str, artifact.StageRecord] = {}
        self.needed: set[str] = set()
        self.tags = {"backbone": study.backbone.name, "arm": study.arm.name, "seed": study.seed}
        if swept:
            self.tags[OF_SWEEP] = swept.parent
        self.config_text = yaml.safe_dump(dict(resolved))
        self.console = Console(stderr=True)

    def command(self, stage: str = "") -> str:
        """Return the command line that remakes a stage, or this run."""
        kept = [each for each in self.overrides if not stage or not each.startswith("stage=")]
        return shlex.join(["synthvision", *([f"stage={stage}"] if stage else []), *kept])

    def make_or_wait(self, name: str, session: Session | None) -> str:
        """Make a stage and all before it as far as that goes without people; return what it waits for, or nothing."""
        self.needed = _needed(self.table, name)
        reading = session if isinstance(self.study.review, PhysicianPolicy) else None
        try:
            if reading:
                for earlier in self.table[name].reads:
                    self.make(earlier)
                read(reading, self.study, self.done, _print)
            self.make(name)
        except Waiting as wait:
            _print(f"the study waits for its readers: {wait}\nopen the review page: {self.command('review')}")
            _print(f"then go on: {self._go_on()}")
            return str(wait)
        if reading:
            _print(f"all decisions are there; go on: {self._go_on()}")
        return ""

    def _go_on(self) -> str:
        """Return the command that goes on once readers are done."""
        kept = [each for each in self.overrides if not each.startswith(("stage=review", "stage."))]
        chosen = any(each.startswith(("review=", "+review=")) for each in kept)
        return shlex.join(["synthvision", *kept, *([] if chosen else ["review=physician"])])

    def make(self, name: str) -> None:
        if name in self.done:
            return
        stage = self.table[name]
        for earlier in stage.reads:
            if earlier in self.table:
                self.make(earlier)
        stage.ready(self.study, self.done)
        inputs = {earlier: self.records[earlier].output for earlier in stage.reads if earlier in self.records}
        depends = {**stage.config(self.study), "version": __version__, "code": artifact.code_digest(*stage.code)}
        if stage.device:
            depends["device"] = "cuda" if torch.cuda.is_available() else "cpu"
        fingerprint = artifact.fingerprint(name, depends, inputs)
        folder = self.study.folder / name / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        part = stage.part(self.study)
        lock = folder.with_suffix(f".{part.replace('/', '-of-')}.lock" if part else ".lock")
        with FileLock(lock):  # two jobs of a sweep may want the same work; parts of a stage are made at the same time
            record = artifact.finished(folder)
            if record is None and part:
                self._part(stage, folder, name, part)
                return
            if record is None:
                self._check_ahead(name)
                self.console.rule(f"{name} {fingerprint}", align="left")
                planned = artifact.StageRecord(name, fingerprint, depends, inputs, "", "", __version__, 0.0)
                record = self._work(stage, folder, planned)
            else:
                self.console.print(f"{name} {fingerprint}: finished before, reused")
        self.done[name], self.records[name] = folder, record

    def _check_ahead(self, name: str) -> None:
        """Refuse now, before this stage's work, what a later one of this run would refuse."""
        if prepared := self.done.get("prepare"):
            for later in sorted(self.needed - {name} - set(self.done)):
                self.table[later].allowed(self.study, prepared)

    def _part(self, stage: Stage, folder: Path, name: str, part: str) -> None:
        """Do a part of a stage's work; a run without a part takes up what all have left, and finishes."""
        self.console.rule(f"{name} {folder.name}, part {part}", align="left")
        with self.store.stage_run(name, self.resolved, self.config_text, {**self.tags, "part": part}) as tracked:
            self._log(tracked, stage.run(self._context(name, folder, tracked)))

    def _work(self, stage: Stage, folder: Path, record: artifact.StageRecord) -> artifact.StageRecord:
        start = time.monotonic()
        tags = {**self.tags, "fingerprint": record.fingerprint}
        with self.store.stage_run(record.stage, self.resolved, self.config_text, tags) as tracked:
            tracked.describe(self.command(record.stage))
            try:
                result = stage.run(self._context(record.stage, folder, tracked))
            except self.gives_up:
                shutil.rmtree(folder)  # its checkpoints would lie there for good
                raise
            self._log(tracked, result)
            for epochs, part in result.budgets.items():
                with self.store.budget_run(epochs, self.resolved, tags) as read_off:
                    self._log(read_off, part)
            finished = replace(
                record,
                output=artifact.tree_digest(folder),
                run_id=tracked.run_id,
                seconds=round(time.monotonic() - start, 1),
            )
            artifact.finish(folder, finished)
        return finished

    def _context(self, name: str, folder: Path, tracked: Run) -> Context:
        rows = [
            StageRow(r.stage, r.fingerprint, r.run_id, r.seconds, self.command(r.stage), self.store.link(r.run_id))
            for r in self.records.values()
        ]
        commands = {"the whole study": self.command("pipeline"), "this stage": self.command(name)}
        logger = tracked.lightning_logger()
        return Context(self.study, folder, dict(self.done), logger, tracked.run_id, rows, commands, self.on_epoch)

    def _log(self, tracked: Run, result: Result) -> None:
        tracked.log_metrics(result.metrics)
        tracked.set_tags(result.tags)
        for context, images in result.inputs.items():
            tracked.log_manifest(images, f"{self.study.study} {context}", context)
        for file in result.files:
            tracked.log_file(file)
        if result.classifier:
            side = self.study.classifier.model.image_size
            example = np.zeros((1, side, side, 3), np.uint8)  # a patient's image would travel with the model
            tracked.log_classifier(result.classifier, self.study.disease.classes, example)

    def evaluation(self) -> dict[str, float]:
        """Return the test metrics of the finished evaluation, or none."""
        return read_headline(self.done["evaluate"]) if "evaluate" in self.done else {}

    def validation(self) -> dict[str, float]:
        """Return what validation said of the classifier, trained now or before; or nothing."""
        return read_validation(self.done["classify"]) if "classify" in self.done else {}


def _print(text: str) -> None:
    """Print a line at once, unwrapped: it may hold a command or an address to be copied."""
    print(text, flush=True)


def _say(runner: _Runner, metrics: Mapping[str, float], config: TrackingConfig) -> None:
    console = Console()
    for name in HEADLINE:
        value, low, high = (metrics.get(f"test/{name}{end}") for end in ("", "_low", "_high"))
        if value is not None and low is not None and high is not None:
            console.print(f"  {name:<12} {value:.3f}   95% interval {low:.3f} to {high:.3f}", highlight=False)
    for name, folder in runner.done.items():
        if name == "ablation":
            for sentence in read_answer(folder):
                console.print(sentence, highlight=False)
        if name in PAGES:
            console.print(f"{name}: {(folder / PAGES[name]).absolute()}", highlight=False, soft_wrap=True)
        if name in USES:
            console.print(f"{name}: {folder.absolute()}", highlight=False, soft_wrap=True)
    if config.server:
        console.print(f"MLflow UI: {config.address}", highlight=False, soft_wrap=True)
        return
    # Through this command and not `mlflow ui`: it turns MLflow's telemetry off.
    ui = [sys.executable, "-m", "synthvision", "stage=ui", f"tracking.root={Path(config.root).absolute()}"]
    console.print(f"MLflow UI: {shlex.join(ui)}", highlight=False, soft_wrap=True)
