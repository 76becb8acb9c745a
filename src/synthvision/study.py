"""A study in plain values: what is asked, of which images, with which recipes. Each field is a group of `conf/`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from synthvision.classification.pretrain import VitPretrainConfig
from synthvision.classification.train import ClassifierConfig
from synthvision.data.guide_sets import GuideSets, sets_of
from synthvision.data.intake import FolderSource, GuideSource, TableSource
from synthvision.data.phantom import PhantomConfig
from synthvision.data.rules import Rules
from synthvision.diffusion.backbone import BackboneConfig
from synthvision.diffusion.dreambooth import DreamBoothConfig, Subject
from synthvision.diffusion.encoder import existing
from synthvision.diffusion.memorisation import GateConfig
from synthvision.diffusion.plan import GenerationConfig
from synthvision.diffusion.pretrain import PretrainConfig
from synthvision.diffusion.pretrain_upscaler import UpscalerPretrainConfig
from synthvision.diffusion.prompt_file import read_prompts
from synthvision.diffusion.superres import SuperResConfig
from synthvision.diffusion.upscale import UpscalingConfig
from synthvision.diffusion.upscaler import UpscalerConfig
from synthvision.evaluation.evaluate import SUBGROUP_COLUMNS, Choices
from synthvision.evaluation.subgroups import MINIMUM
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.unattended import UnattendedPolicy

CLASS_NAME = r"\w([\w .-]*\w)?"
POSITIVES = ("synthetic", "guides", "real")
REJECT_REASONS = (
    "anatomy wrong", "not this disease", "wrong stage", "wrong skin tone or place", "artefact", "blurred",
    "looks like a guide", "other",
)  # fmt: skip


@dataclass(frozen=True)
class Disease:
    """What is looked for, and how the diffusion model is told of it.

    Raises:
        ValueError: fewer than two classes, a class twice, a name that MLflow cannot keep, guides of a class that is
            not the first, or reasons to reject that cannot be told apart.
    """

    name: str
    classes: Sequence[str]  # the disease first: it is the positive class
    guides: GuideSource | GuideSets
    subject: Subject
    class_prompts: Sequence[str]  # templates of what prior preservation keeps
    templates: Sequence[str]  # templates of prompts for candidates
    attributes: Mapping[str, Sequence[str]]  # what the templates' fields may be
    negative_prompt: str
    reject_reasons: Sequence[str] = REJECT_REASONS  # of which a physician chooses; the last asks for words

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"disease.classes must be two or more different names; they are {list(self.classes)}")
        for name in self.classes:
            if not re.fullmatch(CLASS_NAME, name):
                raise ValueError(
                    f"disease.classes: a name may hold letters, digits, spaces and . _ - and must begin and end "
                    f"with a letter or digit, since metrics are named by it; {name!r} breaks this. Map your table's "
                    "label to such a name with labels"
                )
        if self.guides.label != self.positive:
            raise ValueError(
                f"disease.guides.label must be the first of disease.classes, {self.positive!r}; "
                f"it is {self.guides.label!r}"
            )
        reasons = list(self.reject_reasons)
        if not 1 <= len(set(reasons)) == len(reasons) <= 9 or any(":" in each or " of " in each for each in reasons):
            raise ValueError(
                f"disease.reject_reasons must be 1 to 9 different ones (each has a digit) without ':' or ' of ', which "
                f"end a reason's kind; they are {reasons}"
            )

    @property
    def positive(self) -> str:
        """The class that is looked for."""
        return self.classes[0]

    def check_sets(self) -> None:
        """Refuse an attribute of a set that prompts do not know, or a value that it cannot have."""
        for one in sets_of(self.guides):
            for key, value in one.attributes.items():
                if value not in self.attributes.get(key, ()):
                    raise ValueError(
                        f"disease.guides.sets: {one.name!r} has {key}={value!r}, which must be a value of "
                        f"disease.attributes; that has {dict(self.attributes)}"
                    )


@dataclass(frozen=True)
class Dataset:
    """Where real images come from and how many go into which split."""

    folder: str
    phantom: PhantomConfig | None  # drawn into `folder` first
    sources: Sequence[FolderSource | TableSource]
    counts: Mapping[str, Mapping[str, int]]  # label -> train / val / test -> images
    size: int  # side of the prepared images in pixels
    leaks: str  # see `rules` for this and the following
    seed: int  # of the split; not the study's: all seeds of a study are judged on the same images
    two_labels: str = "stop"
    most_unusable: float = 0.2
    stratify: Sequence[str] = ()
    estimate_tone: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        self.rules  # noqa: B018 - checks itself

    @property
    def rules(self) -> Rules:
        """How the images are checked and split."""
        names = (field.name for field in fields(Rules))
        return Rules(**{name: getattr(self, name) for name in names})


def _check_origins(key: str, positives: Sequence[str]) -> None:
    if not positives or not set(positives) <= set(POSITIVES):
        raise ValueError(f"{key} must be one or more of {POSITIVES}; it is {list(positives)}")


@dataclass(frozen=True)
class Phase:
    """A first training, whose weights the arm's own training starts from.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    positives: Sequence[str]  # as of an arm
    epochs: int
    lr: float

    def __post_init__(self) -> None:
        _check_origins("arm.before.positives", self.positives)
        for name in ("epochs", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"arm.before.{name} must be above 0; it is {getattr(self, name)!r}")


