"""Class images are painted once, whoever asks, and again when anything they depend on has changed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbones import make
from test_dreambooth import CONFIG

from synthvision.diffusion.class_images import class_pictures, weights_digest

PROMPTS = ("skin, moles", "skin, rings")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights") / "tiny"


def test_they_are_painted_once_and_shared(weights: Path, tmp_path: Path) -> None:
    first = class_pictures(make("tiny", weights), PROMPTS, CONFIG, tmp_path, 1)
    assert first.column("prompt") == ["skin, moles", "skin, rings", "skin, moles"]
    times = [first.file(record).stat().st_mtime_ns for record in first]
    again = class_pictures(make("tiny", weights), PROMPTS, replace(CONFIG, unet_lr=2e-3), tmp_path, 1)
    assert again == first
    assert [again.file(record).stat().st_mtime_ns for record in again] == times


def test_what_they_depend_on_makes_others(weights: Path, tmp_path: Path) -> None:
    other = make("tiny", weights)
    with torch.no_grad():
        next(other.unet.parameters()).mul_(1.5)
    cases = [
        (make("tiny", weights), PROMPTS, CONFIG, 1),
        (make("tiny", weights), PROMPTS, CONFIG, 2),
        (make("tiny", weights), PROMPTS[:1], CONFIG, 1),
        (make("tiny", weights), PROMPTS, replace(CONFIG, guidance=3.0), 1),
        (other, PROMPTS, CONFIG, 1),
    ]
    made = [class_pictures(*case[:3], tmp_path, case[3]) for case in cases]
    assert len({record.path for each in made for record in each}) == 3 * len(cases)


def test_the_digest_does_not_depend_on_how_weights_lie_in_memory(weights: Path) -> None:
    backbone = make("tiny", weights)
    before = weights_digest(backbone)
    backbone.unet.to(memory_format=torch.contiguous_format)
    assert weights_digest(backbone) == before
