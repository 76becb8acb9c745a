"""Candidates: one PNG per prompt, the Manifest over them, and a sheet to look at.

An image depends on the study's seed, its prompt and its variant only. At one batch size it has the same bytes whatever
the order, the number of prompts, the shards or the interruptions. Another batch size draws the same noise, but may
round a few pixels to a neighbouring grey level, because the libraries below choose other kernels. Only images made one
by one would be free of that, at about three times the cost on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

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

from synthvision.artifact import sha256_file
from synthvision.data.images import Pixels, load_batch, write_png
from synthvision.data.sheets import contact_sheet
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.painting import Artist
from synthvision.diffusion.plan import GenerationConfig, Job, pictures_for, plan
from synthvision.diffusion.prompts import Prompt
from synthvision.diffusion.sampler import derive_seed, encode_negatives, encode_prompts
from synthvision.manifest import Manifest
from synthvision.training import best_device

TILE = 128  # largest side of a picture on a contact sheet, in pixels
ENLARGE = 4  # draw key: of the upscaler
# Small images uint8 (B, h, w, 3), the text of each and a seed for each -> as many larger images.
Enlarge = Callable[[Pixels, Sequence[str], Sequence[int]], Pixels]
XMP_KEY = "XML:com.adobe.xmp"
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{GENERATED}"/></rdf:RDF></x:xmpmeta>'
)


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
    enlarge: Enlarge | None = None,
) -> Manifest:
    """Write one PNG per prompt to `out/images`, `out/manifest.csv` and `out/contact_sheet.png`; resume what is there.

    With `config.shard`, the images of one part are written and nothing else; a call without it makes what is missing
    and writes the rest.

    Args:
        backbone: moved to the GPU where there is one.
        prompts: what is asked for; those that start from a real picture name it. Of equal ones the n-th is variant n.
        config: mode, steps, guidance, batch size, mask and strength; prompts are already made.
        label: of all images.
        set: the guides' set.
        seed: of the study.
        root: the study folder; `out` lies in it.
        out: the folder of the stage, or of the set.
        backgrounds: modes "paint" and "img2img": the real images that the prompts name.
        parent_run: output digest of the weights.
        enlarge: what images pass through before they are written; None: nothing.

    Returns:
        The candidates; of a shard, those of its part.

    Raises:
        ValueError: a background is missing, synthetic, outside the training split or of class `label`.
        OSError: an image could not be written; what was written before is kept.
    """
    pictures = pictures_for(prompts, config, label, backgrounds)
    common = {"label": label, "set": set, "mode": config.mode, "parent_run": parent_run, "origin": "synthetic"}
    common["settings"] = config.described(backbone.config.resolution)
    jobs = plan(prompts, pictures, common, (out / "images").relative_to(root), seed)
    part, parts = config.part
    jobs = jobs[part::parts]
    _make(backbone, jobs, config, backgrounds, root, enlarge)
    manifest = Manifest(tuple(replace(job.record, sha256=sha256_file(root / job.record.path)) for job in jobs), root)
    if parts == 1:
        tiles = load_batch(manifest, min(backbone.config.resolution, TILE))
        contact_sheet(tiles, math.ceil(math.sqrt(len(tiles))), out / "contact_sheet.png")
        manifest.write(out / "manifest.csv")
    return manifest


def _make(
    backbone: Backbone,
    jobs: Sequence[Job],
    config: GenerationConfig,
    backgrounds: Manifest | None,
    root: Path,
    enlarge: Enlarge | None,
) -> None:
    """Write the images that are not there yet, a batch at a time."""
    if config.compile:
        backbone.unet.compile()
    artist = Artist(
        backbone.to(best_device()),
        config,
        encode_prompts(backbone, [job.prompt.text for job in jobs]),
        encode_negatives(backbone, [job.prompt.negative for job in jobs]),
        backgrounds,
    )
    todo = [job for job in jobs if not (root / job.record.path).exists()]
    with _bar() as bar:
        of = f", part {config.shard}" if config.shard else ""
        task = bar.add_task(" ".join((config.mode, *{job.record.label for job in jobs})) + of, total=len(jobs))
        bar.advance(task, len(jobs) - len(todo))
        for start in range(0, len(todo), config.batch_size):
            chunk = todo[start : start + config.batch_size]
            images = artist.make(chunk)
            if enlarge is not None:
                seeds = [derive_seed(job.seed, ENLARGE) for job in chunk]
                images = enlarge(images, [job.prompt.text for job in chunk], seeds)
            for job, image in zip(chunk, images, strict=True):
                _write(root / job.record.path, image, len(jobs) - len(todo) + start)
            bar.advance(task, len(chunk))


def _write(file: Path, image: Pixels, done: int) -> None:
    try:
        write_png(file, image, {XMP_KEY: XMP})
    except OSError as error:
        raise OSError(
            f"image {file.name} cannot be written to {file.parent}: {error.strerror}. At least {done} images are there "
            "and kept: make room and run the same command, which goes on from there"
        ) from error


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def _bar() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), _Rate())
    return Progress(TextColumn("{task.description}"), *columns)