@dataclass(frozen=True)
class Arm:
    """What the disease class is trained on; the other classes are real images.

    Args:
        name: of the arm, in every table.
        positives: of POSITIVES.
        counts: how many images: of an origin in `positives`, or of another class by its name; all where it has none.
            The images of a smaller number are among those of a greater one.
        ratio: synthetic images for each real one and guide.
        equal_classes: every other class has as many images as the disease.
        before: a first training; None for none.
        symmetric: the other classes are trained on images that went through the same model as the disease's.
        personalised: False for a control whose synthetic images come from the base, without a DreamBooth step.
        reviewed: False where readers' decisions have no part in it.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    name: str
    positives: Sequence[str]
    counts: Mapping[str, int] = field(default_factory=dict)
    ratio: float | None = None
    equal_classes: bool = False
    before: Phase | None = None
    symmetric: bool = False
    personalised: bool = True
    reviewed: bool = True

    def __post_init__(self) -> None:
        _check_origins("arm.positives", self.positives)
        if self.symmetric and self.origins != ["synthetic"]:
            raise ValueError(
                f"arm.symmetric=true has all images go through the model: arm.positives must be ['synthetic'] alone, "
                f"in every phase; the arm trains on {self.origins}"
            )
        unused = sorted(set(self.counts) & set(POSITIVES) - set(self.origins))
        if unused:
            raise ValueError(f"arm.counts may name origins that the arm trains on, {self.origins}; it names {unused}")
        for name, count in self.counts.items():
            if count < 1:
                raise ValueError(f"arm.counts.{name} must be at least 1; it is {count!r}")
        if self.ratio is not None:
            self._check_ratio(self.ratio)

    def _check_ratio(self, ratio: float) -> None:
        if ratio <= 0:
            raise ValueError(f"arm.ratio must be above 0; it is {ratio!r}")
        if "synthetic" not in self.origins or len(self.origins) < 2 or "synthetic" in self.counts:
            raise ValueError(
                f"arm.ratio={ratio:g} counts synthetic images by the real ones and guides: it needs both among "
                f"arm.positives and arm.before.positives, and no arm.counts.synthetic; the arm trains on {self.origins}"
            )

    @property
    def origins(self) -> list[str]:
        """All that the disease class is trained on, in any phase."""
        first = self.before.positives if self.before else ()
        return [name for name in POSITIVES if name in (*first, *self.positives)]


@dataclass(frozen=True)
class EvaluationConfig:
    """The test set is opened once; again only for a reason, which the ledger and the report keep.

    Raises:
        ValueError: a prevalence is 0 or 1, or a column is none of the manifest's.
    """

    reopen: str | None
    prevalences: Sequence[float] = ()
    subgroups: Sequence[str] = SUBGROUP_COLUMNS
    intersections: bool = True
    minimum: int = MINIMUM
    cases: int = 6
    external: Sequence[str] = ()  # names of external test sets to open
    baseline: str = "guides_only"  # the arm that stage=ablation sets the others beside

    def __post_init__(self) -> None:
        self.choices({}, 1.0)
        if len(set(self.external)) != len(self.external):
            raise ValueError(f"evaluate.external must name each set once; it is {list(self.external)}")
        if self.cases < 0:
            raise ValueError(f"evaluate.cases must be 0 or more; it is {self.cases!r}")

    def choices(self, thresholds: Mapping[str, float], temperature: float) -> Choices:
        """Return what evaluation is told, with what validation gave."""
        return Choices(
            thresholds, temperature, tuple(self.prevalences), tuple(self.subgroups), self.intersections, self.minimum
        )


@dataclass(frozen=True)
class PredictConfig:
    """Which images a finished classifier answers, and how; see `conf/predict/files.yaml`."""

    images: str | None = None
    column: str = "file"
    weights: str | None = None
    rule: str | None = None


@dataclass(frozen=True)
class SuperResolution:
    """The x4 upscaler: which, how it is fine-tuned on the guides, how it is used."""

    candidates: bool  # whether candidates pass through it
    upscaler: UpscalerConfig
    training: SuperResConfig
    upscaling: UpscalingConfig


@dataclass(frozen=True)
class Pretraining:
    """How the weights that ship with the package were trained."""

    seed: int
    backbone: PretrainConfig
    upscaler: UpscalerPretrainConfig
    vit: VitPretrainConfig


@dataclass(frozen=True)
class Study:
    """Everything a study's result depends on.

    Raises:
        ValueError: a class has no test images to be judged on, or fewer candidates are made than are wanted: both would
            show only after hours of work.
        FileNotFoundError: there is no safety checker or encoder where the config says, which would show as late.
    """

    study: str
    seed: int
    root: str
    backbone: BackboneConfig
    disease: Disease
    dataset: Dataset
    dreambooth: DreamBoothConfig
    superres: SuperResolution
    generate: GenerationConfig
    memorisation: GateConfig
    review: UnattendedPolicy | PhysicianPolicy
    classifier: ClassifierConfig
    evaluate: EvaluationConfig
    predict: PredictConfig
    arm: Arm
    pretrain: Pretraining

    def __post_init__(self) -> None:
        for name in self.disease.classes:
            for split in ("val", "test"):
                if self.dataset.counts.get(name, {}).get(split, 0) < 1:
                    raise ValueError(
                        f"dataset.counts.{name}.{split} must be at least 1: each class of disease.classes is judged; "
                        f"dataset.counts is {self.dataset.counts}"
                    )
        self.disease.check_sets()
        self._check_arm()
        if self.generates:
            self._check_candidates()
            models = {"generate.safety_checker": self.generate.safety_checker}
            for key, folder in {**models, "memorisation.encoder": self.memorisation.encoder}.items():
                if folder:
                    existing(folder, key)

    def _check_arm(self) -> None:
        """Refuse an arm that asks for more images than there can be, or for classes that there are not."""
        arm, others = self.arm, [name for name in self.disease.classes if name != self.disease.positive]
        unknown = sorted(set(arm.counts) - {*POSITIVES, *others})
        if unknown:
            raise ValueError(f"arm.counts may name {(*POSITIVES, *others)}; it names {unknown}")
        there = {name: self.dataset.counts[name].get("train", 0) for name in others}
        if "real" in arm.origins:
            there["real"] = self.dataset.counts[self.disease.positive].get("train", 0)
        if self.generates:
            there["synthetic"] = self.review.accept
        if arm.symmetric:
            self._check_symmetric()
        self._check_control()
        if arm.before:
            replace(self.classifier, epochs=arm.before.epochs, lr=arm.before.lr)  # checks itself
        for name, most in there.items():
            wanted = arm.counts.get(name, 1)
            if wanted > most:
                key = "review.accept" if name == "synthetic" else f"dataset.counts.{self._label(name)}.train"
                raise ValueError(f"arm={arm.name} needs at least {wanted} images of {key}, which is {most}; raise it")

    def _check_control(self) -> None:
        """Refuse a control that the command line or a sweep, which win over the arm, would make the method again."""
        steps = {f"dreambooth.{key}": getattr(self.dreambooth, key) for key in ("unet_steps", "text_steps")}
        trained = [f"{key}={count}" for key, count in steps.items() if count]
        if not self.arm.personalised and trained:
            raise ValueError(
                f"arm={self.arm.name} stands for the base without a DreamBooth step: {' and '.join(steps)} must be 0; "
                f"it has {', '.join(trained)}. Set other arms' in a file (dreambooth=MINE), which this arm beats"
            )
        if not self.arm.reviewed and isinstance(self.review, PhysicianPolicy):
            raise ValueError(
                f"arm={self.arm.name} takes candidates as they come: review must be unattended; it is physician. Set "
                "review=physician for the other arms alone (hydra.sweeper.tables)"
            )

    def _check_symmetric(self) -> None:
        if self.generate.mode == "paint" and len(self.disease.classes) > 2:
            raise ValueError(
                f"arm.symmetric with generate=paint paints healthy skin into the other classes, which must not show a "
                f"disease; disease.classes are {list(self.disease.classes)}. Use generate=noise or img2img"
            )
        if len(sets_of(self.disease.guides)) > 1:
            raise ValueError("arm.symmetric needs one set of guides, whose model all images go through; there are more")

    def _label(self, name: str) -> str:
        return self.disease.positive if name == "real" else name

    def _check_candidates(self) -> None:
        if isinstance(self.review, PhysicianPolicy):  # other rounds add to what one gives, and fewer may be used
            return
        file, count = self.generate.prompts, self.generate.candidates
        if file:
            rows = read_prompts(file, self.disease.attributes)
            count = sum(row.variants for row in rows)
        if count < self.review.accept:
            named = f"the variants in {file}, {count} in all," if file else f"generate.candidates={count}"
            raise ValueError(f"{named} must be at least review.accept={self.review.accept}")

    @property
    def folder(self) -> Path:
        """The study folder: every path in a manifest is relative to it."""
        return Path(self.root) / self.study

    @property
    def generates(self) -> bool:
        """Whether the arm needs synthetic images."""
        return "synthetic" in self.arm.origins
