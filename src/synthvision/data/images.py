"""Images: decoding whatever a file really holds, one square form for all of them, and perceptual hashes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from synthvision.artifact import write_bytes
from synthvision.manifest import Manifest

Pixels = NDArray[np.uint8]
SIXTEEN_BIT = 65535
MIN_SIDE = 16  # pixels; a smaller picture shows nothing
HASH_GRID = 32  # side of the thumbnail a perceptual hash is taken from
HASH_SIDE = 8  # lowest frequencies kept in each direction: 8 x 8 = 64 bits


class UnusableImage(ValueError):  # noqa: N818 - a finding about a file, seldom an error of the run
    """A file that gives no usable picture. The message is the reason, without the file's name."""


def read_rgb(path: Path) -> Pixels:
    """Read a picture file; see `decode`.

    Raises:
        UnusableImage: the file cannot be read, or its bytes are no complete picture.
    """
    return decode(read_file(path))


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        UnusableImage: there is no such file, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        # strerror, not str(error): the latter carries the path
        raise UnusableImage(f"cannot be read: {error.strerror or type(error).__name__}") from error


def decode(data: bytes) -> Pixels:
    """Decode a picture by its content, whatever its file name says: uint8 (H, W, 3), sRGB values as stored.

    EXIF orientation is applied, transparency is laid over white, 16-bit values are scaled to 8 bits, and of
    several frames the first is taken.

    Raises:
        UnusableImage: the bytes are empty, no picture, cut short, or larger than Pillow's bomb limit.
    """
    if not data:
        raise UnusableImage("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata does not damage pixels; damaged pixels raise
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return np.array(_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
        except UnusableImage:
            raise
        except UnidentifiedImageError as error:
            raise UnusableImage("not an image of a known format") from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnusableImage("decompression bomb: more pixels than a picture should have") from error
        except Exception as error:  # decoders raise errors of every kind on damaged bytes
            raise UnusableImage(f"damaged: {type(error).__name__}: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UnusableImage("floating-point pixels: their range is not known; save the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _eight_bit(values: NDArray[np.integer]) -> Pixels:
    if values.min() < 0 or values.max() > SIXTEEN_BIT:
        raise UnusableImage("32-bit pixels: their range is not known; save the image with 8 or 16 bits")
    return np.round(values.astype(np.float64) * (255 / SIXTEEN_BIT)).astype(np.uint8)


def require_content(pixels: Pixels) -> None:
    """Check that uint8 (H, W, 3) can show anything.

    Raises:
        UnusableImage: the picture is very small, or has a single colour.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise UnusableImage(f"too small: {width} x {height} pixels, {MIN_SIDE} needed")
    if (pixels == pixels[0, 0]).all():
        raise UnusableImage("uniform: every pixel has the same colour")


def fit(image: Pixels, size: int) -> Pixels:
    """Cut the largest central square and resize it (Lanczos): uint8 (H, W, 3) -> uint8 (size, size, 3)."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    if side == size:
        return square.copy()
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))


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
