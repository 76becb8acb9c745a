"""Whatever a file holds becomes the picture that a viewer shows; what holds no picture says why."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn

from synthvision.data import images
from synthvision.data.unusable import UnusableImage
from synthvision.manifest import Manifest, Record

NOISE = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_content_decides_not_the_extension(tmp_path: Path, kind: str) -> None:
    smooth = images.fit(images.fit(NOISE, 4), 40)
    file = tmp_path / "image.xyz"
    file.write_bytes(encoded(Image.fromarray(smooth), kind))
    pixels = images.read_rgb(file)
    assert pixels.shape == smooth.shape
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - smooth).mean() < 8  # palettes and JPEG lose a little


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the picture turned clockwise
    decoded = images.decode(encoded(Image.fromarray(NOISE), "PNG", exif=exif))
    assert np.array_equal(decoded, np.rot90(NOISE, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode: str) -> None:
    layer = Image.new("RGBA", (20, 20), (10, 10, 10, 255))
    layer.paste((10, 10, 10, 0), (0, 0, 10, 20))
    picture = layer.convert(mode) if mode != "P" else layer.quantize(4)
    decoded = images.decode(encoded(picture, "PNG"))
    assert (decoded[:, :10] == 255).all()
    assert (decoded[:, 10:] == 10).all()


def test_half_transparent_is_between() -> None:
    decoded = images.decode(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 51)), "PNG"))
    assert (decoded == 204).all()  # 51 / 255 black over white


def test_sixteen_bits_are_scaled_not_cut() -> None:
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16).repeat(4, axis=0)
    decoded = images.decode(encoded(Image.fromarray(values), "PNG"))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_first_frame_of_several_is_taken() -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert images.decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "JPEG"])
def test_half_a_file_is_no_picture(kind: str) -> None:
    data = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(UnusableImage, match="damaged"):
        images.decode(data[: len(data) // 2])


def test_reasons_are_told_without_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "float.tiff").write_bytes(encoded(Image.fromarray(np.ones((20, 20), np.float32)), "TIFF"))
    (tmp_path / "big.png").write_bytes(encoded(Image.fromarray(NOISE), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500)
    reasons = {
        "empty.png": "empty",
        "text.png": "not an image",
        "float.tiff": "floating-point",
        "big.png": "decompression bomb",
        "missing.png": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnusableImage, match=reason) as error:
            images.read_rgb(tmp_path / name)
        assert str(tmp_path) not in str(error.value)


def test_a_picture_must_show_something() -> None:
    images.require_content(NOISE)
    with pytest.raises(UnusableImage, match="too small: 40 x 8"):
        images.require_content(NOISE[:8])
    with pytest.raises(UnusableImage, match="uniform"):
        images.require_content(np.full_like(NOISE, 7))


def test_fit_cuts_the_central_square() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    assert (images.fit(wide, 10) == 200).all()
    assert (images.fit(wide.transpose(1, 0, 2), 25) == 200).all()
    assert np.array_equal(images.fit(NOISE, 40), NOISE[4:44])


def test_png_has_the_same_bytes_and_keeps_pixels_and_text(tmp_path: Path) -> None:
    text = {"prompt": "photo of a lésion", "digital source type": "trainedAlgorithmicMedia"}
    images.write_png(tmp_path / "a" / "image.png", NOISE, text)
    assert (tmp_path / "a" / "image.png").read_bytes() == images.encode_png(NOISE, dict(reversed(text.items())))
    with Image.open(tmp_path / "a" / "image.png") as image:
        assert np.array_equal(np.asarray(image), NOISE)
        assert image.info == text


def test_batch_keeps_the_order_and_names_what_is_missing(tmp_path: Path) -> None:
    records = []
    for index in range(3):
        images.write_png(tmp_path / f"{index}.png", np.full((8, 8, 3), index, dtype=np.uint8))
        records.append(Record(f"image-{index}", f"{index}.png", "0" * 64, "lesion", "real"))
    batch = images.load_batch(Manifest(tuple(reversed(records)), tmp_path), 4)
    assert batch.shape == (3, 4, 4, 3)
    assert batch[:, 0, 0, 0].tolist() == [2, 1, 0]
    (tmp_path / "1.png").unlink()
    with pytest.raises(UnusableImage, match="image-1"):
        images.load_batch(Manifest(tuple(records), tmp_path), 4)


def hash_of(image: images.Pixels) -> int:
    return int(images.hashes_of(images.grey_thumbnails(image[None]))[0])


def test_hash_agrees_with_an_independent_cosine_transform() -> None:
    grey = images.grey_thumbnails(NOISE[None])[0]
    spectrum = dctn(grey, norm="ortho")[:8, :8].ravel()
    spectrum[0] = 0
    bits = spectrum > np.median(spectrum)
    assert hash_of(NOISE) == sum(1 << place for place, bit in enumerate(bits) if bit)


def test_hash_survives_encoding_and_tells_pictures_apart() -> None:
    smooth = images.fit(images.fit(NOISE, 8), 64)
    copy = images.decode(encoded(Image.fromarray(images.fit(smooth, 48)), "JPEG", quality=70))
    other = images.fit(images.fit(NOISE[::-1], 8), 64)
    assert (hash_of(smooth) ^ hash_of(copy)).bit_count() <= 6
    assert (hash_of(smooth) ^ hash_of(other)).bit_count() > 12


@pytest.mark.parametrize("side", [30, 64, 65, 128, 301])
def test_blocks_are_averaged_before_as_pillow_does(side: int) -> None:
    square = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    for size in (16, 48, 64):
        expected = Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        assert np.array_equal(images.fit(square, size), np.asarray(expected) if side != size else square)
