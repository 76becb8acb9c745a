"""Candidates: prompts from templates, and images from prompts, out of noise or painted into real normal images.

An image depends on the study's seed, its prompt and its variant only. At one batch size it has the same bytes whatever
the order, the number of prompts or the interruptions; another batch size may round a few pixels to a neighbouring grey
level, because the libraries below choose other kernels.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from synthvision.artifact import sha256_file
from synthvision.data.images import Pixels, load_batch, write_png
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.prompts import FROM_BACKGROUND, Prompt
from synthvision.diffusion.sampler import (
    Known,
    Texts,
    denoise,
    derive_seed,
    draw_noise,
    encode_negatives,
    encode_prompts,
    to_grey_levels,
    to_pixels,
    to_tensor,
)
from synthvision.manifest import Manifest, Record
from synthvision.training import best_device

MODES = ("noise", "paint")
MASK = 1  # draw key: where and how large the painted disc is
EDGE = 1 / 16  # width of the mask's soft edge, as a share of the side
TOUCHED = 0.1  # a latent cell is painted when more than this share of it lies under the mask
NO_DIGEST = "0" * 64  # until the file is written
ROUNDS = 10  # of reweighting
TILE = 128  # largest side of a picture on a contact sheet, in pixels
XMP_KEY = "XML:com.adobe.xmp"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{GENERATED}"/></rdf:RDF></x:xmpmeta>'
)


@dataclass(frozen=True)
class GenerationConfig:
    """How candidates are made.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    mode: str  # one of MODES
    candidates: int
    steps: int
    guidance: float  # 1: none
    batch_size: int
    mask_radius: Sequence[float]  # paint: smallest and largest, as shares of the side
    strength: float  # paint: share of the denoising steps that are done anew

    def __post_init__(self) -> None:
        _require(self.mode in MODES, "mode", f"one of {MODES}", self.mode)
        for key in ("candidates", "steps", "batch_size"):
            _require(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        _require(self.guidance >= 1, "guidance", "at least 1 (none)", self.guidance)
        _require(0 < self.strength <= 1, "strength", "above 0 and at most 1", self.strength)
        radii = tuple(self.mask_radius)
        good = len(radii) == 2 and 0 < radii[0] <= radii[-1] <= 1
        _require(good, "mask_radius", "two shares of the side, 0 < smallest <= largest <= 1", radii)


def _require(holds: bool, key: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"generate.{key} must be {rule}; it is {value!r}")


@dataclass(frozen=True)
class _Job:
    """One image to make: its prompt, the seed of all that is drawn for it, and its record but for the digest."""

    prompt: Prompt
    seed: int
    record: Record


def generate(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    config: GenerationConfig,
    label: str,
    set: str,
    seed: int,
    root: Path,
    out: Path,
    backgrounds: Manifest | None = None,
    parent_run: str = "",
) -> Manifest:
    """Write one PNG per prompt to `out/images`, `out/manifest.csv` and `out/contact_sheet.png`; resume what is there.

    Args:
        backbone: moved to the GPU where there is one.
        prompts: from `expand`, or in mode "paint" from `expand_over`. The n-th of equal prompts is variant n.
        config: mode, steps, guidance, batch size, mask and strength; prompts are already made.
        label: of all images.
        set: the guides' set.
        seed: of the study.
        root: the study folder; `out` lies in it.
        out: the stage's folder.
        backgrounds: mode "paint": the real images that the prompts name.
        parent_run: output digest of the weights.

    Raises:
        ValueError: a background is missing, synthetic, outside the training split or of class `label`.
    """
    pictures = _pictures(prompts, config.mode, label, backgrounds)
    common = {"label": label, "set": set, "mode": config.mode, "parent_run": parent_run, "origin": "synthetic"}
    jobs = _plan(prompts, pictures, common, (out / "images").relative_to(root), seed)
    artist = _Artist(
        backbone.to(best_device()),
        config,
        encode_prompts(backbone, [prompt.text for prompt in prompts]),
        encode_negatives(backbone, [prompt.negative for prompt in prompts]),
        backgrounds,
    )
    with _bar() as bar:
        task = bar.add_task(f"{config.mode} {label}", total=len(jobs))
        todo = [job for job in jobs if not (root / job.record.path).exists()]
        bar.advance(task, len(jobs) - len(todo))
        for start in range(0, len(todo), config.batch_size):
            chunk = todo[start : start + config.batch_size]
            for job, image in zip(chunk, artist.make(chunk), strict=True):
                write_png(root / job.record.path, image, {XMP_KEY: XMP})
            bar.advance(task, len(chunk))
    manifest = Manifest(tuple(replace(job.record, sha256=sha256_file(root / job.record.path)) for job in jobs), root)
    tiles = load_batch(manifest, min(backbone.config.resolution, TILE))
    contact_sheet(tiles, math.ceil(math.sqrt(len(tiles))), out / "contact_sheet.png")
    manifest.write(out / "manifest.csv")
    return manifest


@dataclass(frozen=True)
class _Artist:
    """All that is needed to turn jobs into images."""

    backbone: Backbone
    config: GenerationConfig
    texts: Texts
    negatives: Texts
    backgrounds: Manifest | None

    def make(self, jobs: Sequence[_Job]) -> Pixels:
        """Return uint8 (len(jobs), S, S, 3)."""
        # A full batch always: the libraries choose their kernels, and with them the last bits, by its size.
        full = [*jobs, *[jobs[-1]] * (self.config.batch_size - len(jobs))]
        images = self._from_noise(full) if self.backgrounds is None else self._painted(full, self.backgrounds)
        return images[: len(jobs)]

    def _denoise(self, jobs: Sequence[_Job], known: Known | None = None) -> Tensor:
        return denoise(
            self.backbone,
            draw_noise([job.seed for job in jobs], self.backbone.latent_size),
            self.texts.of([job.prompt.text for job in jobs]),
            self.negatives.of([job.prompt.negative for job in jobs]),
            self.config.steps,
            self.config.guidance,
            known,
        )

    def _from_noise(self, jobs: Sequence[_Job]) -> Pixels:
        return to_pixels(self.backbone.decode(self._denoise(jobs)))

    def _painted(self, jobs: Sequence[_Job], backgrounds: Manifest) -> Pixels:
        side = self.backbone.config.resolution
        real = _load(backgrounds, [job.prompt.background for job in jobs], side)  # uint8 (B, S, S, 3)
        mask = torch.stack([soft_disc(side, job.seed, self.config.mask_radius) for job in jobs])  # (B, S, S)
        latents = self.backbone.encode_images(to_tensor(real)).mean  # (B, C, h, w)
        cells = F.adaptive_avg_pool2d(mask[:, None], self.backbone.latent_size[1:]) > TOUCHED  # (B, 1, h, w)
        painted = self._denoise(jobs, Known(latents, cells.to(latents), self.config.strength))
        # Only the change that painting made is added to the real pixels: hair, pores and noise, which the autoencoder
        # would smooth, stay real, and the classifier cannot tell the classes by them.
        change = to_grey_levels(self.backbone.decode(painted)) - to_grey_levels(self.backbone.decode(latents))
        blended = torch.from_numpy(real) + mask[..., None] * local(change, mask)  # (B, S, S, 3)
        pixels: Pixels = blended.round().clamp(0, 255).to(torch.uint8).numpy()
        return pixels


def soft_disc(side: int, seed: int, radius: Sequence[float]) -> Tensor:
    """Return a disc at a random place, 1 inside, 0 outside, with a soft edge: float32 (side, side).

    Args:
        side: in pixels.
        seed: of the image.
        radius: smallest and largest, as shares of the side.
    """
    rng = np.random.default_rng([seed, MASK])
    smallest, largest = radius
    r = rng.uniform(smallest, largest) * side
    centre_y, centre_x = rng.uniform(0.25, 0.75, 2) * side
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    distance = torch.hypot(y - centre_y, x - centre_x)
    return ((r - distance) / (EDGE * side) + 0.5).clamp(0, 1)


def local(change: Tensor, mask: Tensor) -> Tensor:
    """Return a change without its slow part: the quadratic surface with the least absolute deviations within the mask.

    What is painted covers the lesser part of the mask; the rest is skin, whose tone and shading the model meets only
    roughly. A disc that is brighter as a whole would be a sign of painting, and of nothing else: a classifier would
    learn it first. Absolute deviations let the surface pass over what is painted; a mean over the surroundings, or
    least squares, would leave a pale halo around all that is dark, which no benign mark has.

    Args:
        change: (B, S, S, 3) in grey levels.
        mask: (B, S, S) in [0, 1].
    """
    across = torch.linspace(-1, 1, mask.shape[-1], dtype=torch.float64)
    y, x = (each.flatten() for each in torch.meshgrid(across, across, indexing="ij"))
    basis = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)  # (S * S, 6)
    values, inside = change.double().flatten(1, 2).mT, mask.double().flatten(1)[:, None]  # (B, 3, S * S), (B, 1, S * S)
    weight, surface = inside.expand_as(values), values
    for _ in range(ROUNDS):  # least squares, reweighted until they are least absolute deviations
        normal = torch.einsum("bcp,pi,pj->bcij", weight, basis, basis)
        moment = torch.einsum("bcp,pi->bci", weight * values, basis)
        surface = torch.linalg.solve(normal, moment) @ basis.T
        weight = inside / ((values - surface).abs() + 1)
    fast: Tensor = (values - surface).mT.reshape(change.shape).to(change)
    return fast


