"""From jobs to pixels: out of noise, painted into real pictures, or drawn over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from synthvision.data.images import Pixels, load_batch
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.plan import GenerationConfig, Job
from synthvision.diffusion.sampler import Known, Texts, denoise, draw_noise, to_grey_levels, to_pixels, to_tensor
from synthvision.manifest import Manifest

MASK = 1  # draw key: where and how large the painted disc is
EDGE = 1 / 16  # width of the mask's soft edge, as a share of the side
TOUCHED = 0.1  # a latent cell is painted when more than this share of it lies under the mask
ROUNDS = 10  # of reweighting


@dataclass(frozen=True)
class Artist:
    """All that is needed to turn jobs into images."""

    backbone: Backbone
    config: GenerationConfig
    texts: Texts
    negatives: Texts
    backgrounds: Manifest | None

    def make(self, jobs: Sequence[Job]) -> Pixels:
        """Return uint8 (len(jobs), S, S, 3).

        Raises:
            FloatingPointError: the model gave numbers that are none; such a picture would be saved as a black one.
        """
        # A full batch always: the libraries choose their kernels, and with them the last bits, by its size.
        full = [*jobs, *[jobs[-1]] * (self.config.batch_size - len(jobs))]
        return self._draw(full)[: len(jobs)]

    def _draw(self, jobs: Sequence[Job]) -> Pixels:
        if self.backgrounds is None:
            return to_pixels(self._decode(self._denoise(jobs)))
        real = _load(self.backgrounds, [job.prompt.background for job in jobs], self.backbone.config.resolution)
        return self._painted(jobs, real) if self.config.mode == "paint" else self._redrawn(jobs, real)

    def _decode(self, latents: Tensor) -> Tensor:
        images = self.backbone.decode(latents)
        if not torch.isfinite(images).all():
            raise FloatingPointError(
                f"backbone {self.backbone.config.name!r} gives numbers that are none; SDXL's autoencoder does in fp16, "
                "and a fine-tune whose loss was lost does. Load its parts in fp32 or bf16, or train with a lower rate"
            )
        return images

    def _denoise(self, jobs: Sequence[Job], known: Known | None = None) -> Tensor:
        return denoise(
            self.backbone,
            draw_noise([job.seed for job in jobs], self.backbone.latent_size),
            self.texts.of([job.prompt.text for job in jobs]),
            self.negatives.of([job.prompt.negative for job in jobs]),
            self.config.steps,
            self.config.guidance,
            known,
            self.config.scheduler,
        )

    def _redrawn(self, jobs: Sequence[Job], real: Pixels) -> Pixels:
        latents = self.backbone.encode_images(to_tensor(real)).mean  # (B, C, h, w)
        everywhere = torch.ones_like(latents[:, :1])
        return to_pixels(self._decode(self._denoise(jobs, Known(latents, everywhere, self.config.strength))))

    def _painted(self, jobs: Sequence[Job], real: Pixels) -> Pixels:
        side = self.backbone.config.resolution
        radius, centre = self.config.mask_radius, self.config.mask_centre
        mask = torch.stack([soft_disc(side, job.seed, radius, centre) for job in jobs])  # (B, S, S)
        latents = self.backbone.encode_images(to_tensor(real)).mean  # (B, C, h, w)
        cells = F.adaptive_avg_pool2d(mask[:, None], self.backbone.latent_size[1:]) > TOUCHED  # (B, 1, h, w)
        painted = self._denoise(jobs, Known(latents, cells.to(latents), self.config.strength))
        # Only the change that painting made is added to the real pixels: hair, pores and noise, which the autoencoder
        # would smooth, stay real, and the classifier cannot tell the classes by them.
        change = to_grey_levels(self._decode(painted)) - to_grey_levels(self._decode(latents))
        blended = torch.from_numpy(real) + mask[..., None] * local(change, mask)  # (B, S, S, 3)
        pixels: Pixels = blended.round().clamp(0, 255).to(torch.uint8).numpy()
        return pixels


def soft_disc(side: int, seed: int, radius: Sequence[float], centre: Sequence[float] = (0.25, 0.75)) -> Tensor:
    """Return a disc at a random place, 1 inside, 0 outside, with a soft edge: float32 (side, side).

    Args:
        side: in pixels.
        seed: of the image.
        radius: smallest and largest, as shares of the side.
        centre: between which shares of the side, down and across, its middle lies.
    """
    rng = np.random.default_rng([seed, MASK])
    (smallest, largest), (first, last) = radius, centre
    r = rng.uniform(smallest, largest) * side
    centre_y, centre_x = rng.uniform(first, last, 2) * side
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


def _load(manifest: Manifest, names: Sequence[str], side: int) -> Pixels:
    wanted = manifest.where(lambda record: record.image_id in names)
    row = {record.image_id: index for index, record in enumerate(wanted)}
    return load_batch(wanted, side)[[row[name] for name in names]]
