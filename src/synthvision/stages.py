"""What each stage does: it reads the folders of stages before it, writes its own, and returns what is worth logging."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from pytorch_lightning.loggers import Logger

from synthvision import __version__, artifact
from synthvision.classification.pretrain import pretrain_vit
from synthvision.classification.train import predict, train
from synthvision.data.phantom import write_phantoms
from synthvision.data.prepare import prepare
from synthvision.diffusion import backbone, dreambooth
from synthvision.diffusion.backbone import PACKAGE, PACKAGE_WEIGHTS, BackboneConfig
from synthvision.diffusion.generate import generate
from synthvision.diffusion.pretrain import pretrain
from synthvision.diffusion.prompts import expand, expand_over
from synthvision.evaluation.evaluate import evaluate
from synthvision.evaluation.figures import figures_of, png
from synthvision.evaluation.intervals import Estimate
from synthvision.evaluation.ledger import Ledger, Opening
from synthvision.evaluation.probes import Probe
from synthvision.evaluation.report import ReportInput, StageRow, write_report
from synthvision.evaluation.shortcuts import probe_metrics, probe_study, read_probes, write_probes
from synthvision.manifest import Manifest, kind_of_reason
from synthvision.predictions import Predictions
from synthvision.review.unattended import decide
from synthvision.study import Study

MANIFEST = "manifest.csv"
WEIGHTS = "weights"
PHANTOM = "phantom.json"  # says how the phantoms beside it were drawn
PACKAGES = ("torch", "diffusers", "transformers", "timm", "pytorch-lightning", "mlflow", "numpy", "pillow")


@dataclass(frozen=True)
class Result:
    """What a stage wants logged."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Sequence[Path] = ()
    inputs: Mapping[str, Manifest] = field(default_factory=dict)  # context ("training") -> images
    classifier: Path | None = None  # weights folder
    tags: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a stage is given."""

    study: Study
    out: Path  # the stage's folder
    before: Mapping[str, Path]  # folders of the finished stages it reads
    logger: Logger | None
    run_id: str
    stages: Sequence[StageRow] = ()  # of the finished stages, for the report
    commands: Mapping[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Resumable state, gone when the stage is finished."""
        return self.out / artifact.WORK

    def manifest(self, stage: str) -> Manifest:
        """Read the manifest of a stage before."""
        return Manifest.read(self.before[stage] / MANIFEST, self.study.folder)


def run_prepare(given: Context) -> Result:
    """Read, check and split the real images."""
    study, data = given.study, given.study.dataset
    audit = prepare(
        data.sources, study.disease.guides, data.counts, data.size, data.seed, study.folder, given.out,
        study.disease.classes, data.leaks,
    )  # fmt: skip
    counts = {f"images/{label}/{part}": n for label, row in audit.counts().items() for part, n in row.items()}
    metrics = {**counts, "quarantined": audit.quarantined, "duplicates": audit.duplicates, "leaks": len(audit.leaks)}
    return Result(metrics, files=[given.out / "audit.json"], inputs={"prepared": audit.manifest})


