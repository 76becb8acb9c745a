"""Images: one square form for all of them, files that are always written alike, and perceptual hashes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from synthvision.artifact import write_bytes
from synthvision.data.decoding import Pixels as Pixels
from synthvision.data.decoding import decode_file
from synthvision.data.decoding import read_file as read_file
from synthvision.data.unusable import UnusableImage as UnusableImage
from synthvision.manifest import Manifest

MIN_SIDE = 16  # pixels; a smaller picture shows nothing
HASH_GRID = 32  # side of the thumbnail a perceptual hash is taken from
Box = tuple[float, float, float, float]  # left, top, right, bottom
HASH_SIDE = 8  # lowest frequencies kept in each direction: 8 x 8 = 64 bits


def read_rgb(path: Path) -> Pixels:
    """Read a picture file; see `decode`.

    Raises:
        UnusableImage: the file cannot be read, or its bytes are no complete picture.
    """
    return decode(read_file(path))


def decode(data: bytes) -> Pixels:
    """Return a picture's pixels, uint8 (H, W, 3); see `decoding.decode_file`."""
    return decode_file(data).pixels


def require_content(pixels: Pixels) -> None:
    """Check that uint8 (H, W, 3) can show anything.

    Raises:
        UnusableImage: the picture is very small, or has a single colour.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise UnusableImage(f"too small: {width} x {height} pixels, {MIN_SIDE} needed")
    if (pixels[height // 2] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():  # the first is seldom true
        raise UnusableImage("uniform: every pixel has the same colour")


def fit(image: Pixels, size: int) -> Pixels:
    """Cut the largest central square and resize it (Lanczos): uint8 (H, W, 3) -> uint8 (size, size, 3).

    From many pixels to few, blocks are averaged first: nobody sees the change, and it saves half the time.
    """
    square = central_square(image)
    return square.copy() if len(square) == size else resized(*averaged(Image.fromarray(square), size), size)


def central_square(image: Pixels) -> Pixels:
    """Return a view on the largest central square: uint8 (H, W, 3) -> uint8 (S, S, 3), S the shorter side."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def averaged(square: Image.Image, size: int) -> tuple[Image.Image, Box]:
    """Average whole blocks of a square image so that at least 2 * size pixels a side remain.

    Returns:
        the smaller image, and the part of it that the square covers: the last block may be filled in part.
    """
    side = square.width
    block = max(1, side // (2 * size))
    return (square.reduce(block) if block > 1 else square), (0, 0, side / block, side / block)


def resized(image: Image.Image, box: Box, size: int) -> Pixels:
    """Resize a square part of an RGB image (Lanczos) to uint8 (size, size, 3)."""
    return np.array(image.resize((size, size), Image.Resampling.LANCZOS, box=box))


def encode_png(image: Pixels, text: Mapping[str, str] | None = None) -> bytes:
    """Return a PNG file's bytes. The same pixels and text give the same bytes, whatever the order of `text`.

    Nothing is compressed: a compressed file's size tells how much there is to see, which is a shortcut to the class.
    """
    info = PngInfo()
    for key, value in sorted((text or {}).items()):
        info.add_itxt(key, value)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG", pnginfo=info, compress_level=0)
    return out.getvalue()


def write_png(path: Path, image: Pixels, text: Mapping[str, str] | None = None) -> None:
    """Write uint8 (H, W, 3) as PNG with text chunks: whole or not at all, also when the process is killed."""
    write_bytes(path, encode_png(image, text), durable=False)  # waiting for the disk would double a stage's time


def load_batch(manifest: Manifest, size: int) -> Pixels:
    """Return a manifest's images in the order of its records: uint8 (N, size, size, 3).

    Raises:
        UnusableImage: an image is missing or damaged; the message names its image_id.
    """
    images = np.empty((len(manifest), size, size, 3), dtype=np.uint8)
    for index, record in enumerate(manifest):
        try:
            images[index] = fit(read_rgb(manifest.file(record)), size)
        except UnusableImage as error:
            raise UnusableImage(f"image {record.image_id!r} ({record.path}): {error}; make it again") from error
    return images


def thumbnail(image: Pixels) -> Pixels:
    """Return the picture as small as copies can still be recognised: uint8 (H, W, 3) -> uint8 (32, 32, 3)."""
    return fit(image, HASH_GRID)


def grey_thumbnails(images: Pixels) -> NDArray[np.float64]:
    """Return luminance at HASH_GRID x HASH_GRID: uint8 (N, S, S, 3) -> float64 (N, 32, 32) in [0, 255]."""
    side = (HASH_GRID, HASH_GRID)
    small = [Image.fromarray(image).convert("L").resize(side, Image.Resampling.BOX) for image in images]
    return np.array([np.asarray(image) for image in small], dtype=np.float64).reshape(-1, *side)


def _cosines() -> NDArray[np.float64]:
    """Return the lowest rows of the orthonormal cosine transform (DCT-II), float64 (8, 32)."""
    frequency, place = np.arange(HASH_SIDE)[:, None], np.arange(HASH_GRID)[None]
    scale = np.where(frequency == 0, 1.0, 2.0) / HASH_GRID
    rows: NDArray[np.float64] = np.sqrt(scale) * np.cos(np.pi / HASH_GRID * (place + 0.5) * frequency)
    return rows


COSINES = _cosines()


def hashes_of(thumbnails: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return the 64-bit perceptual hash of each thumbnail: float64 (N, 32, 32) -> uint64 (N,).

    A bit says whether a low frequency of the cosine transform lies above the median of all 64 of them.
    """
    spectrum = (COSINES @ thumbnails @ COSINES.T).reshape(-1, HASH_SIDE**2)
    spectrum[:, 0] = 0.0  # mean brightness says nothing about the picture
    bits = (spectrum > np.median(spectrum, axis=1, keepdims=True)).astype(np.uint64)
    hashes: NDArray[np.uint64] = (bits << np.arange(HASH_SIDE**2, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    return hashes
