"""The phantom study's images: patients, scenes, captions, and the folder that `prepare` then reads as a user's.

Classes: `lesion` (clusters of umbilicated pustules, often with benign marks beside them), `normal` (skin as it is,
often with benign marks) and `other` (one or two kinds of benign marks, always). Benign marks are thus common to all
classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from synthvision.artifact import write_text
from synthvision.data.images import write_png
from synthvision.data.skin import (
    ARRANGEMENTS,
    COUNTS,
    MARKS,
    ON_TOP,
    PARTS,
    SIZE,
    SIZES,
    STAGES,
    TONES,
    Mark,
    Skin,
    draw,
    draw_skin,
)

CLASSES = ("lesion", "normal", "other")
# What the lesion is called in guides' captions: a word that the base has never seen, to be bound by DreamBooth, and a
# kind of mark that it knows. Asked for a vaguer noun the base paints mixtures of all kinds, which are half a lesion.
LESION = "sks papules"
CLASS_NOUN = "spots"  # what any benign mark may also be called
COLUMNS = ("file", "label", "patient", "skin_tone", "body_part", "caption")
CELLS = 16  # squares per side in which a pool says what marks are where
IMAGES_PER_PATIENT = (1, 4)
# What a caption may say; the text encoder first learns to tell these from the words.
FACTS = (
    *TONES,
    *PARTS,
    *MARKS,
    *(f"{value} {kind}" for kind in MARKS for value in (*COUNTS, *SIZES, *ARRANGEMENTS, ON_TOP)),
)


@dataclass(frozen=True)
class Clutter:
    """The benign marks in pictures.

    Args:
        groups: of each class, the shares of pictures with no group of marks, one, two, ...
        overlaps: of pictures with several groups, the share in which the second lies on the first. Else whatever is
            dark within pale, or red around dark, would be a lesion, and who looks for the unusual would find the
            disease without knowing it.
    """

    groups: Mapping[str, Sequence[float]]
    overlaps: float


# Who has the disease has moles as well. A lesion's picture has fewer of them, so that the classes show about as much:
# how much there is to see shall not tell them apart.
STUDY = Clutter({"lesion": (0.25, 0.5, 0.25), "normal": (0.0, 0.05, 0.4, 0.55), "other": (0.0, 0.5, 0.5)}, 0.6)
POOL = Clutter({"normal": (0.05, 0.35, 0.6), "other": (0.0, 0.5, 0.5)}, 0.6)  # what the shipped weights were trained on
GUIDE_STREAM = 1_000_000  # keeps guides' random draws apart from every class's


@dataclass(frozen=True)
class Scene:
    """What one picture shows."""

    skin: Skin
    part: str
    marks: tuple[Mark, ...]

    def draw(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw the picture, uint8 (64, 64, 3)."""
        return draw(rng, self.skin, self.part, self.marks)[0]

    def caption(self, names: Mapping[str, str] | None = None) -> str:
        """Describe the picture in clinical words; `names` renames kinds of marks."""
        seen = " and ".join(_phrase(mark, (names or {}).get(mark.kind, mark.kind)) for mark in self.marks)
        return f"photo of {self.skin.tone} skin on the {self.part}, {seen or 'no marks'}"

    def facts(self) -> NDArray[np.bool_]:
        """Return which of FACTS the caption says, bool (len(FACTS),)."""
        seen = {self.skin.tone, self.part}
        for mark in self.marks:
            seen |= {mark.kind, *(f"{value} {mark.kind}" for value in (mark.count, mark.size, _arrangement(mark)))}
        return np.array([fact in seen for fact in FACTS])


@dataclass(frozen=True)
class PhantomConfig:
    """How many phantoms to draw; see `write_phantoms`.

    Raises:
        ValueError: a class is unknown or a number is negative.
    """

    images: Mapping[str, int]  # class -> number of images
    guides: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.images) - set(CLASSES)
        if unknown:
            raise ValueError(
                f"dataset.phantom.images: classes must be among {CLASSES}; these are not: {sorted(unknown)}"
            )
        if self.guides < 0 or min(self.images.values()) < 0:
            raise ValueError(
                f"dataset.phantom: numbers of images must be 0 or more; got {self.images}, {self.guides} guides"
            )


def random_benign(rng: np.random.Generator) -> Mark:
    """Draw a group of benign marks."""
    return Mark(*(str(rng.choice(list(values))) for values in (MARKS, COUNTS, SIZES, ARRANGEMENTS)))


def random_scene(rng: np.random.Generator, label: str, skin: Skin, clutter: Clutter = STUDY) -> Scene:
    """Draw a scene of a class on this patient's skin."""
    shares = clutter.groups[label]
    marks = [random_benign(rng) for _ in range(int(rng.choice(len(shares), p=shares)))]
    if len(marks) > 1 and rng.random() < clutter.overlaps:
        marks[1] = replace(marks[1], count=marks[0].count, arrangement=ON_TOP)
    if label == "lesion":
        marks.append(_random_lesion(rng))
    return Scene(skin, str(rng.choice(PARTS)), tuple(marks))