def draw_phantoms(study: Study) -> None:
    """Draw the phantom study's images, unless they are there: what follows treats them as a user's."""
    config = study.dataset.phantom
    if config is None:
        return
    folder = Path(study.dataset.folder)
    wanted = {"config": asdict(config), "code": artifact.code_digest("data")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # two jobs of a sweep may start at once
        marker = folder / PHANTOM
        if marker.is_file() and json.loads(marker.read_text()) == wanted:
            return
        if folder.exists() and not marker.is_file():
            raise ValueError(
                f"dataset.folder={folder} holds something else; for your own images set dataset.phantom=null"
            )
        drawing = folder.with_name(f".{folder.name}{artifact.PART}")
        for old in (folder, drawing):
            shutil.rmtree(old, ignore_errors=True)
        write_phantoms(drawing, config)
        artifact.write_json(drawing / PHANTOM, wanted)
        drawing.rename(folder)


def run_dreambooth(given: Context) -> Result:
    """Personalise the diffusion model on the guides."""
    study, disease = given.study, given.study.disease
    guides = given.manifest("prepare").where(split="guide")
    templates = disease.class_prompts or [disease.subject.class_prompt]
    prompts = expand(templates, disease.attributes, study.dreambooth.class_images, study.seed)
    done = dreambooth.train(
        backbone.load(study.backbone), guides, disease.subject, [prompt.text for prompt in prompts], study.dreambooth,
        given.out, given.work, study.seed, given.logger,
    )  # fmt: skip
    metrics = {f"final/{name}_loss": value for name, value in done.final.items()}
    return Result(metrics, files=done.grids, inputs={"guides": guides})


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


def run_review(given: Context) -> Result:
    """Decide on every candidate."""
    real, candidates = given.manifest("prepare"), given.manifest("generate")
    decided = decide(candidates, real.where(split="guide"), given.study.review, given.study.dataset.size, real)
    decided.write(given.out / MANIFEST)
    accepted, rejected = decided.where(decision="accept"), decided.where(decision="reject")
    reasons = Counter(kind_of_reason(record.reason) for record in rejected)
    metrics = {f"rejected/{reason}": float(count) for reason, count in sorted(reasons.items())}
    tags = {"reviewer": ", ".join(sorted(set(decided.column("reviewer"))))}
    return Result({"accepted": len(accepted), **metrics}, [given.out / MANIFEST], {"accepted": accepted}, tags=tags)


def training_images(given: Context) -> Manifest:
    """Return what the arm trains on: real images of the other classes, and the disease class as the arm says."""
    real, disease = given.manifest("prepare"), given.study.disease
    images = real.where(lambda r: r.split == "train" and r.label != disease.positive)
    for kind in given.study.arm.positives:
        if kind == "synthetic":
            images += given.manifest("review").where(decision="accept").with_values(lambda _: {"split": "train"})
        elif kind == "guides":
            images += real.where(split="guide")
        else:
            images += real.where(split="train", label=disease.positive)
    return images


def run_classify(given: Context) -> Result:
    """Train the classifier; epoch and threshold come from validation."""
    study = given.study
    images, validation = training_images(given), given.manifest("prepare").where(split="val")
    done = train(
        images, validation, study.disease.classes, study.classifier, given.out, given.work, study.seed, given.logger
    )
    images.write(given.out / "training.csv")
    done.val_predictions.write(given.out / "validation.csv")
    _write_rows(given.out / "history.csv", done.history)
    best = {f"best/{name}": value for name, value in done.history[done.best_epoch].items()}
    return Result(
        {**best, "threshold": done.threshold},
        [given.out / "history.csv", given.out / "validation.csv"],
        {"training": images, "validation": validation},
        classifier=done.weights,
    )


def run_evaluate(given: Context) -> Result:
    """Open the test set, once, and predict on it."""
    study = given.study
    test = given.manifest("prepare").where(split="test")
    probes = _probes(given)  # before the test set is opened: nothing may fail afterwards that could fail now
    opening = open_test_set(given, test)
    predictions = predict(given.before["classify"] / WEIGHTS, test, study.classifier.batch_size)
    predictions.write(given.out / "predictions.csv")
    result = evaluate(predictions, test, _threshold(given), study.disease.positive, study.seed)
    artifact.write_json(given.out / "evaluation.json", asdict(result))
    write_probes(given.out / "probes.json", probes)
    for name, figure in figures_of(result).items():
        artifact.write_bytes(given.out / "figures" / f"{name}.png", png(figure))
    return Result(
        read_headline(given.out),
        [given.out / "predictions.csv", given.out / "figures"],
        {"testing": test},
        tags={"test_opening": opening.number},
    )


def open_test_set(given: Context, test: Manifest) -> Opening:
    """Enter the opening into the ledger before any test label is read."""
    ledger = Ledger(given.study.folder / "ledger")
    return ledger.open(identity_of(test), given.out.name, given.run_id, given.study.evaluate.reopen)


def identity_of(test: Manifest) -> str:
    """Return a digest of a test set's images, at whatever size they were prepared and wherever they lie, and labels.

    An image's id holds the digest of the file that it was read from.
    """
    return artifact.digest_of(sorted((record.image_id, record.label) for record in test))


def _rows(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Return test metrics with their intervals' ends, under MLflow names."""
    rows: dict[str, float] = {}
    for name, estimate in estimates.items():
        rows |= {f"test/{name}": estimate.value, f"test/{name}_low": estimate.low, f"test/{name}_high": estimate.high}
    return {name: value for name, value in rows.items() if value == value}


def read_headline(folder: Path) -> dict[str, float]:
    """Return the test metrics and probes that a finished evaluation left in its folder."""
    saved = json.loads((folder / "evaluation.json").read_text())["estimates"]
    estimates = {name: Estimate(**value) for name, value in saved.items()}
    return {**_rows(estimates), **probe_metrics(read_probes(folder / "probes.json"))}


def _probes(given: Context) -> tuple[Probe, ...]:
    known = given.manifest("prepare").where(lambda record: record.split in ("guide", "train", "val"))
    none = Manifest((), given.study.folder)
    synthetic = given.manifest("review").where(decision="accept") if given.study.generates else none
    return probe_study(known, synthetic, given.study.disease.positive, given.study.dataset.size)


def _threshold(given: Context) -> float:
    return float(json.loads((given.before["classify"] / WEIGHTS / "model.json").read_text())["threshold"])


def run_report(given: Context) -> Result:
    """Write the report from what the stages before it left."""
    study, disease = given.study, given.study.disease
    real = given.manifest("prepare")
    test = real.where(split="test")
    result = evaluate(
        Predictions.read(given.before["evaluate"] / "predictions.csv"),
        test,
        _threshold(given),
        disease.positive,
        study.seed,
    )
    audit = json.loads((given.before["prepare"] / "audit.json").read_text())
    described = json.loads((given.before["classify"] / WEIGHTS / "model.json").read_text())
    trained = given.before.get("dreambooth")
    page = write_report(
        ReportInput(
            study=study.study,
            title=f"{disease.name}: {', '.join(disease.classes)}",
            backbone=study.backbone.name,
            arm=study.arm.name,
            real=real,
            candidates=given.manifest("review") if study.generates else Manifest((), study.folder),
            training=Manifest.read(given.before["classify"] / "training.csv", study.folder),
            evaluation=result,
            openings=Ledger(study.folder / "ledger").openings(identity_of(test)),
            probes=read_probes(given.before["evaluate"] / "probes.json"),
            diffusion_losses=_losses(trained),
            history=_read_rows(given.before["classify"] / "history.csv"),
            best_epoch=described["epoch"],
            stages=given.stages,
            commands=given.commands,
            versions=_versions(),
            seeds={"seed": study.seed, "dataset.seed": study.dataset.seed},
            quarantined=audit["quarantined"],
            duplicates=audit["duplicates"],
            leaks=len(audit["leaks"]),
            samples=sorted((trained / "samples").glob("*.png")) if trained else (),
        ),
        given.out,
    )
    return Result(files=[page, given.out / "report.json", given.out / "figures"])


def _losses(trained: Path | None) -> list[dict[str, float]]:
    """Return DreamBooth's losses by step; none for an arm without it and for the control without a step."""
    file = trained / "losses.csv" if trained else None
    return _read_rows(file) if file and file.is_file() else []


def _versions() -> dict[str, str]:
    own = {"synthvision": __version__, "python": platform.python_version()}
    return own | {package: version(package) for package in PACKAGES}


def _write_rows(file: Path, rows: Sequence[Mapping[str, float]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    artifact.write_text(file, "\n".join(lines) + "\n")


def _read_rows(file: Path) -> list[dict[str, float]]:
    with file.open(newline="") as handle:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(handle)]


def run_pretrain(given: Context) -> Result:
    """Train the weights that ship with the package, and say beside each how it was made."""
    settings = given.study.pretrain
    tiny = pretrain(settings.backbone, given.out / "tiny", given.work / "tiny", settings.seed, given.logger)
    vit = pretrain_vit(settings.vit, given.out / "tiny_vit", given.work / "tiny_vit", settings.seed, given.logger)
    for name, config, metrics in (("tiny", settings.backbone, tiny), ("tiny_vit", settings.vit, vit)):
        made = {"command": given.commands["this stage"], "seed": settings.seed, "config": asdict(config)}
        artifact.write_json(given.out / name / "provenance.json", {**made, "metrics": metrics, "versions": _versions()})
    return Result({**tiny, **vit}, [given.out / "tiny" / "samples.png"])


def source_digest(study: Study) -> str:
    """Return a digest of what the user's sources tell and of the files they name."""
    sources = [study.disease.guides, *study.dataset.sources]
    rows = [
        (number, found.file.name, sorted(found.values.items()), _digest_of_file(found.file))
        for number, source in enumerate(sources)
        for found in source.read()
    ]
    return artifact.digest_of(rows)


def _digest_of_file(file: Path) -> str:
    try:
        return artifact.sha256_file(file)
    except OSError:
        return "unreadable"  # prepare will say why


def weights_digest(source: str | None) -> str:
    """Return a digest of weights on disk or in the package; what the Hub's id and revision name has none here."""
    if source is None:
        return ""
    path = PACKAGE_WEIGHTS / source.removeprefix(PACKAGE) if source.startswith(PACKAGE) else Path(source)
    if path.is_dir():
        return artifact.tree_digest(path)
    return artifact.sha256_file(path) if path.is_file() else ""