def contact_sheet(images: Pixels, columns: int, path: Path) -> None:
    """Write images uint8 (N, S, S, 3) as one PNG, row by row, `columns` in each; white fills the last row."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    side = images.shape[1]
    cells = np.full((rows * columns, side, side, 3), 255, np.uint8)
    cells[: len(images)] = images
    grid = cells.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    write_png(path, np.ascontiguousarray(grid.reshape(rows * side, columns * side, 3)))


def _pictures(prompts: Sequence[Prompt], mode: str, label: str, backgrounds: Manifest | None) -> dict[str, Record]:
    """Return the pictures to paint into by image_id, after checking that they may be painted into."""
    if (mode == "paint") != (backgrounds is not None):
        raise ValueError(f"generate.mode={mode}: backgrounds are given in mode 'paint', and in no other")
    known = {record.image_id: record for record in backgrounds or ()}
    for name in dict.fromkeys(prompt.background for prompt in prompts if mode == "paint"):
        record = known.get(name)
        if record is None:
            raise ValueError(f"generate.mode=paint: a prompt names background {name!r}, which is not among those given")
        # A test image under the paint would let the classifier see the test set.
        if (record.origin, record.split) != ("real", "train") or record.label == label:
            raise ValueError(
                f"generate.mode=paint: background {name} must be a real training image of another class than "
                f"{label!r}; it is origin={record.origin!r}, split={record.split!r}, label={record.label!r}"
            )
    return known


def _plan(
    prompts: Sequence[Prompt], pictures: Mapping[str, Record], common: Mapping[str, str], folder: Path, seed: int
) -> list[_Job]:
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
        values |= {name: getattr(picture, name, prompt.attributes.get(name, "")) for name in FROM_BACKGROUND}
        path = (folder / f"{image_id}.png").as_posix()
        jobs.append(_Job(prompt, image_seed, Record(image_id, path, NO_DIGEST, **values)))
    return jobs


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _load(manifest: Manifest, names: Sequence[str], side: int) -> Pixels:
    wanted = manifest.where(lambda record: record.image_id in names)
    row = {record.image_id: index for index, record in enumerate(wanted)}
    return load_batch(wanted, side)[[row[name] for name in names]]


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def _bar() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), _Rate())
    return Progress(TextColumn("{task.description}"), *columns)
