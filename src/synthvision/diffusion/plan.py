"""What is to be made: the settings of a generation, and one job with its own seed per candidate."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from synthvision.diffusion.backbone import DPM, SCHEDULERS
from synthvision.diffusion.prompts import FROM_BACKGROUND, Prompt
from synthvision.diffusion.recipe import PRECISIONS
from synthvision.diffusion.sampler import derive_seed
from synthvision.manifest import Manifest, Record

MODES = ("noise", "paint", "img2img")
LATENT = 8  # every published autoencoder covers 8 pixels by one cell; `Backbone` asks for more where the UNet does
NO_DIGEST = "0" * 64  # until the file is written


@dataclass(frozen=True)
class GenerationConfig:
    """How candidates are made.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    mode: str  # one of MODES
    candidates: int  # of all sets together; with a file of prompts, the sum of its variants counts instead
    steps: int
    guidance: float  # 1: none
    batch_size: int
    mask_radius: Sequence[float]  # paint: smallest and largest, as shares of the side
    strength: float  # paint, img2img: share of the denoising steps that are done anew
    scheduler: str = DPM  # one of SCHEDULERS
    resolution: int | None = None  # side in pixels; None: the backbone's own
    mask_centre: Sequence[float] = (0.25, 0.75)  # paint: between which shares of the side the mask's centre lies
    prompts: str | None = None  # a YAML or CSV file; None: the disease's templates
    safety_checker: str | None = None  # its folder; None: none is run
    precision: str = "32-true"  # of PRECISIONS: of the networks; all noise arithmetic stays in float32
    compile: bool = False  # the UNet, by torch.compile
    shard: str | None = None  # "0/4": make the first quarter of the images only, and leave the stage unfinished

    def __post_init__(self) -> None:
        _require(self.mode in MODES, "mode", f"one of {MODES}", self.mode)
        for key in ("candidates", "steps", "batch_size"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        _require(self.guidance >= 1, "guidance", "at least 1 (none)", self.guidance)
        _require(0 < self.strength <= 1, "strength", "above 0 and at most 1", self.strength)
        _require(self.scheduler in SCHEDULERS, "scheduler", f"one of {SCHEDULERS}", self.scheduler)
        _require(self.precision in PRECISIONS, "precision", f"one of {PRECISIONS}", self.precision)
        side = self.resolution
        good = side is None or (side >= LATENT and side % LATENT == 0)
        _require(good, "resolution", f"null (the backbone's own) or a multiple of {LATENT} pixels", side)
        radii, places = tuple(self.mask_radius), tuple(self.mask_centre)
        good = len(radii) == 2 and 0 < radii[0] <= radii[-1] <= 1
        _require(good, "mask_radius", "two shares of the side, 0 < smallest <= largest <= 1", radii)
        good = len(places) == 2 and 0 <= places[0] <= places[-1] <= 1
        rule = "two shares of the side, 0 <= smallest <= largest <= 1; else the mask lies outside of the picture"
        _require(good, "mask_centre", rule, places)
        rule = "null or 'k/n' with 0 <= k < n, for instance 0/4, 1/4, 2/4 and 3/4 for four parts"
        _require(self.shard is None or self._part is not None, "shard", rule, self.shard)

    @property
    def _part(self) -> tuple[int, int] | None:
        found = re.fullmatch(r"(\d+)/(\d+)", str(self.shard))
        part = (int(found[1]), int(found[2])) if found else None
        return part if part and part[0] < part[1] else None

    @property
    def part(self) -> tuple[int, int]:
        """Which part of how many is to be made: (0, 1) is all."""
        return self._part or (0, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks' weights."""
        return torch.float32 if self.precision == "32-true" else torch.bfloat16

    @property
    def from_picture(self) -> bool:
        """Whether candidates start from a real picture."""
        return self.mode != "noise"

    def described(self, side: int) -> str:
        """Return the settings that an image at `side` pixels is made with, for its record."""
        start = f", strength {self.strength:g}" if self.from_picture else ""
        exact = "" if self.precision == "32-true" else ", bfloat16"
        return f"{self.scheduler}, {self.steps} steps, guidance {self.guidance:g}{start}, {side} px{exact}"


def _require(holds: bool, key: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"generate.{key} must be {rule}; it is {value!r}")


@dataclass(frozen=True)
class Job:
    """One image to make: its prompt, the seed of all that is drawn for it, and its record but for the digest."""

    prompt: Prompt
    seed: int
    record: Record


def pictures_for(
    prompts: Sequence[Prompt], config: GenerationConfig, label: str, backgrounds: Manifest | None
) -> dict[str, Record]:
    """Return the real pictures that the prompts start from by image_id, after checking that they may be used.

    Raises:
        ValueError: a background is missing, synthetic, outside the training split or of class `label`.
    """
    mode = config.mode
    if config.from_picture != (backgrounds is not None):
        modes = [name for name in MODES if name != "noise"]
        raise ValueError(f"generate.mode={mode}: backgrounds are given in the modes {modes}, and in no other")
    known = {record.image_id: record for record in backgrounds or ()}
    for name in dict.fromkeys(prompt.background for prompt in prompts if config.from_picture):
        record = known.get(name)
        if record is None:
            raise ValueError(
                f"generate.mode={mode}: a prompt names background {name!r}, which is not among those given"
            )
        # A test image under the paint would let the classifier see the test set.
        if (record.origin, record.split) != ("real", "train") or record.label == label:
            raise ValueError(
                f"generate.mode={mode}: background {name} must be a real training image of another class than "
                f"{label!r}; it is origin={record.origin!r}, split={record.split!r}, label={record.label!r}"
            )
    return known


def plan(
    prompts: Sequence[Prompt], pictures: Mapping[str, Record], common: Mapping[str, str], folder: Path, seed: int
) -> list[Job]:
    """Return a job per prompt. Its seed follows from the study's, the prompt and its number among equal prompts alone.

    Args:
        prompts: what is asked for.
        pictures: from `pictures_for`.
        common: the columns that all records share; label, set, mode and parent_run are among them.
        folder: of the images, relative to the study folder.
        seed: of the study.
    """
    variants: Counter[str] = Counter()
    slug = re.sub(r"[^a-z0-9]+", "-", f"synthetic {common['label']} {common['set']}".lower()).strip("-")
    jobs = []
    for prompt in prompts:
        key = _hash(prompt.text, prompt.negative, prompt.background)
        image_seed = derive_seed(seed, int(key, 16), variants[key])
        variants[key] += 1
        image_id = f"{slug}-{_hash(str(image_seed), common['mode'], common['parent_run'])}"
        picture = pictures.get(prompt.background)
        values = dict(common, prompt=prompt.text, seed=str(image_seed), painted_on=prompt.background)
        values["negative_prompt"] = prompt.negative
        values |= {name: getattr(picture, name, prompt.attributes.get(name, "")) for name in FROM_BACKGROUND}
        path = (folder / f"{image_id}.png").as_posix()
        jobs.append(Job(prompt, image_seed, Record(image_id, path, NO_DIGEST, **values)))
    return jobs


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
