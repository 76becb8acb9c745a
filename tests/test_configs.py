"""Every file in conf/ composes, resolves and makes its dataclasses."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from synthvision import cli
from synthvision.cli import OF_THE_STORE
from synthvision.diffusion.backbone import PACKAGE_WEIGHTS
from synthvision.stages.table import ALONE, OPTIONAL, STAGES, USES

CONF = cli.ROOT / "conf"
OPTIONS = sorted(file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def configs() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides))


def option(name: str) -> str:
    group, choice = name.split("/")
    return f"{group}={choice}"


def fitting(name: str) -> list[str]:
    """Return the override for an option, and for its partner: a disease without its data makes no study."""
    group, choice = name.split("/")
    partners = {"disease/example": "dataset=folders", "dataset/folders": "disease=example"}
    partners["dataset/table"] = "disease=example"
    if group in ("disease", "dataset") and name not in partners:
        partners[name] = f"{'dataset' if group == 'disease' else 'disease'}={choice}"
    return [option(name), *([partners[name]] if name in partners else [])]


@pytest.mark.parametrize("name", OPTIONS)
def test_option_composes_resolves_and_makes_a_study(name: str) -> None:
    config = composed(*fitting(name))
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    assert cli.study_of(config).study == resolved["study"]
    assert cli.make(config, "tracking").root == "mlruns"


@pytest.mark.parametrize("name", OPTIONS)
def test_file_says_what_it_is(name: str) -> None:
    lines = [line for line in (CONF / f"{name}.yaml").read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# "), f"{name}.yaml needs a comment on top"


def test_stages_are_those_of_the_pipeline() -> None:
    names = {composed(f"stage={file.stem}").stage.name: file.stem for file in (CONF / "stage").glob("*.yaml")}
    assert names == {name: name for name in (*STAGES, *USES, *OPTIONAL, *ALONE, *OF_THE_STORE, "pipeline", "ui")}


@pytest.mark.parametrize("name", [name for name in OPTIONS if not name.startswith("experiment/")])
def test_a_choice_on_the_command_line_beats_the_experiment(name: str) -> None:
    config, group = composed("experiment=hpv", option(name)), name.split("/")[0]
    file = OmegaConf.load(CONF / f"{name}.yaml")
    file.pop("defaults", None)
    chosen = config if name == "stage/review" or group == "arm" else config[group]  # they may change several groups
    assert OmegaConf.merge(chosen, file) == chosen


def test_a_value_holds_whatever_the_stage() -> None:
    for stage in ("prepare", "classify", "ui"):
        assert composed(f"stage={stage}", "experiment=hpv", "classifier.lr=1e-3").classifier.lr == 1e-3


def test_the_experiment_beats_the_defaults_and_the_arm_beats_both() -> None:
    assert composed("experiment=hpv").dreambooth.unet_steps == 2000
    assert composed("experiment=hpv", "arm=no_personalisation").dreambooth.unet_steps == 0
    mpox = composed("experiment=mpox")
    assert (mpox.generate.candidates, mpox.review.accept, list(mpox.review.per_set)) == (1600, 1000, [100, 150])
    assert len(mpox.disease.guides.sets) == 8


def test_the_review_page_is_for_physicians_unless_told_otherwise() -> None:
    assert composed("stage=review").review._target_.endswith("PhysicianPolicy")
    assert composed("stage=review", "experiment=mpox").review.accept == 1000
    assert composed("stage=review", "review=unattended").review._target_.endswith("UnattendedPolicy")
    assert composed("stage=classify").review._target_.endswith("UnattendedPolicy")


def test_every_arm_but_the_unreviewed_can_be_reviewed_by_physicians() -> None:
    for file in (CONF / "arm").glob("*.yaml"):
        if file.stem != "unreviewed":
            cli.study_of(composed("review=physician", f"arm={file.stem}"))


def test_what_beats_an_arm_does_not_make_its_control_the_method() -> None:
    with pytest.raises(ValueError, match=r"arm=no_personalisation .* must be 0; it has dreambooth\.unet_steps=1200"):
        cli.study_of(composed("arm=no_personalisation", "dreambooth.unet_steps=1200"))
    with pytest.raises(ValueError, match=r"arm=unreviewed .* must be unattended; it is physician"):
        cli.study_of(composed("arm=unreviewed", "review=physician"))


def test_an_arm_without_images_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match=r"at least 1 images of dataset\.counts\.warts\.train, which is 0; raise it"):
        cli.study_of(composed("experiment=hpv", "arm=real_only"))
    with pytest.raises(ValueError, match=r"at least 501 images of dataset\.counts\.lesion\.train, which is 500"):
        cli.study_of(composed("arm=real_some", "arm.counts.real=501"))
    with pytest.raises(ValueError, match=r"classifier\.warmup_epochs must be .* below epochs=1"):
        cli.study_of(composed("arm=pretrain_finetune", "arm.before.epochs=1"))


def test_an_arm_is_named_by_its_numbers() -> None:
    assert composed("arm=real_some", "arm.counts.real=10").arm.name == "real_10"
    assert composed("arm=mixed", "arm.ratio=0.5").arm.name == "mixed_25_real_0.5_to_1"


def test_papers_recipes() -> None:
    hpv, mpox = composed("experiment=hpv"), composed("experiment=mpox")
    steps = (hpv.dreambooth.unet_steps, hpv.dreambooth.unet_lr, hpv.dreambooth.text_steps, hpv.dreambooth.text_lr)
    assert steps == (2000, 2e-6, 350, 4e-7)
    assert (hpv.classifier.batch_size, hpv.classifier.epochs, hpv.classifier.lr) == (64, 150, 1e-4)
    assert (hpv.classifier.optimizer, mpox.classifier.optimizer) == ("rmsprop", "adam")
    assert hpv.dataset.counts == {
        "warts": {"train": 0, "val": 50, "test": 70},
        "normal": {"train": 500, "val": 50, "test": 70},
    }
    model = mpox.classifier.model
    assert (model.image_size, model.hidden, mpox.classifier.batch_size) == (384, 128, 32)
    assert (mpox.classifier.schedule, mpox.classifier.stop_after is None) == ("plateau", False)
    used = {name for name, value in mpox.classifier.augment.items() if name != "_target_" and value}
    assert used == {"rotation", "brightness"}
    off = {"class_weights": None, "mixup": 0, "cutmix": 0, "ema": 0, "layer_decay": 1, "frozen_layers": 0,
           "gradient_clip": None, "label_smoothing": 0, "warmup_epochs": 0, "samples_per_epoch": None}  # fmt: skip
    for recipe in (hpv.classifier, mpox.classifier):
        assert {name: recipe[name] for name in off} == off
        assert (recipe.model.drop_path, recipe.model.attention_dropout > 0) == (0, True)
        assert recipe.model.weights.startswith("hub:timm/vit_base_patch16_")  # and a commit: ModelConfig asks for it
    assert [mpox.dataset.counts.other[split] for split in ("train", "val", "test")] == [1000, 150, 100]


def test_counts_and_sources_know_the_disease_s_classes() -> None:
    for experiment in ("phantom", "hpv", "mpox"):
        config = composed(f"experiment={experiment}")
        assert list(config.dataset.counts) == list(config.disease.classes)
        assert config.disease.guides.label == config.disease.classes[0]
        assert config.review.accept <= config.generate.candidates


def test_prompts_use_the_identifier_and_known_attributes() -> None:
    for experiment in ("phantom", "hpv", "mpox"):
        disease = composed(f"experiment={experiment}").disease
        for template in disease.templates:
            assert disease.subject.identifier in template.split()
            template.format(**{name: values[0] for name, values in disease.attributes.items()})
        for prompt in disease.class_prompts:
            assert disease.subject.identifier not in prompt.split()
            prompt.format(**{name: values[0] for name, values in disease.attributes.items()})


def test_defaults_are_in_order() -> None:
    """`_self_` first, or it beats the experiment; the arm after the experiment, or it is beaten by it."""
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    names = [item if isinstance(item, str) else next(iter(item)) for item in defaults]
    wanted = ["_self_", "experiment", "arm"]
    places = [names.index(name) for name in wanted]
    assert all(first < second for first, second in pairwise(places))
    assert names[0] == "_self_"


@pytest.mark.parametrize(("weights", "part"), [("tiny", "backbone"), ("tiny_x4", "upscaler"), ("tiny_vit", "vit")])
def test_the_weights_that_ship_were_made_with_the_config_that_ships(weights: str, part: str) -> None:
    made = json.loads((PACKAGE_WEIGHTS / weights / "provenance.json").read_text())
    pretrain = cli.study_of(composed("stage=pretrain")).pretrain
    assert made["config"] == asdict(getattr(pretrain, part))
    assert made["seed"] == pretrain.seed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dataset.counts.lesion.test=0", r"dataset\.counts\.lesion\.test must be at least 1"),
        ("dataset.counts.normal.val=0", r"dataset\.counts\.normal\.val must be at least 1"),
        ("generate.candidates=499", r"generate\.candidates=499 must be at least review\.accept=500"),
        ("+arm.counts={other: 5}", r"arm\.counts may name \('synthetic', 'guides', 'real', 'normal'\)"),
        ("+arm.counts={normal: 501}", r"needs at least 501 images of dataset\.counts\.normal\.train, which is 500"),
        ("generate.prompts=/no/such.yaml", r"generate\.prompts: there is no file"),
        ("generate.safety_checker=/no/such", r"generate\.safety_checker: there is no model in /no/such"),
        ("memorisation.encoder=/no/such", r"memorisation\.encoder: there is no model in /no/such"),
    ],
)
def test_what_would_fail_late_is_refused_at_once(change: str, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cli.study_of(composed(change))