def _random_lesion(rng: np.random.Generator) -> Mark:
    count = str(rng.choice(["few", "many"]))  # "one" would not be a cluster
    return Mark("lesion", count, *(str(rng.choice(list(values))) for values in (SIZES, ARRANGEMENTS, STAGES)))


def _phrase(mark: Mark, name: str) -> str:
    size, arrangement = mark.size if mark.size != "medium" else "", _arrangement(mark)
    placed = (name, ON_TOP) if arrangement == ON_TOP else (arrangement, mark.stage, name)
    return " ".join(word for word in (mark.count, size, *placed) if word)


def _arrangement(mark: Mark) -> str:
    """Return what a caption says of it: one mark alone is neither scattered nor clustered."""
    return "" if mark.count == "one" and mark.arrangement != ON_TOP else mark.arrangement


def random_tone(rng: np.random.Generator) -> str:
    """Draw a skin tone; all three are equally frequent."""
    return str(rng.choice(list(TONES)))


def write_phantoms(folder: Path, config: PhantomConfig) -> None:
    """Write `images/*.png`, `phantoms.csv` and `guides/*.png` with a `.txt` caption each.

    The same config gives the same bytes. No patient has images in two classes or among the guides.
    """
    rows = [row for index, label in enumerate(CLASSES) for row in _write_class(folder, index, label, config)]
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "phantoms.csv", out.getvalue())
    for index in range(config.guides):
        _write_guide(folder / "guides", index, config.seed)


def _write_class(folder: Path, index: int, label: str, config: PhantomConfig) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    patient = 0
    wanted = config.images.get(label, 0)
    while len(rows) < wanted:
        rng = np.random.default_rng([config.seed, index, patient])
        skin = draw_skin(rng, random_tone(rng))
        for _ in range(min(int(rng.integers(*IMAGES_PER_PATIENT)), wanted - len(rows))):
            scene = random_scene(rng, label, skin)
            file = f"images/{label}-{len(rows):05}.png"
            write_png(folder / file, scene.draw(rng))
            values = (file, label, f"{label}-{patient:05}", skin.tone, scene.part, scene.caption())
            rows.append(dict(zip(COLUMNS, values, strict=True)))
        patient += 1
    return rows


def _write_guide(folder: Path, index: int, seed: int) -> None:
    """Guides are curated, as in the papers: tones and body parts take turns, no other marks in the picture."""
    rng = np.random.default_rng([seed, GUIDE_STREAM, index])
    skin = draw_skin(rng, list(TONES)[index % len(TONES)])
    scene = Scene(skin, PARTS[index % len(PARTS)], (_random_lesion(rng),))
    write_png(folder / f"guide-{index:02}.png", scene.draw(rng))
    write_text(folder / f"guide-{index:02}.txt", scene.caption({"lesion": LESION}) + "\n")


@dataclass(frozen=True)
class Pool:
    """Phantoms without the lesion class, to train the shipped weights on: no lesion's image, no lesion's caption."""

    images: NDArray[np.uint8]  # (N, 64, 64, 3)
    where: NDArray[np.bool_]  # (N, kinds of mark, 16, 16): the mark is seen in this square of 4x4 pixels
    facts: NDArray[np.bool_]  # (N, len(FACTS)): what the caption says
    captions: tuple[str, ...]
    generic: tuple[str, ...]  # captions that call every mark CLASS_NOUN


def draw_pool(count: int, seed: int) -> Pool:
    """Draw `count` phantoms, one in 50 without marks; image i depends on (seed, i) only."""
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    where = np.zeros((count, len(MARKS), CELLS, CELLS), np.bool_)
    scenes = []
    for index in track(range(count), description="drawing phantoms"):
        rng = np.random.default_rng([seed, index])
        skin = draw_skin(rng, random_tone(rng))
        scene = random_scene(rng, "other" if rng.random() < 0.6 else "normal", skin, POOL)
        images[index], seen = draw(rng, skin, scene.part, scene.marks)
        for kind, mask in seen.items():
            where[index, MARKS.index(kind)] = mask.reshape(CELLS, SIZE // CELLS, CELLS, SIZE // CELLS).max((1, 3)) > 0.3
        scenes.append(scene)
    facts = np.stack([scene.facts() for scene in scenes])
    generic = tuple(scene.caption(dict.fromkeys(MARKS, CLASS_NOUN)) for scene in scenes)
    return Pool(images, where, facts, tuple(scene.caption() for scene in scenes), generic)
