"""Real images passed through the autoencoder, which leaves its marks on every image that is generated whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.progress import track

from synthvision.artifact import sha256_file
from synthvision.data.images import load_batch, write_png
from synthvision.diffusion.backbone import Backbone
from synthvision.diffusion.sampler import to_pixels, to_tensor
from synthvision.manifest import Manifest, Record
from synthvision.training import best_device

MODE = "autoencoder"


def through_autoencoder(backbone: Backbone, images: Manifest, batch: int, out: Path) -> Manifest:
    """Encode and decode images, and write the results to `out` as PNG, those that are not there yet.

    Args:
        backbone: moved to the GPU where there is one.
        images: real; resized to the backbone's resolution.
        batch: images at once.
        out: a folder below the manifest's root.

    Returns:
        The results as synthetic training images of their own labels; `painted_on` names the real image.
    """
    backbone.to(best_device())
    records: list[Record] = []
    starts = range(0, len(images), batch)
    for start in track(starts, f"{MODE} {', '.join(sorted(set(images.column('label'))))}", disable=not len(images)):
        part = Manifest(images.records[start : start + batch], images.root)
        made = [_result(record, images.root, out, backbone) for record in part]
        if not all((images.root / record.path).exists() for record in made):
            latents = backbone.encode_images(to_tensor(load_batch(part, backbone.config.resolution))).mean
            for record, picture in zip(made, to_pixels(backbone.decode(latents)), strict=True):
                write_png(images.root / record.path, picture)
        records += [replace(record, sha256=sha256_file(images.root / record.path)) for record in made]
    return Manifest(tuple(records), images.root)


def _result(record: Record, root: Path, out: Path, backbone: Backbone) -> Record:
    name = f"{MODE}-{record.image_id}"
    path = (out / f"{name}.png").relative_to(root).as_posix()
    return replace(
        record, image_id=name, path=path, origin="synthetic", painted_on=record.image_id, mode=MODE,
        settings=f"side {backbone.config.resolution}",
    )  # fmt: skip
