"""Every format that teams have becomes the picture a viewer shows, and says what was done to it."""

import contextlib
import io
from collections.abc import Callable

import numpy as np
import pillow_heif
import pydicom
import pytest
from mutations import valid_files
from numpy.typing import NDArray
from PIL import Image, ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from synthvision.data import decoding
from synthvision.data.decoding import decode_file
from synthvision.data.unusable import UnusableImage

NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # 48 x 40


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def red_is_green() -> bytes:
    """Return a profile that is plainly not sRGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def test_srgb_profiles_change_nothing_and_others_do() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decode_file(encoded(Image.fromarray(NOISE), "PNG", icc_profile=srgb))
    assert np.array_equal(same.pixels, NOISE)
    assert same.conversions == ()
    wide = bytearray(srgb)
    place = wide.index(b"sRGB built-in".decode().encode("utf-16-be"))
    wide[place : place + 8] = "Wide".encode("utf-16-be")
    named = decode_file(encoded(Image.fromarray(NOISE), "PNG", icc_profile=bytes(wide)))
    assert named.conversions == ("ICC profile (RGB) to sRGB",)
    assert np.abs(named.pixels.astype(int) - NOISE).max() <= 2  # the same primaries under another name


def test_a_profile_of_another_colour_space_is_passed_over() -> None:
    decoded = decode_file(encoded(Image.fromarray(NOISE), "PNG", icc_profile=red_is_green()))
    assert np.array_equal(decoded.pixels, NOISE)
    assert decoded.conversions == ("ICC profile could not be used",)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    options = {"quality": 95} if kind == "JPEG" else {}
    decoded = decode_file(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), kind, **options))
    assert decoded.conversions == ("CMYK to RGB without a profile",)
    assert np.abs(decoded.pixels.astype(int) - (255, 0, 0)).max() < 12


def test_sixteen_bit_colour_and_grey_say_so() -> None:
    grey = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    decoded = decode_file(encoded(Image.fromarray(grey), "PNG"))
    assert decoded.conversions == ("16 bits to 8",)
    assert decoded.pixels.max() == 255


def mpo() -> bytes:
    first, second = Image.fromarray(NOISE), Image.fromarray(NOISE[::-1].copy())
    return encoded(first, "MPO", save_all=True, append_images=[second], quality=90)


FRAMES: dict[str, Callable[[], bytes]] = {
    "GIF": lambda: encoded(
        Image.fromarray(NOISE), "GIF", save_all=True, append_images=[Image.fromarray(NOISE[::-1].copy())]
    ),
    "TIFF": lambda: encoded(
        Image.fromarray(NOISE), "TIFF", save_all=True, append_images=[Image.fromarray(NOISE[::-1].copy())]
    ),
    "MPO": mpo,
}


@pytest.mark.parametrize("kind", FRAMES)
def test_the_first_frame_is_taken_and_noted(kind: str) -> None:
    decoded = decode_file(FRAMES[kind]())
    assert decoded.conversions[0] == "first of 2 frames"
    assert decoded.facts["format"] == kind
    assert np.abs(decoded.pixels.astype(int) - NOISE).mean() < 12


def test_run_lengths_that_lost_a_part_are_damaged() -> None:
    """Without some bytes in its middle such a segment goes on with what follows, and looks whole in length."""
    whole = valid_files()["rle dicom"]
    original, taken = decode_file(whole).pixels, 0
    for start in range(len(whole) // 3, len(whole) * 2 // 3, 211):
        with contextlib.suppress(UnusableImage):
            pixels = decode_file(whole[:start] + whole[start + 200 :]).pixels
            taken += not np.array_equal(pixels, original)
    assert taken == 0


def test_heic_is_read() -> None:
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(NOISE)).save(out, quality=90)
    decoded = decode_file(out.getvalue())
    assert decoded.facts["format"] == "HEIF"
    assert np.abs(decoded.pixels.astype(int) - NOISE).mean() < 12


def test_heic_without_the_extra_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "pi_heif", None)
    monkeypatch.setattr(decoding, "FORMATS", ("PNG",))
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(NOISE)).save(out)
    with pytest.raises(UnusableImage, match=r"synthvision\[heic\]"):
        decode_file(out.getvalue())


def test_orientation_is_applied_to_jpeg_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x010F], exif[0x0110] = "Maker", "Model 1"
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 12:00:00"
    decoded = decode_file(encoded(Image.fromarray(NOISE), "JPEG", exif=exif, quality=95))
    assert decoded.conversions == ("EXIF orientation applied",)
    assert np.abs(decoded.pixels.astype(int) - NOISE[::-1, ::-1]).mean() < 8
    assert decoded.facts["camera"] == "Maker Model 1"
    assert float(decoded.facts["taken"]) == pytest.approx(19849.5)


def test_quality_shows_in_the_facts() -> None:
    high, low = (decode_file(encoded(Image.fromarray(NOISE), "JPEG", quality=q)).facts for q in (95, 40))
    assert float(low["quality"]) > float(high["quality"]) > 0
    assert (high["width"], high["height"], high["mode"]) == (40, 48, "RGB")


def test_jpeg_pixels_are_those_of_pillow() -> None:
    for options in ({"quality": 80}, {"quality": 90, "progressive": True}, {"subsampling": 0}):
        data = encoded(Image.fromarray(NOISE), "JPEG", **options)
        assert np.array_equal(decode_file(data).pixels, np.asarray(Image.open(io.BytesIO(data))))
    grey = encoded(Image.fromarray(NOISE).convert("L"), "JPEG")
    assert np.array_equal(decode_file(grey).pixels, np.asarray(Image.open(io.BytesIO(grey)).convert("RGB")))


def test_half_a_jpeg_with_a_proper_end_is_no_picture() -> None:
    """Pillow shows the missing half in grey and says nothing."""
    data = encoded(Image.fromarray(NOISE), "JPEG", quality=95)
    half = data[: len(data) * 9 // 10] + b"\xff\xd9"
    assert Image.open(io.BytesIO(half)).convert("RGB").size == (40, 48)
    with pytest.raises(UnusableImage, match="premature end"):
        decode_file(half)


def test_a_progressive_jpeg_without_its_last_scans_is_no_picture() -> None:
    """With a proper end it decodes without a warning, blurred."""
    data = encoded(Image.fromarray(NOISE), "JPEG", quality=90, progressive=True)
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    decode_file(data)
    for scan in scans[1:]:
        tables = data.rindex(b"\xff\xc4", 0, scan)
        with pytest.raises(UnusableImage, match="scans of the progressive JPEG are missing"):
            decode_file(data[:tables] + b"\xff\xd9")


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(encoded(Image.fromarray(NOISE), "PNG", compress_level=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnusableImage, match="checksum of a IDAT chunk"):
        decode_file(bytes(data))


def test_only_known_formats_are_tried() -> None:
    for kind in ("EPS", "PPM", "TGA"):
        with pytest.raises(UnusableImage, match="not an image of a known format"):
            decode_file(encoded(Image.fromarray(NOISE), kind))


def dicom(
    pixels: NDArray[np.generic], photometric: str = "MONOCHROME2", syntax: str = ExplicitVRLittleEndian, **tags: object
) -> bytes:
    """Write a DICOM file as a device would."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax if syntax != RLELossless else ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.PatientID, dataset.PatientName = "4711", "Doe^Jane"
    colour = pixels.shape[-1] == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(
        pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")
    ).tobytes()
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    if syntax == RLELossless:
        dataset.compress(RLELossless)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


