"""A study's values check themselves."""

from typing import Any

import pytest

from synthvision.data.intake import GuideSource
from synthvision.diffusion.dreambooth import Subject
from synthvision.study import Arm, Disease, Phase

SUBJECT = Subject("sks", "photo of sks spots", "photo of spots")


def disease(classes: list[str], label: str) -> Disease:
    return Disease("x", classes, GuideSource("guides", label), SUBJECT, ["photo of skin"], ["photo of sks"], {}, "")


def test_positive_is_the_first_class() -> None:
    assert disease(["wart", "normal"], "wart").positive == "wart"


@pytest.mark.parametrize("classes", [["wart"], ["wart", "wart"]])
def test_classes_are_two_or_more_names(classes: list[str]) -> None:
    with pytest.raises(ValueError, match=r"disease\.classes"):
        disease(classes, "wart")


def test_guides_show_the_positive_class() -> None:
    with pytest.raises(ValueError, match=r"disease\.guides\.label.*'wart'.*'normal'"):
        disease(["wart", "normal"], "normal")


@pytest.mark.parametrize("name", ["HPV+", " wart", "wart (early)", ""])
def test_a_class_is_named_so_that_metrics_can_be(name: str) -> None:
    with pytest.raises(ValueError, match=r"disease\.classes: .*metrics are named"):
        disease([name, "normal"], name)
    assert disease(["Läsion 2.1-b", "normal"], "Läsion 2.1-b").positive == "Läsion 2.1-b"


@pytest.mark.parametrize("positives", [[], ["synthetic", "imagined"]])
def test_arm_knows_what_it_trains_on(positives: list[str]) -> None:
    with pytest.raises(ValueError, match=r"arm\.positives"):
        Arm("mine", positives)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": {"real": 3}}, r"arm\.counts may name origins that .*, \['synthetic'\]; it names \['real'\]"),
        ({"counts": {"synthetic": 0}}, r"arm\.counts\.synthetic must be at least 1; it is 0"),
        ({"ratio": 0}, r"arm\.ratio must be above 0; it is 0"),
        ({"ratio": 2}, r"arm\.ratio=2 counts synthetic images by the real ones.*trains on \['synthetic'\]"),
    ],
)
def test_an_arm_s_numbers_fit_its_origins(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arm("mine", ["synthetic"], **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positives": []}, r"arm\.before\.positives must be one or more"),
        ({"epochs": 0}, r"arm\.before\.epochs must be above 0; it is 0"),
        ({"lr": -1.0}, r"arm\.before\.lr must be above 0; it is -1"),
    ],
)
def test_a_first_phase_checks_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phase(**{"positives": ["synthetic"], "epochs": 1, "lr": 1e-3, **values})
