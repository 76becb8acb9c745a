"""Pretraining the tiny ViT: its weights start a classifier, and an interrupted training goes on to the same ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from synthvision.classification import pretrain as module
from synthvision.classification.model import ModelConfig, build
from synthvision.classification.pretrain import VitPretrainConfig, pretrain_vit
from synthvision.data.skin import MARKS

MODEL = ModelConfig("vit_tiny_patch16_224", 64, patch_size=8, embed_dim=16, depth=1, heads=2)
SMALL = VitPretrainConfig(MODEL, images=24, steps=4, lr=1e-3, batch_size=8, checkpoint_every=2)


@pytest.fixture(scope="module", autouse=True)
def few_held_out() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "HELD_OUT", 60)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    metrics = pretrain_vit(SMALL, path / "out", path / "work", seed=1)
    assert set(metrics) == {f"auc/{kind.replace(' ', '_')}" for kind in MARKS}
    return path / "out" / "model.safetensors"


def test_weights_start_a_classifier(made: Path) -> None:
    weights = load_file(made)
    started = build(ModelConfig(**{**vars(MODEL), "weights": str(made)}), classes=2).state_dict()
    body = [name for name in weights if not name.startswith("head.")]
    assert all(torch.equal(started[name], weights[name].float()) for name in body)


def test_interrupted_training_ends_with_the_same_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    class Stopping(module.MarkTraining):
        def on_train_batch_start(self, *_: object) -> None:
            if self.global_step == 3:
                raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, "MarkTraining", Stopping)
        with pytest.raises(KilledError):
            pretrain_vit(SMALL, tmp_path / "out", tmp_path / "work", seed=1)
    pretrain_vit(SMALL, tmp_path / "out", tmp_path / "work", seed=1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == made.read_bytes()


def test_numbers_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"pretrain_vit\.steps"):
        VitPretrainConfig(MODEL, 1, 0, 1e-3, 1, 1)
