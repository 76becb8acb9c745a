"""Networks that look at finished images: encoders that give features, and Stable Diffusion's safety checker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from synthvision.data.images import Pixels, fit, load_batch
from synthvision.manifest import Manifest
from synthvision.training import best_device

Embed = Callable[[Pixels], NDArray[np.float64]]  # uint8 (N, S, S, 3) -> unit vectors (N, F)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images
BATCH = 32


def encoder(folder: str) -> Embed:
    """Return what embeds images with a vision encoder (CLIP, DINOv2, ViT) in transformers format.

    Raises:
        FileNotFoundError: the folder holds no such model.
    """
    model = AutoModel.from_pretrained(
        existing(folder, "memorisation.encoder"), use_safetensors=True, dtype=torch.float32
    )
    model = getattr(model, "vision_model", model).eval().to(best_device())
    side = int(model.config.image_size)

    def embed(images: Pixels) -> NDArray[np.float64]:
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                seen = _normalised(images[start : start + BATCH], side).to(best_device())
                states = model(seen)
                pooled = getattr(states, "pooler_output", None)
                parts.append(
                    (states.last_hidden_state.mean(dim=1) if pooled is None else pooled).double().cpu().numpy()
                )
        features = np.concatenate(parts)
        unit: NDArray[np.float64] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        return unit

    return embed


def check_safety(candidates: Manifest, folder: str) -> Manifest:
    """Return the candidates with `safety` "flagged" or "passed". No image is changed.

    The checker was made for photographs of people; it flags clinical anatomy often, and its own pipeline would put
    black pictures in their place.

    Args:
        candidates: whose files are written.
        folder: a `safety_checker` folder of a Stable Diffusion model.

    Raises:
        FileNotFoundError: the folder holds no such model.
    """
    # It would log that black images are returned, which is not so here.
    logging.getLogger("diffusers.pipelines.stable_diffusion.safety_checker").setLevel(logging.ERROR)
    path = existing(folder, "generate.safety_checker")
    checker = StableDiffusionSafetyChecker.from_pretrained(path, use_safetensors=True).to(best_device())
    side = int(checker.config.vision_config.image_size)
    flags: dict[str, str] = {}
    for start in range(0, len(candidates), BATCH):
        block = Manifest(candidates.records[start : start + BATCH], candidates.root)
        seen = _normalised(load_batch(block, side), side).to(best_device())
        _, flagged = checker(clip_input=seen, images=np.zeros((len(block), 1, 1, 3)))
        flags |= {record.image_id: "flagged" if flag else "passed" for record, flag in zip(block, flagged, strict=True)}
    return candidates.with_values(lambda record: {"safety": flags[record.image_id]})


def _normalised(images: Pixels, side: int) -> Tensor:
    small = np.stack([fit(image, side) for image in images])
    values = (torch.from_numpy(small).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return values.permute(0, 3, 1, 2)  # (B, 3, side, side)


def existing(folder: str, key: str) -> Path:
    """Return the path of a model's folder that a config's key names.

    Raises:
        FileNotFoundError: there is no model.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{key}: there is no model in {folder} (no config.json); set it to a folder, or to null"
        )
    return path
