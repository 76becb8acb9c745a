"""Checkpoints that load as pipelines and hold no more than what was trained.

A checkpoint is a diffusers folder: `StableDiffusionPipeline.from_pretrained(folder)` reads it. The parts that are not
trained (the VAE always, the text encoders where they have no steps, tokenizers, scheduler) are written once, into the
first checkpoint; in every later one they are hard links to those files, which take no room. Where the disk knows no
links they are copied. Removing any one checkpoint harms no other. With adapters no part is trained: each folder is the
base by links with `pytorch_lora_weights.safetensors` in it; call `load_lora_weights(folder)` after `from_pretrained`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import torch

from synthvision.diffusion.backbone import Backbone

RESERVE = 1 << 20  # bytes beside the weights: configs, tokenizers


def export(backbone: Backbone, folder: Path, trained: Collection[str], first: Path | None) -> None:
    """Write a pipeline folder, whole or not at all.

    Args:
        backbone: without adapters.
        folder: an older one of that name is replaced.
        trained: names of the parts to write, such as "unet".
        first: a checkpoint of the same training whose other parts are linked; None writes all.

    Raises:
        OSError: the disk is full; nothing of `folder` is left, and what was there before stays.
    """
    if first is None or not first.is_dir() or first == folder:
        backbone.save(folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        backbone.lay_out(torch.contiguous_format)  # safetensors stores no other
        pipeline = backbone.pipeline()
        pipeline.save_config(partial)
        for name in trained:
            getattr(pipeline, name).save_pretrained(partial / name, safe_serialization=True)
        for file in sorted(first.rglob("*")):
            inside = file.relative_to(first)
            if len(inside.parts) > 1 and inside.parts[0] not in trained and file.is_file():
                _link(file, partial / inside)
        partial.chmod(0o755)  # mkdtemp's 0700 would hide results from a team's shared group
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        backbone.lay_out(torch.channels_last)
        shutil.rmtree(partial, ignore_errors=True)


def _link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, to)
    except OSError:
        shutil.copy2(file, to)


def check_disk(folder: Path, needed: int, keys: str) -> None:
    """Refuse to begin what would not fit on the disk.

    Raises:
        OSError: less than `needed` bytes are free where `folder` is to be.
    """
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed + RESERVE:
        raise OSError(
            f"training needs {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free; make room, set root "
            f"to a larger disk, or change {keys}"
        )
