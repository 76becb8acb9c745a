"""How the skin phantom is drawn: 64x64 RGB pictures whose truth is known. NumPy and Pillow only.

A phantom is a test object, as in radiology: not a patient's image, and said to be a phantom wherever it appears. Every
random draw comes from the generator that is passed in.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIZE = 64
# Individual typology angle in degrees; Del Bino's classes grouped as Fitzpatrick 1-2, 3-4, 5-6.
TONES = {"fair": (42.0, 60.0), "brown": (12.0, 38.0), "dark": (-42.0, 6.0)}
PARTS = ("face", "back", "leg", "neck", "arm")
MARKS = ("moles", "freckles", "scratches", "papules", "redness", "rings", "pale patches")
COUNTS = {"one": (1, 1), "few": (2, 4), "many": (6, 11)}
# A lesion is larger than most benign marks and shows three of their colours: many more would be more to see than a
# normal has, and who looks for that would find the disease.
LESION_COUNTS = {"few": (2, 4), "many": (4, 6)}
SIZES = {"small": 0.8, "medium": 1.1, "large": 1.5}
# The centre of a pustule of 0.8 is smaller than a cell of the tiny autoencoder: no model behind that could draw it.
LESION_SIZES = {**SIZES, "small": 0.95}
ARRANGEMENTS = ("scattered", "clustered")
ON_TOP = "on top"  # the arrangement of marks that lie on those of the group before: moles in rings, papules on redness
STAGES = ("early", "mature", "crusted")
YY, XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Mark:
    """A group of benign marks, or (kind "lesion") of umbilicated pustules."""

    kind: str
    count: str
    size: str
    arrangement: str  # one of ARRANGEMENTS, or ON_TOP
    stage: str = ""  # lesions only: one of STAGES


@dataclass(frozen=True)
class Skin:
    """The skin of one patient: what all of the patient's pictures share."""

    tone: str
    ita: float  # degrees
    hue: float  # CIELAB a* before any mark
    hairiness: float  # 0..1


def draw_skin(rng: np.random.Generator, tone: str) -> Skin:
    """Draw a patient's skin within a tone group."""
    return Skin(tone, float(rng.uniform(*TONES[tone])), float(rng.uniform(8, 15)), float(rng.random()))


def draw(
    rng: np.random.Generator, skin: Skin, part: str, marks: tuple[Mark, ...]
) -> tuple[NDArray[np.uint8], dict[str, Pixels]]:
    """Draw one picture.

    Returns:
        The picture, uint8 (64, 64, 3), and for each kind of mark where it is, float32 (64, 64) in [0, 1].
    """
    canvas = _Canvas(rng, skin)
    canvas.paint_background(part)
    for mark in marks:
        canvas.paint_mark(mark)
    return _photograph(rng, canvas.image), canvas.where


def individual_typology_angle(image: NDArray[np.uint8]) -> float:
    """Return the ITA in degrees, arctan((L* - 50) / b*), of the median colour of an sRGB picture (H, W, 3).

    Source: Chardon, Cretois, Hourseau 1991.
    """
    lightness, _, yellow = _rgb_to_lab(np.median(image.reshape(-1, 3), axis=0))
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


