"""The phantom: deterministic, as varied as its captions say, and not to be won by a shortcut."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import maximum_filter
from sklearn.metrics import roc_auc_score

from synthvision.data.images import read_rgb
from synthvision.data.phantom import (
    CLASSES,
    FACTS,
    PhantomConfig,
    Scene,
    draw_pool,
    random_benign,
    random_scene,
    random_tone,
    write_phantoms,
)
from synthvision.data.skin import MARKS, PARTS, TONES, Mark, Skin, draw, draw_skin, individual_typology_angle
from synthvision.evaluation.probes import metadata_probe, probe

IMAGES = 200  # per class


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("phantoms")
    write_phantoms(path, PhantomConfig(dict.fromkeys(CLASSES, IMAGES), guides=6))
    return path


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "phantoms.csv").open() as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def images(folder: Path, rows: list[dict[str, str]]) -> NDArray[np.uint8]:
    return np.stack([read_rgb(folder / row["file"]) for row in rows])


def test_same_config_gives_same_bytes(tmp_path: Path) -> None:
    config = PhantomConfig({"lesion": 3, "normal": 2}, guides=2, seed=4)
    for name in ("a", "b"):
        write_phantoms(tmp_path / name, config)
    first, second = (sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert len(first) == 5 + 1 + 2 * 2


def test_more_images_keep_the_first_ones(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "few", PhantomConfig({"lesion": 3}, guides=0))
    write_phantoms(tmp_path / "more", PhantomConfig({"lesion": 6}, guides=0))
    for file in (tmp_path / "few" / "images").iterdir():
        assert file.read_bytes() == (tmp_path / "more" / "images" / file.name).read_bytes()


def test_patients_have_several_images_of_one_class_and_tone(rows: list[dict[str, str]]) -> None:
    patients: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        patients.setdefault(row["patient"], set()).add((row["label"], row["skin_tone"]))
    assert all(len(kinds) == 1 for kinds in patients.values())
    assert len(rows) / len(patients) > 1.5


def test_tones_and_parts_are_all_there(rows: list[dict[str, str]]) -> None:
    assert {row["skin_tone"] for row in rows} == set(TONES)
    assert {row["body_part"] for row in rows} == set(PARTS)


def test_guides_have_captions_with_the_identifier(folder: Path) -> None:
    guides = sorted((folder / "guides").glob("*.png"))
    assert len(guides) == 6
    assert all("sks" in guide.with_suffix(".txt").read_text() for guide in guides)


@pytest.mark.parametrize("tone", TONES)
def test_measured_typology_angle_follows_the_tone(tone: str) -> None:
    rng = np.random.default_rng(0)
    low, high = TONES[tone]
    drawn = []
    for _ in range(60):
        skin = draw_skin(rng, tone)
        drawn.append((skin.ita, individual_typology_angle(draw(rng, skin, "back", ())[0])))
    asked, measured = np.array(drawn).T
    assert low <= asked.min()
    assert asked.max() <= high
    assert np.abs(np.median(measured - asked)) < 6  # vignette and exposure move single pictures, not the scale
    assert np.corrcoef(asked, measured)[0, 1] > 0.7


def test_other_always_shows_a_benign_mark_and_never_a_lesion() -> None:
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, "other", draw_skin(rng, "fair")) for _ in range(200)]
    assert all(scene.marks for scene in scenes)
    assert {mark.kind for scene in scenes for mark in scene.marks} == set(MARKS)


def test_a_lesion_changes_pixels_where_it_says() -> None:
    skin = Skin("brown", 20.0, 10.0, 0.0)
    marks = (Mark("lesion", "few", "large", "scattered", "mature"),)
    with_lesion, where = draw(np.random.default_rng(3), skin, "back", marks)
    without, nowhere = draw(np.random.default_rng(3), skin, "back", ())
    change = np.abs(with_lesion.astype(int) - without.astype(int)).max(-1)
    assert not nowhere
    assert change[where["lesion"] > 0.9].mean() > 3 * change[where["lesion"] < 0.01].mean()


def test_caption_names_what_is_seen() -> None:
    skin = Skin("dark", -10.0, 10.0, 0.5)
    scene = Scene(
        skin,
        "arm",
        (Mark("lesion", "many", "medium", "clustered", "mature"), Mark("moles", "one", "small", "scattered")),
    )
    assert scene.caption({"lesion": "sks spots"}) == (
        "photo of dark skin on the arm, many clustered mature sks spots and one small moles"
    )
    assert Scene(skin, "arm", ()).caption() == "photo of dark skin on the arm, no marks"


def test_pool_for_the_base_never_mentions_the_lesion() -> None:
    pool = draw_pool(80, seed=1)
    text = " ".join([*pool.captions, *pool.generic])
    assert "lesion" not in text
    assert "sks" not in text
    assert pool.where.shape == (80, len(MARKS), 16, 16)
    assert pool.where.any((1, 2, 3)).mean() > 0.5
    assert all(kind not in caption for kind in MARKS for caption in pool.generic)
    assert (draw_pool(5, seed=1).images == pool.images[:5]).all()  # image i does not depend on how many are drawn


def test_facts_are_what_the_caption_says() -> None:
    skin = Skin("dark", -10.0, 10.0, 0.5)
    marks = (Mark("rings", "many", "large", "clustered"), Mark("moles", "one", "medium", "scattered"))
    facts = Scene(skin, "arm", marks).facts()
    said = {fact for fact, holds in zip(FACTS, facts, strict=True) if holds}
    assert said == {
        *("dark", "arm", "rings", "many rings", "large rings", "clustered rings"),
        *("moles", "one moles", "medium moles"),
    }


def test_marks_on_top_lie_on_those_of_the_group_before() -> None:
    skin = Skin("brown", 20.0, 10.0, 0.0)
    below, above = Mark("moles", "few", "small", "scattered"), Mark("rings", "few", "large", "on top")
    shares: dict[str, list[float]] = {"on top": [], "scattered": []}
    for seed in range(5):
        for arrangement, share in shares.items():
            marks = (below, replace(above, arrangement=arrangement))
            _, where = draw(np.random.default_rng(seed), skin, "back", marks)
            reached = maximum_filter(where["rings"], 9)  # a ring's middle is empty
            share.append(float(reached[where["moles"] > 0.5].mean()))
    assert min(shares["on top"]) > 0.85
    assert np.mean(shares["scattered"]) < 0.6
    said = Scene(skin, "back", (below, above)).caption()
    assert said.endswith("few small scattered moles and few large rings on top")


def test_classes_show_about_as_much(images: NDArray[np.uint8], rows: list[dict[str, str]]) -> None:
    """How much there is to see, as the mean deviation from the surroundings, does not tell lesion from normal."""
    chosen = [index for index, row in enumerate(rows) if row["label"] in ("lesion", "normal")]
    blurred = np.stack([np.asarray(Image.fromarray(images[i]).filter(ImageFilter.GaussianBlur(4))) for i in chosen])
    amount = np.abs(images[chosen].astype(float) - blurred).mean((1, 2, 3))
    target = np.array([rows[index]["label"] == "lesion" for index in chosen])
    assert roc_auc_score(target, amount) < 0.65


@pytest.mark.parametrize("other", ["normal", "other"])
def test_no_shortcut_wins(other: str, folder: Path, rows: list[dict[str, str]], images: NDArray[np.uint8]) -> None:
    """Mean colour, file size and every metadata column stay below AUC 0.65 (cross-validated by patient)."""
    chosen = [index for index, row in enumerate(rows) if row["label"] in ("lesion", other)]
    target = np.array([rows[index]["label"] == "lesion" for index in chosen])
    patients = [rows[index]["patient"] for index in chosen]
    mean = images[chosen].reshape(len(chosen), -1, 3).mean(1)
    columns: dict[str, list[str | float]] = {
        "file size": [float((folder / rows[index]["file"]).stat().st_size) for index in chosen],
        "skin tone": [rows[index]["skin_tone"] for index in chosen],
        "body part": [rows[index]["body_part"] for index in chosen],
    }
    probes = [
        probe("colour", mean, target, patients, "lesions from the rest", "class"),
        metadata_probe(columns, target, patients, "lesions from the rest", "class"),
    ]
    scores = {(each.name, kind): auc.value for each in probes for kind, auc in each.models.items()}
    assert max(scores.values()) < 0.65, scores


def test_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="wart"):
        PhantomConfig({"wart": 3})


def test_random_draws_cover_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    assert {random_benign(rng).kind for _ in range(200)} == set(MARKS)
    assert {random_tone(rng) for _ in range(50)} == set(TONES)
