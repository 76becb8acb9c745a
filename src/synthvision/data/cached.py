"""A manifest's images out of the shared cache: what any run has decoded at this size is not decoded again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from synthvision.data.cache import ImageCache, Picture, place_of
from synthvision.data.images import Pixels, load_batch, read_file
from synthvision.data.reading import read_picture
from synthvision.data.unusable import UnusableImage
from synthvision.manifest import Manifest


def cached_batch(manifest: Manifest, cache: ImageCache) -> Pixels:
    """Return what `load_batch` does at the cache's size, uint8 (N, size, size, 3); new images are added to the cache.

    The images are the study's own, written by it: they are read here, not by processes that may be lost.

    Raises:
        UnusableImage: an image is missing or damaged; the message names its image_id.
        ValueError: the cache is damaged.
    """
    pictures = _pictures(manifest, cache)
    pixels, size = cache.pixels(), cache.shelf.size
    images = np.empty((len(manifest), size, size, 3), dtype=np.uint8)
    for index, (record, picture) in enumerate(zip(manifest, pictures, strict=True)):
        if picture.usable:
            images[index] = cache.row(pixels, picture)
        else:  # of one colour, which the cache does not keep, or damaged, which is said here
            images[index] = load_batch(Manifest((record,), manifest.root), size)[0]
    return images


def _pictures(manifest: Manifest, cache: ImageCache) -> list[Picture]:
    files = [manifest.file(record) for record in manifest]
    with cache.lock, cache.shelf.opened() as rows:
        known = cache.known(files)
        row, read, found = cache.next_row(), [], []
        for file, picture in zip(files, known, strict=True):
            if picture is None:
                place, picture = place_of(file), _known_by_content(file, cache)
                if picture is None:
                    picture = read_picture(file, row, rows)
                    row += picture.usable
                if picture.sha256:
                    read.append((place, picture))
            found.append(picture)
        cache.keep(read)
    return found


def _known_by_content(file: Path, cache: ImageCache) -> Picture | None:
    """Return what is known of a file that lies where none was read before: another run has the same images."""
    try:
        return cache.of_content(hashlib.sha256(read_file(file)).hexdigest())
    except UnusableImage:
        return None
