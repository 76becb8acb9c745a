"""Pretraining: what it saves is a pipeline, what is interrupted goes on to the same weights, and losses are right."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from synthvision.artifact import tree_digest
from synthvision.diffusion import pretrain as module
from synthvision.diffusion.pretrain import (
    PretrainConfig,
    meaningless,
    pretrain,
    reconstruction_loss,
    tokenize,
    with_noise_words,
)
from synthvision.diffusion.tiny import new_tokenizer

SMALL = PretrainConfig(
    images=40,
    decoder_steps=4,
    decoder_lr=1e-3,
    text_steps=4,
    text_lr=1e-3,
    unet_steps=4,
    unet_lr=1e-3,
    batch_size=4,
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pretrained")
    metrics = pretrain(SMALL, path / "out", path / "work", seed=3)
    assert metrics["psnr"] > 10
    return path / "out"


def test_saves_a_pipeline_in_half_precision_of_at_most_12_mb(made: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(made, dtype=torch.float16)
    assert pipeline.unet.dtype == torch.float16
    assert sum(file.stat().st_size for file in made.rglob("*.safetensors")) <= 12e6
    assert (made / "samples.png").is_file()


def test_interrupted_training_ends_with_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    stop_at = {"step": 3}

    class Stopping(module.BaseTraining):
        def on_train_batch_start(self, *_: object) -> None:
            if self.global_step == stop_at["step"]:
                raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, "BaseTraining", Stopping)
        with pytest.raises(KilledError):
            pretrain(SMALL, tmp_path / "out", tmp_path / "work", seed=3)
    pretrain(SMALL, tmp_path / "out", tmp_path / "work", seed=3)
    assert tree_digest(tmp_path / "out") == tree_digest(made)


def test_reconstruction_loss_is_zero_for_equals_and_sees_hue() -> None:
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    assert reconstruction_loss(image, image) == 0
    grey, hue = torch.full_like(image, 0.1), torch.tensor([0.1, -0.1, 0.0]).view(1, 3, 1, 1).expand_as(image)
    assert reconstruction_loss(image + hue, image) > reconstruction_loss(image + grey, image)


def test_numbers_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"pretrain\.unet_steps"):
        replace(SMALL, unet_steps=0)


def test_noise_words_are_put_into_the_text_and_mean_nothing_else() -> None:
    captions = ["photo of fair skin on the back, many moles", "photo of dark skin on the arm, no marks"]
    tokenizer = new_tokenizer(captions)
    ids = tokenize(tokenizer, captions)
    words = meaningless(tokenizer, ids)
    assert not set(words.tolist()) & {*ids.flatten().tolist(), *tokenizer("sks lesion crusted").input_ids}
    many = with_noise_words(ids[torch.arange(400) % 2], words, torch.Generator().manual_seed(0))
    changed = 0
    for index, row in enumerate(many):
        added = torch.isin(row, words)
        assert added.sum() <= 1
        kept = torch.cat([row[~added], row[-1:].repeat(int(added.sum()))])
        assert kept.equal(ids[index % 2])
        assert row[0] == tokenizer.bos_token_id
        changed += int(added.sum())
    assert 0.2 < changed / 400 < 0.4
