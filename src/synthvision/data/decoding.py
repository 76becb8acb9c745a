"""Decoding: the picture that a file's bytes really hold, and what had to be done to show it.

The extension is a hint, the bytes decide. Only the formats named here are tried: Pillow knows many more, some of which
start other programs. What is done to the stored values is recorded, since two classes that need different conversions
can be told apart by them.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence, UnidentifiedImageError

from synthvision.data import dicom
from synthvision.data.unusable import UnusableImage

try:  # an extra: synthvision[heic]
    import pi_heif
except ImportError:
    pi_heif = None
else:
    pi_heif.register_heif_opener()

Pixels = NDArray[np.uint8]
Facts = Mapping[str, str | float]
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", *(("HEIF",) if pi_heif else ()))  # MPO comes through JPEG
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIXTEEN_BIT = 65535
MOST_BYTES = 1 << 30  # of a file: more would not fit beside others into memory
STRAY = 64  # bytes between a JPEG's data and its end that cameras leave; more means that the data are damaged
JPEG_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's name -> libjpeg-turbo's
BASELINE = (0xC0, 0xC1)  # JPEGs of one scan: the strict decoder sees what is missing
MARKER, PROGRESSIVE, SCAN, END_OF_IMAGE, COEFFICIENTS = 0xFF, 0xC2, 0xDA, 0xD9, 64  # of JPEG
NEXT_SEGMENT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # stuffed bytes and restarts are no segments
SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class Decoded:
    """A picture as a viewer shows it, and where it comes from."""

    pixels: Pixels  # (H, W, 3), sRGB
    conversions: tuple[str, ...] = ()  # what was done to the stored values, in order
    facts: Facts = field(default_factory=dict)  # of the file: format, mode, size, quality, camera, when taken
    patient: str = ""  # as the file names them; never to be written anywhere


def decode_file(data: bytes) -> Decoded:
    """Decode a picture by its content.

    EXIF orientation is applied, ICC profiles and CMYK go to sRGB, transparency is laid over white, 16-bit values are
    scaled to 8 bits, and of several frames the first is taken. DICOM: see `dicom.decode`.

    Raises:
        UnusableImage: the bytes are empty, no picture, cut short, damaged, or larger than Pillow's bomb limit.
    """
    if not data:
        raise UnusableImage("the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata does not damage pixels; damaged pixels raise
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            if dicom.is_dicom(data):
                shown = dicom.decode(data)
                return Decoded(shown.pixels, shown.conversions, {**shown.facts, "bytes": len(data)}, shown.patient)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return _decoded(image, data)
        except UnusableImage:
            raise
        except UnidentifiedImageError as error:
            raise UnusableImage(_unknown(data)) from error
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnusableImage("decompression bomb: more pixels than a picture should have") from error
        except Exception as error:  # decoders raise errors of every kind on damaged bytes
            raise UnusableImage(f"damaged: {type(error).__name__}: {error}") from error


def _unknown(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS and pi_heif is None:
        return "HEIC: pip install 'synthvision[heic]' to read it"
    return "not an image of a known format"


def _decoded(image: Image.Image, data: bytes) -> Decoded:
    frames = getattr(image, "n_frames", 1)
    notes = [f"first of {frames} frames"] if frames > 1 else []
    facts = {**_facts(image), "bytes": len(data), "frames": frames}
    profile, orientation = image.info.get("icc_profile"), _orientation(image)
    strict = None
    if image.format in ("JPEG", "MPO"):
        strict, damage = _jpeg(data, JPEG_SPACES.get(image.mode, image.mode))
        notes += damage
        if strict is not None and strict.shape[2] == 3 and orientation == 1 and not profile:
            return Decoded(strict, tuple(notes), facts)  # as most photographs are: nothing is to be done
    raster = _raster(image, data) if strict is None else _upright(image, strict)
    if orientation > 1:
        notes.append("EXIF orientation applied")
    if (image.format == "PNG" and data[24] == 16) or raster.mode.startswith("I;16"):
        notes.append("16 bits to 8")
    if profile:
        raster, note = _to_srgb(raster, profile)
        notes += note
    if raster.mode == "CMYK":
        notes.append("CMYK to RGB without a profile")
    if raster.has_transparency_data:
        notes.append("transparency over white")
    return Decoded(np.array(_rgb(raster), dtype=np.uint8), tuple(notes), facts)


def _raster(image: Image.Image, data: bytes) -> Image.Image:
    """Decode the pixels, upright, and refuse data that decoders fill up without a word."""
    if image.format == "PNG":
        _check_png(data)
    if image.format == "GIF":
        image = next(ImageSequence.Iterator(image))
    image.load()
    upright = ImageOps.exif_transpose(image)
    upright.info.pop("icc_profile", None)
    return upright


def _upright(image: Image.Image, pixels: Pixels) -> Image.Image:
    raster = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    raster.info["exif"] = image.info.get("exif", b"")
    return ImageOps.exif_transpose(raster) if raster.info["exif"] else raster


def _jpeg(data: bytes, space: str) -> tuple[Pixels | None, list[str]]:
    """Decode strictly: libjpeg fills what is missing with grey and only warns, and Pillow does not pass that on.

    Returns None where Pillow shall do it: it knows what CMYK in a JPEG means, and passes over stray bytes.
    """
    try:
        pixels = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError as error:
        stray = re.search(r"(\d+) extraneous bytes", str(error))
        if stray and int(stray[1]) <= STRAY:
            return None, ["stray bytes in the JPEG data skipped"]
        if "nsupported" in str(error):
            return None, ["decoded without the strict check"]
        raise UnusableImage(f"damaged: {error}") from error
    _check_scans(data)
    return (None if space == "CMYK" else pixels), []


def _check_scans(data: bytes) -> None:
    """Check that a progressive JPEG has all its scans: after some of them it looks whole, only blurred."""
    place, open_bits = 2, {}
    while place + 4 <= len(data) and data[place] == MARKER and data[place + 1] != END_OF_IMAGE:
        kind, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + length]
        place += 2 + length
        if kind in BASELINE:
            return
        if kind == PROGRESSIVE:
            open_bits = {segment[6 + 3 * each]: [1] * COEFFICIENTS for each in range(segment[5])}
        if kind == SCAN:
            first, last, bit = segment[-3], segment[-2], segment[-1] & 15  # of the coefficients; 0: nothing is missing
            for component in segment[1 : 1 + 2 * segment[0] : 2]:
                if component in open_bits:
                    open_bits[component][first : last + 1] = [bit] * (last + 1 - first)
            following = NEXT_SEGMENT.search(data, place)
            place = following.start() if following else len(data)
    if any(any(bits) for bits in open_bits.values()):
        raise UnusableImage("damaged: scans of the progressive JPEG are missing")


def _check_png(data: bytes) -> None:
    """Check the sums of all chunks: Pillow skips those of the pixels."""
    for kind, content, checksum in _chunks(data):
        if kind.isalpha() and kind[:1].isupper() and zlib.crc32(kind + content) != checksum:
            raise UnusableImage(f"damaged: the checksum of a {kind.decode()} chunk is wrong")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    place = len(PNG_SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        yield data[place + 4 : place + 8], data[place + 8 : end], int.from_bytes(data[end : end + 4], "big")
        place = end + 4


def _to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, list[str]]:
    """Convert by the file's profile; one that cannot be used is passed over, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in (source.profile.profile_description or ""):
            return image, []
        plain = image.convert("RGBA" if image.has_transparency_data else "RGB") if image.mode == "P" else image
        target = "RGBA" if plain.mode == "RGBA" else "RGB"
        shown = ImageCms.profileToProfile(plain, source, SRGB, outputMode=target)
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):
        return image, ["ICC profile could not be used"]
    return shown or plain, [f"ICC profile ({source.profile.xcolor_space.strip()}) to sRGB"]


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


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (ValueError, TypeError, SyntaxError, OSError):  # damaged metadata
        return 1