class _Canvas:
    """The picture while it is drawn: linear mixing of sRGB values in 0..255."""

    def __init__(self, rng: np.random.Generator, skin: Skin) -> None:
        self.rng, self.skin = rng, skin
        yellow = rng.uniform(15, 20)
        lightness = 50 + yellow * np.tan(np.radians(skin.ita + rng.normal(0, 1.5)))
        self.base = _lab_to_rgb(lightness, skin.hue + rng.normal(0, 0.7), yellow)
        self.image: Pixels = np.ones((SIZE, SIZE, 3), np.float32) * self.base
        self.where: dict[str, Pixels] = {}
        self.centres: tuple[tuple[float, float], ...] = ()  # of the marks painted last

    # Background: everything that all classes share.

    def paint_background(self, part: str) -> None:
        rng, tone = self.rng, self.base / 255
        self.image += (_noise(rng, 6) * 6)[..., None] * tone  # mottling
        self.image[..., 0] += _noise(rng, 5) * 2.0  # perfusion
        self._shade(part)
        if part == "face":
            self._pores()
        if part == "neck":
            self._creases()
        if part in ("arm", "leg", "neck"):
            self._veins()
        if part in ("arm", "leg") or rng.random() < 0.15:
            self._hairs()

    def _shade(self, part: str) -> None:
        rng, half = self.rng, SIZE / 2
        angle = rng.uniform(0, 2 * np.pi)
        slope = ((XX - half) * np.cos(angle) + (YY - half) * np.sin(angle)) / half
        self.image *= (1 + rng.uniform(0.0, 0.14) * slope)[..., None]
        if part in ("arm", "leg", "neck"):  # a limb is a cylinder
            across = ((XX - half) * np.sin(angle) - (YY - half) * np.cos(angle)) / half + rng.uniform(-0.3, 0.3)
            depth = rng.uniform(0.1, 0.2) if part == "neck" else rng.uniform(0.2, 0.4)
            self.image *= (1 - depth * np.clip(across, -1, 1) ** 2)[..., None]

    def _pores(self) -> None:
        for _ in range(self.rng.integers(25, 60)):
            self._blend(0.25, self._disc(self.rng.uniform(0, SIZE), self.rng.uniform(0, SIZE), 0.6), self.base * 0.6)

    def _creases(self) -> None:
        angle = self.rng.uniform(0, np.pi)
        for _ in range(self.rng.integers(2, 5)):
            u, v = _rotated(XX - SIZE / 2, YY - SIZE / 2, angle)
            wave = self.rng.uniform(1, 3) * np.sin(self.rng.uniform(0.05, 0.15) * u + self.rng.uniform(0, 6))
            line = np.abs(v - self.rng.uniform(-30, 30) - wave) - 0.6
            self._blend(self.rng.uniform(0.2, 0.4), _inside(line), self.base * 0.68)

    def _veins(self) -> None:
        if self.rng.random() < 0.5:
            return
        vein = self.base * np.array([0.72, 0.84, 0.92])
        angle = self.rng.uniform(0, np.pi)
        for _ in range(self.rng.integers(1, 4)):
            u, v = _rotated(XX - SIZE / 2, YY - SIZE / 2, angle + self.rng.normal(0, 0.25))
            wave = self.rng.uniform(2, 5) * np.sin(self.rng.uniform(0.06, 0.14) * u + self.rng.uniform(0, 6))
            distance = np.abs(v - self.rng.uniform(-25, 25) - wave)
            self._blend(self.rng.uniform(0.2, 0.45), np.exp(-((distance / 1.3) ** 2)), vein)

    def _hairs(self) -> None:
        lean = self.rng.uniform(0, np.pi)
        for _ in range(int(12 * self.skin.hairiness)):
            x, y = self.rng.uniform(0, SIZE, 2)
            u, v = _rotated(XX - x, YY - y, lean + self.rng.normal(0, 0.3))
            stroke = np.maximum(np.abs(v + 0.012 * u * u) - 0.3, np.abs(u) - self.rng.uniform(5, 13))
            self._blend(self.rng.uniform(0.4, 0.7), _inside(stroke), self.base * 0.35)

    # Marks.

    def paint_mark(self, mark: Mark) -> None:
        lesion = mark.kind == "lesion"
        low, high = (LESION_COUNTS if lesion else COUNTS)[mark.count]
        before = self.image.copy()
        scale = (LESION_SIZES if lesion else SIZES)[mark.size] * self.rng.uniform(0.88, 1.12)
        self.contrast = float(self.rng.uniform(0.9, 1.2)) if lesion else 1.0
        if mark.arrangement != ON_TOP:
            self.centres = tuple(self._centres(int(self.rng.integers(low, high + 1)), 4.0 * scale, mark.arrangement))
        painter = getattr(self, f"_{mark.kind.replace(' ', '_')}")
        for x, y in self.centres:
            if lesion:
                painter(x, y, scale, mark.stage)
            else:
                painter(x, y, scale)
        change = np.abs(self.image - before).max(-1) / 25
        self.where[mark.kind] = np.maximum(self.where.get(mark.kind, 0), np.clip(change, 0, 1)).astype(np.float32)

    def _centres(self, count: int, apart: float, arrangement: str) -> Iterator[tuple[float, float]]:
        middle, spread = self.rng.uniform(18, SIZE - 18, 2), self.rng.uniform(8, 13)
        placed: list[NDArray[np.float64]] = []
        for _ in range(count * 15):
            point = self.rng.uniform(5, SIZE - 5, 2)
            if arrangement == "clustered":
                point = middle + spread * self.rng.standard_normal(2)
            clear = all(np.hypot(*(point - other)) > 1.9 * apart for other in placed)
            if clear and point.min() > 3 and point.max() < SIZE - 3:
                placed.append(point)
            if len(placed) == count:
                break
        yield from ((float(x), float(y)) for x, y in placed)

    def _moles(self, x: float, y: float, scale: float) -> None:
        shape = self._disc(x, y, 2.8 * scale * self.rng.uniform(0.8, 1.2), oval=0.2)
        self._blend(self.rng.uniform(0.7, 0.9), shape, self.base * np.array([0.42, 0.34, 0.32]))

    def _freckles(self, x: float, y: float, scale: float) -> None:
        for _ in range(5):
            dx, dy = self.rng.normal(0, 5.0, 2)
            shape = self._disc(x + dx, y + dy, self.rng.uniform(1.0, 1.5) * scale)
            self._blend(self.rng.uniform(0.35, 0.6), shape, self.base * np.array([0.66, 0.5, 0.44]))

    def _scratches(self, x: float, y: float, scale: float) -> None:
        u, v = _rotated(XX - x, YY - y, self.rng.uniform(0, np.pi))
        stroke = np.maximum(np.abs(v) - 1.0, np.abs(u) - self.rng.uniform(6, 10) * scale)
        self._blend(0.7, _inside(stroke), self._red(0.55))

    def _papules(self, x: float, y: float, scale: float) -> None:
        radius = 3.6 * scale * self.rng.uniform(0.85, 1.15)
        self._blend(0.7, self._disc(x, y, radius, oval=0.15), self._pale(0.4))
        self._shine(x, y, radius)

    def _redness(self, x: float, y: float, scale: float) -> None:
        spread = 5.0 * scale * self.rng.uniform(0.8, 1.2)
        self._blend(0.55, np.exp(-((np.hypot(XX - x, YY - y) / spread) ** 2)), self._red(0.8))

    def _rings(self, x: float, y: float, scale: float) -> None:
        radius = 5.2 * scale * self.rng.uniform(0.85, 1.2)
        self._blend(0.65, np.exp(-(((np.hypot(XX - x, YY - y) - radius) / 1.7) ** 2)), self._red(0.65))

    def _pale_patches(self, x: float, y: float, scale: float) -> None:
        edge = 1.0 * _noise(self.rng, 8)
        distance = np.hypot(XX - x, YY - y) - 4.8 * scale * self.rng.uniform(0.85, 1.2) + edge
        self._blend(0.6, _inside(distance, 1.2), self._pale(0.42))

    def _lesion(self, x: float, y: float, scale: float, stage: str) -> None:
        """An umbilicated pustule: red halo, raised pale disc, dark centre; how much of each depends on the stage."""
        halo, disc, centre, width = {
            "early": (0.4, 0.35, 0.5, 0.26),
            "mature": (0.3, 0.6, 0.65, 0.34),
            "crusted": (0.15, 0.45, 0.7, 0.52),
        }[stage]
        strength = self.contrast * self.rng.uniform(0.85, 1.15)
        radius = 4.8 * scale * self.rng.uniform(0.85, 1.2)
        outside = np.maximum(np.hypot(XX - x, YY - y) - radius, 0)
        self._blend(halo * strength, np.exp(-((outside / (0.5 * radius)) ** 2)), self._red(0.84))
        self._blend(disc * strength, self._disc(x, y, radius, oval=0.15), self._pale(0.45))
        self._shine(x, y, radius)
        self._blend(centre * strength, self._disc(x, y, width * radius, oval=0.2), self.base * 0.32)

    # Brushes.

    def _red(self, level: float) -> Pixels:
        red: Pixels = (self.base * np.array([0.98, level * 0.75, level * 0.75]) + np.array([18, 0, 2])).astype(
            np.float32
        )
        return red

    def _pale(self, level: float) -> Pixels:
        return (self.base + (np.array([246, 236, 214]) - self.base) * level).astype(np.float32)

    def _shine(self, x: float, y: float, radius: float) -> None:
        self._blend(0.35, self._disc(x - 0.4 * radius, y - 0.4 * radius, 0.28 * radius), np.array([255, 250, 240]))

    def _disc(self, x: float, y: float, radius: float, oval: float = 0.0) -> Pixels:
        stretch = 1 + self.rng.uniform(-oval, oval)
        u, v = _rotated(XX - x, YY - y, self.rng.uniform(0, np.pi) if oval else 0.0)
        return _inside(np.hypot(u * stretch, v / stretch) - radius)

    def _blend(self, opacity: float, shape: Pixels, colour: NDArray[np.floating]) -> None:
        self.image += (opacity * shape)[..., None] * (np.asarray(colour, np.float32) - self.image)


