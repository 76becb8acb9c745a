"""What prior preservation holds on to: pictures of the class, painted once by the backbone as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock

from synthvision.artifact import digest_of
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.generate import GenerationConfig, generate
from synthvision.diffusion.prompts import Prompt
from synthvision.diffusion.recipe import DreamBoothConfig
from synthvision.manifest import Manifest


def class_pictures(
    backbone: Backbone, class_prompts: Sequence[str], config: DreamBoothConfig, folder: Path, seed: int
) -> Manifest:
    """Generate the class images once; whoever asks again finds them, or takes up where an interrupted run ended.

    They lie in a folder named by all that they depend on, so that sets, arms and repeats may share one `folder`.

    Args:
        backbone: before its first training step.
        class_prompts: in turn, one per image.
        config: their number, steps and guidance.
        folder: of all class images.
        seed: of every draw.
    """
    prompts = [Prompt(class_prompts[index % len(class_prompts)]) for index in range(config.class_images)]
    # The largest batch that a 16 GB card bears at 512 pixels; small pictures are drawn faster in larger ones.
    batch = 4 if backbone.config.resolution > 128 else 16
    settings = GenerationConfig("noise", len(prompts), config.sample_steps, config.guidance, batch, (1.0, 1.0), 1.0)
    texts = [prompt.text for prompt in prompts]
    what = [weights_digest(backbone), backbone.config.resolution, backbone.device.type, asdict(settings), texts, seed]
    own = folder / digest_of(what)[:16]
    own.mkdir(parents=True, exist_ok=True)
    with FileLock(own.with_suffix(".lock")):  # two sets may want the same pictures at once
        return generate(backbone, prompts, settings, "class image", "", seed, folder, own)


def weights_digest(backbone: Backbone) -> str:
    """Return a SHA-256 over all weights as they are in memory, and over the noise schedule."""
    digest = hashlib.sha256(digest_of(backbone.scheduler_config).encode())
    for module in (backbone.vae, backbone.unet, *backbone.text_encoders):
        for name, value in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
