"""Checkpoints load as pipelines, take room only for what was trained, and survive a disk that is full."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbones import make
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from test_dreambooth import CONFIG, run

from synthvision.diffusion import checkpoints
from synthvision.manifest import Manifest

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
VAE = Path("vae") / "diffusion_pytorch_model.safetensors"
TEXT = Path("text_encoder") / "model.safetensors"


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let the system refuse to write files of more than `size` bytes: what a full disk looks like to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_checkpoints_load_and_share_what_is_frozen(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, export_every=2, text_steps=0)
    result = run(make("sd15", weights / "sd15"), guides, config, tmp_path)
    folders = [*sorted((tmp_path / "out" / "checkpoints").iterdir()), result.weights]
    assert [folder.name for folder in folders] == ["step_00002", "step_00004", "weights"]
    for part in (VAE, TEXT, Path("tokenizer") / "tokenizer.json"):
        assert len({(folder / part).stat().st_ino for folder in folders}) == 1
    assert len({(folder / UNET).stat().st_ino for folder in folders}) == 3
    for folder in folders:
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        assert torch.equal(pipeline.unet.conv_in.weight, load_file(folder / UNET)["conv_in.weight"])
    first = load_file(folders[0] / UNET)["conv_in.weight"]
    assert not torch.equal(first, load_file(folders[1] / UNET)["conv_in.weight"])
    shutil.rmtree(folders[0])  # removing one harms no other
    StableDiffusionPipeline.from_pretrained(folders[1])


def test_a_trained_text_encoder_is_in_every_checkpoint(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    run(make("sd15", weights / "sd15"), guides, replace(CONFIG, export_every=1), tmp_path)
    folders = sorted((tmp_path / "out" / "checkpoints").iterdir())
    texts = [load_file(folder / TEXT)["final_layer_norm.weight"] for folder in folders]
    same = [torch.equal(texts[number], texts[number + 1]) for number in range(4)]
    assert same == [False, False, True, True]  # it trains for three steps


def test_adapter_checkpoints_are_the_base_by_links_and_a_small_file(
    guides: Manifest,
    weights: Path,
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, export_every=2, method="lora", lora_rank=2)
    run(make("sd15", weights / "sd15"), guides, config, tmp_path)
    base, *steps = sorted((tmp_path / "out" / "checkpoints").iterdir())
    assert [folder.name for folder in steps] == ["step_00002", "step_00004"]
    for folder in steps:
        for part in (VAE, TEXT, UNET):
            assert (folder / part).stat().st_ino == (base / part).stat().st_ino
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.load_lora_weights(folder)
        assert pipeline.get_active_adapters()
    own = [file.stat().st_size for file in steps[0].rglob("*") if file.is_file() and file.stat().st_nlink == 1]
    assert sum(own) < (base / UNET).stat().st_size


def test_a_disk_without_links_gets_copies(
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("links are not known here")

    backbone = make("sd15", weights / "sd15")
    checkpoints.export(backbone, tmp_path / "a", ["unet"], None)
    monkeypatch.setattr(os, "link", refuse)
    checkpoints.export(backbone, tmp_path / "b", ["unet"], tmp_path / "a")
    assert (tmp_path / "b" / VAE).read_bytes() == (tmp_path / "a" / VAE).read_bytes()
    assert (tmp_path / "b" / VAE).stat().st_nlink == 1


def test_a_full_disk_leaves_the_older_checkpoint_and_says_so(
    guides: Manifest,
    weights: Path,
    tmp_path: Path,
) -> None:
    """The state to resume from: the system refuses to write it; then there is room again, and training goes on."""
    run(make("tiny", weights / "tiny"), guides, CONFIG, tmp_path / "whole")
    config = replace(CONFIG, unet_steps=6)
    from synthvision.training import KeepLast

    write = KeepLast.on_train_batch_end

    def full_at_4(self: KeepLast, trainer: object, *given: object) -> None:
        with no_file_above(1000 if trainer.global_step == 4 else 1 << 40):  # type: ignore[attr-defined]
            write(self, trainer, *given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepLast, "on_train_batch_end", full_at_4)
        with pytest.raises(OSError, match=r"checkpoint of step 4 could not be written .* is kept and is resumed from"):
            run(make("tiny", weights / "tiny"), guides, config, tmp_path / "full")
    kept = torch.load(tmp_path / "full" / "work" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert [file.name for file in (tmp_path / "full" / "work").glob(".*ckpt*")] == []
    result = run(make("tiny", weights / "tiny"), guides, config, tmp_path / "full")
    assert (result.weights / UNET).read_bytes() == (tmp_path / "whole" / "out" / "weights" / UNET).read_bytes()


def test_a_full_disk_leaves_the_older_pipeline(weights: Path, tmp_path: Path) -> None:
    backbone = make("sd15", weights / "sd15")
    checkpoints.export(backbone, tmp_path / "a", ["unet"], None)
    before = (tmp_path / "a" / UNET).read_bytes()
    for first in (None, tmp_path / "a"):
        with no_file_above(2000), pytest.raises(Exception, match=r"(?i)file too large|i/o|write"):
            checkpoints.export(backbone, tmp_path / "b", ["unet"], first)
        assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / UNET).read_bytes() == before
    checkpoints.export(backbone, tmp_path / "b", ["unet"], tmp_path / "a")
    assert (tmp_path / "b" / UNET).read_bytes() == before