def _photograph(rng: np.random.Generator, image: Pixels) -> NDArray[np.uint8]:
    """Vignette, lens blur, sensor noise and JPEG: drawn alike for every class."""
    falloff = ((XX - SIZE / 2) ** 2 + (YY - SIZE / 2) ** 2) / (SIZE**2 / 2)
    image = image * (1 - rng.uniform(0.0, 0.2) * falloff)[..., None] * rng.uniform(0.93, 1.07)
    picture = Image.fromarray(np.clip(image, 0, 255).round().astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 0.65)))
    noisy = np.asarray(picture, np.float32) + rng.uniform(0.7, 2.2) * rng.standard_normal((SIZE, SIZE, 3))
    jpeg = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).round().astype(np.uint8)).save(
        jpeg, "JPEG", quality=int(rng.integers(85, 98))
    )
    return np.asarray(Image.open(jpeg))


def _inside(distance: Pixels, softness: float = 0.5) -> Pixels:
    """Antialiased coverage, 1 inside (signed distance < 0) and 0 outside."""
    covered: Pixels = 1 / (1 + np.exp(np.clip(distance * (2 / softness), -30, 30)))
    return covered


def _rotated(x: Pixels, y: Pixels, angle: float) -> tuple[Pixels, Pixels]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def _noise(rng: np.random.Generator, cells: int) -> Pixels:
    """Smooth noise of unit variance, float32 (64, 64), with features of about 64 / cells pixels."""
    grid = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    smooth = np.asarray(grid.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    scaled: Pixels = (smooth - smooth.mean()) / (smooth.std() + 1e-6)
    return scaled


_RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])  # D65


def _lab_to_rgb(lightness: float, red: float, yellow: float) -> Pixels:
    """CIELAB (D65) to sRGB in 0..255, clipped to the gamut."""
    fy = (lightness + 16) / 116
    f = np.array([fy + red / 500, fy, fy - yellow / 200])
    xyz = _WHITE * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    linear = np.clip(np.linalg.solve(_RGB_TO_XYZ, xyz), 0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    rgb: Pixels = (encoded * 255).astype(np.float32)
    return rgb


def _rgb_to_lab(rgb: NDArray[np.floating]) -> tuple[float, float, float]:
    """Inverse of `_lab_to_rgb`."""
    encoded = np.asarray(rgb, np.float64) / 255
    linear = np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)
    xyz = _RGB_TO_XYZ @ linear / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
