"""Runs a stage and all before it: what is finished is reused, what was interrupted goes on.

A stage's folder is `<root>/<study>/<stage>/<fingerprint>/`. The fingerprint is a hash of the config that the stage
reads and of its inputs' digests, so equal work is done once, whichever run, arm or sweep asks for it first.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from synthvision.stages.ablation import PAGE, read_answer
from synthvision.stages.classify import read_validation
from synthvision.stages.context import Context, Result, Waiting
from synthvision.stages.evaluate import read_headline
from synthvision.stages.prepare import draw_phantoms
from synthvision.stages.reading import Session, read
from synthvision.stages.table import ALONE, OPTIONAL, STAGES, USES, Stage, needed_for, stages_for
from synthvision.study import Study
from synthvision.tracking.config import JOB_TAG, OF_SWEEP, PARENT, TrackingConfig
from synthvision.tracking.runs import Run
from synthvision.tracking.store import Store, open_store

FILES = ("files", "weights", "images", "decisions")  # keys of a stage's config that are digests of files from outside
FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # of every diffusion model
PAGES = {"report": "report.html", "ablation": PAGE}
HEADLINE = ("accuracy", "sensitivity", "specificity", "auc")


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
    table = stages_for(study, stage)
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
    table = stages_for(study, stage)
    if stage not in (*table, "pipeline"):
        raise ValueError(f"stage={stage} has no part in arm={study.arm.name}, which trains on no synthetic images")
    if study.generate.shard and stage != "generate":
        raise ValueError(
            f"generate.shard={study.generate.shard} makes a part of the candidates, which is for stage=generate alone; "
            f"it is stage={stage}"
        )
    needed = needed_for(table, stage)
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
    table = stages_for(study, stage)
    drawn = {"prepare"} if study.dataset.phantom else set()
    found = {}
    for name in sorted(needed_for(table, stage) - drawn - {"report"}):
        config = table[name].config(study)
        found[name] = {key: config[key] for key in FILES if key in config}
    return artifact.digest_of(found)


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
        self.needed = needed_for(self.table, name)
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
