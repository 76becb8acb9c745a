"""Valid files of every format, and damage done to them: what a disk, a network or a person does to pictures."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

Pixels = NDArray[np.uint8]
SIDE = 48


def drawn(seed: int = 0) -> Pixels:
    """Draw a smooth picture with some noise in every part of it, so that a missing part shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def _pillow(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(drawn()).save(out, kind, **options)
    return out.getvalue()


def _heic() -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(drawn())).save(out, quality=80)
    return out.getvalue()


def _dicom(compress: bool) -> bytes:
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "4711"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = SIDE, SIDE, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = (drawn()[:, :, 0].astype("<u2") * 257).tobytes()
    data["PixelData"].VR = "OW"
    if compress:
        data.compress(RLELossless)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def valid_files() -> dict[str, bytes]:
    """Return format -> a file's bytes."""
    second = Image.fromarray(drawn(1))
    return {
        "jpeg": _pillow("JPEG", quality=85),
        "progressive jpeg": _pillow("JPEG", quality=85, progressive=True),
        "mpo": _pillow("MPO", save_all=True, append_images=[second], quality=85),
        "png": _pillow("PNG"),
        "tiff": _pillow("TIFF", compression="tiff_lzw"),
        "raw tiff": _pillow("TIFF"),
        "bmp": _pillow("BMP"),
        "webp": _pillow("WEBP", quality=85),
        "gif": _pillow("GIF"),
        "heic": _heic(),
        "dicom": _dicom(False),
        "rle dicom": _dicom(True),
    }


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data) - 8))]  # more than what an end adds


def _cut_with_an_end(data: bytes, rng: np.random.Generator) -> bytes:
    return _cut(data, rng) + data[-2:]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(data)))
    junk = rng.bytes(int(rng.integers(1, 64)))
    return data[:start] + junk + data[start + len(junk) :]


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:end] + data[start:]


def _header(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(0, min(64, len(data)), int(rng.integers(1, 5))):
        damaged[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(damaged)


CUTS = (_cut, _cut_with_an_end)  # after these the picture is not all there
MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *CUTS, _flip, _overwrite, _remove, _repeat, _header,
)  # fmt: skip


def mutated(data: bytes, seed: int) -> tuple[bytes, bool]:
    """Return damaged bytes, and whether a part of the file was cut off."""
    rng = np.random.default_rng(seed)
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    return mutation(data, rng), mutation in CUTS