RAMP = np.arange(-1024, 1024, dtype=np.int16).reshape(32, 64)


def test_dicom_is_rescaled_and_windowed() -> None:
    decoded = decode_file(dicom(RAMP, RescaleSlope=2, RescaleIntercept=100, WindowCenter=0, WindowWidth=401))
    units = RAMP * 2.0 + 100
    shown = np.clip((units - (0 - 0.5)) / 400 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    assert np.abs(decoded.pixels[:, :, 0] - shown).max() <= 1
    assert decoded.conversions == ("DICOM rescale applied", "DICOM window applied")
    assert decoded.patient == "4711"
    assert "Doe" not in repr((decoded.facts, decoded.conversions))


def test_monochrome1_is_inverted() -> None:
    one, two = (decode_file(dicom(RAMP, kind)).pixels.astype(int) for kind in ("MONOCHROME1", "MONOCHROME2"))
    assert np.array_equal(one, 255 - two)
    assert (two.min(), two.max()) == (0, 255)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_transfer_syntaxes_show_the_same(syntax: str) -> None:
    assert np.array_equal(decode_file(dicom(RAMP, syntax=syntax)).pixels, decode_file(dicom(RAMP)).pixels)


def test_colour_and_compressed_dicom() -> None:
    assert np.array_equal(decode_file(dicom(NOISE, "RGB")).pixels, NOISE)
    dataset = pydicom.dcmread(io.BytesIO(dicom(NOISE, "RGB")))
    jpeg = encoded(Image.fromarray(NOISE), "JPEG", quality=95, subsampling=0)
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PhotometricInterpretation = "YBR_FULL"
    out = io.BytesIO()
    dataset.save_as(out)
    decoded = decode_file(out.getvalue())
    assert np.abs(decoded.pixels.astype(int) - NOISE).mean() < 8
    assert decoded.conversions == ("DICOM YBR_FULL to RGB",)


def test_multi_frame_dicom_gives_its_first() -> None:
    frames = np.stack([RAMP, RAMP[::-1]])
    decoded = decode_file(dicom(frames, NumberOfFrames=2))
    assert decoded.conversions[0] == "first of 2 frames"
    assert np.array_equal(decoded.pixels, decode_file(dicom(RAMP)).pixels)


def test_dicom_without_preamble_or_picture() -> None:
    whole = dicom(RAMP, syntax=ImplicitVRLittleEndian)
    bare = whole[whole.index(b"\x08\x00\x16\x00") :]
    assert np.array_equal(decode_file(bare).pixels, decode_file(dicom(RAMP)).pixels)
    dataset = pydicom.dcmread(io.BytesIO(whole))
    del dataset.PixelData
    out = io.BytesIO()
    dataset.save_as(out)
    with pytest.raises(UnusableImage, match="without a picture"):
        decode_file(out.getvalue())


def test_burned_in_text_is_noted() -> None:
    assert (
        "DICOM says that text is burned into the picture"
        in decode_file(dicom(RAMP, BurnedInAnnotation="YES")).conversions
    )


def test_half_a_dicom_is_no_picture() -> None:
    data = dicom(RAMP)
    with pytest.raises(UnusableImage, match="damaged"):
        decode_file(data[: len(data) // 2])
