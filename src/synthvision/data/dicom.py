"""DICOM: a frame as a workstation shows it. Of all that the file tells, only the patient's number is passed on."""

from __future__ import annotations

import io
import logging
import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from synthvision.data.unusable import UnusableImage

MAGIC = b"DICM"  # at byte 128
BARE = (b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00")
BURNED_IN = "DICOM says that text is burned into the picture"
SURPLUS = re.compile(r"RLE segment .* (\d+) vs\. (\d+) bytes expected")  # how pydicom says it
PADDING = 1  # byte at the end of a segment, to an even number; more means that the data are damaged
MOST_PIXELS = 89_478_485  # of one frame: Pillow's own limit

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote tags, and a tag may name a patient
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Frame:
    """The picture of a DICOM file."""

    pixels: NDArray[np.uint8]  # (H, W, 3)
    conversions: tuple[str, ...]
    facts: dict[str, str | float] = field(default_factory=dict)
    patient: str = ""


def is_dicom(data: bytes) -> bool:
    """Say whether the bytes are a DICOM file, with its preamble or, as old devices write, without."""
    return data[128:132] == MAGIC or data[:4] in BARE


def decode(data: bytes) -> Frame:
    """Decode the first frame: rescaled to the modality's units, windowed, MONOCHROME1 inverted, colour as RGB.

    Where the file states no window, the frame's own smallest and largest values become black and white.

    Raises:
        UnusableImage: the file holds no pixels, too many, or its compression cannot be read.
    """
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "PixelData" not in dataset:
        raise UnusableImage("DICOM without a picture")
    height, width = int(dataset.Rows), int(dataset.Columns)
    if height * width > MOST_PIXELS:
        raise UnusableImage("decompression bomb: more pixels than a picture should have")
    if getattr(dataset.file_meta, "TransferSyntaxUID", None) is None:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # the standard's default
    stored = _stored(dataset)
    frames = int(dataset.get("NumberOfFrames") or 1)
    notes = [f"first of {frames} frames"] if frames > 1 else []
    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        pixels = _eight_bit(apply_color_lut(stored, dataset))
        notes.append("DICOM palette to RGB")
    elif stored.ndim == 3:
        pixels = _eight_bit(stored)
        notes += [f"DICOM {photometric} to RGB"] if photometric != "RGB" else []
    else:
        grey, note = _grey(stored, dataset, photometric)
        notes += note
        pixels = np.repeat(grey[:, :, None], 3, axis=2)
    if str(dataset.get("BurnedInAnnotation", "")).upper() == "YES":
        notes.append(BURNED_IN)
    facts: dict[str, str | float] = {
        "format": "DICOM", "mode": photometric, "width": width, "height": height, "frames": frames,
        "quality": "", "camera": "", "taken": "",
    }  # fmt: skip
    return Frame(pixels, tuple(notes), facts, str(dataset.get("PatientID") or "").strip())


def _stored(dataset: pydicom.Dataset) -> NDArray[np.generic]:
    """Decode the first frame's values; run lengths that give more of them than the frame has are damaged."""
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            stored = pixel_array(dataset, index=0)
    except RuntimeError as error:  # pydicom's word for "no decoder could do it"
        raise UnusableImage(f"damaged, or compressed in a way that cannot be read: {error}") from error
    for warning in said:
        surplus = SURPLUS.search(str(warning.message))
        if surplus and int(surplus[1]) - int(surplus[2]) > PADDING:
            raise UnusableImage("damaged: the RLE data hold more than the picture")
    return stored


def _grey(
    stored: NDArray[np.generic], dataset: pydicom.Dataset, photometric: str
) -> tuple[NDArray[np.uint8], list[str]]:
    notes = []
    values = apply_modality_lut(stored, dataset)
    if dataset.get("RescaleSlope") is not None or dataset.get("ModalityLUTSequence"):
        notes.append("DICOM rescale applied")
    if dataset.get("WindowWidth") or dataset.get("VOILUTSequence"):
        windowed = apply_voi_lut(values, dataset, index=0).astype(np.float64)
        notes.append("DICOM window applied")
        low, high = _window_output(dataset)
    else:
        windowed = values.astype(np.float64)
        low, high = float(windowed.min()), float(windowed.max())
        notes.append("DICOM without a window: scaled from its smallest to its largest value")
    grey = np.clip((windowed - low) / max(high - low, 1e-9), 0, 1)
    if photometric == "MONOCHROME1":
        grey = 1 - grey
        notes.append("MONOCHROME1 inverted")
    return np.round(grey * 255).astype(np.uint8), notes


def _window_output(dataset: pydicom.Dataset) -> tuple[float, float]:
    """Return what black and white are after the window: its own ends, whatever this frame happens to reach."""
    tables = dataset.get("VOILUTSequence") or dataset.get("ModalityLUTSequence")
    if tables:
        return 0.0, float(2 ** int(tables[0].LUTDescriptor[2]) - 1)
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    ends = low * slope + intercept, high * slope + intercept  # pydicom spreads the window over the rescaled range
    return min(ends), max(ends)


def _eight_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    return np.round(values.astype(np.float64) * (255 / np.iinfo(np.uint16).max)).astype(np.uint8)