def _facts(image: Image.Image) -> dict[str, str | float]:
    """Return what a model could learn from the file without looking at the picture."""
    facts: dict[str, str | float] = {"format": image.format or "", "mode": image.mode}
    facts |= {"width": image.width, "height": image.height, "quality": "", "camera": "", "taken": ""}
    tables = getattr(image, "quantization", None)
    if tables:
        facts["quality"] = fmean(fmean(table) for table in tables.values())  # coarser: lower quality
    try:
        exif = image.getexif()
        camera = (str(exif.get(tag, "")).strip("\0 ") for tag in (ExifTags.Base.Make, ExifTags.Base.Model))
        facts["camera"] = " ".join(filter(None, camera))
        taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
        if taken:
            facts["taken"] = _days(str(taken))
    except Exception:
        return facts
    return facts


def _days(stamp: str) -> float | str:
    try:
        return datetime.strptime(stamp[:19], "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC).timestamp() / 86_400
    except ValueError:
        return ""


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        UnusableImage: there is no such file, or it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UnusableImage(f"too large: {size >> 20} MiB, {MOST_BYTES >> 20} allowed")
        return path.read_bytes()
    except OSError as error:
        # strerror, not str(error): the latter carries the path
        raise UnusableImage(f"cannot be read: {error.strerror or type(error).__name__}") from error
