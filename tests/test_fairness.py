"""Gaps between subgroups: a planted one is found, a fair classifier is not accused, patients are not counted twice."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.proportion import confint_proportions_2indep

from synthvision.classification.model import ModelConfig, build
from synthvision.classification.predict import TrainedModel
from synthvision.classification.reference import embed_images
from synthvision.data.phantom import random_scene
from synthvision.data.skin import draw_skin
from synthvision.evaluation.fairness import effective, gaps

VIT = ModelConfig("vit_tiny_patch16_224", 64, 8, 128, 6, 4, weights="package:tiny_vit")
TONES = ("dark", "brown", "fair")


def study(seed: int, faint: str = "", drop: float = 0.0, patients: int = 60) -> dict:
    """Return calls on patients of three tones, three images each; lesions on `faint` skin are found less often."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(2 * patients), 3)
    tone = np.asarray(TONES)[rng.integers(3, size=2 * patients)][patient]
    truth = patient < patients
    own = rng.normal(0, 0.6, 2 * patients)[patient]  # a patient's images are alike
    chance = 1 / (1 + np.exp(-(2.2 + own - drop * (truth & (tone == faint)))))
    right = rng.random(len(truth)) < chance
    return {"columns": {"skin_tone": tone.tolist(), "body_part": rng.choice(["face", "arm"], len(truth)).tolist()},
            "truth": truth, "called": right == truth, "patients": [str(n) for n in patient]}  # fmt: skip


def test_a_planted_bias_is_found_in_its_subgroup_and_measure_only():
    named = []
    for seed in range(20):
        found = [gap for gap in gaps(**study(seed, "dark", drop=2.5)) if gap.found]
        named += [(gap.value, gap.measure) for gap in found if gap.difference.value < 0]
        assert all(gap.measure == "sensitivity" for gap in found if gap.column == "skin_tone")
    assert named.count(("dark", "sensitivity")) >= 18
    assert set(named) == {("dark", "sensitivity")}


def test_a_fair_classifier_is_seldom_accused():
    accused = sum(any(gap.found for gap in gaps(**study(seed))) for seed in range(100))
    assert accused <= 100 * 0.05 + 4  # at most one study in twenty, and chance


def test_without_patients_the_interval_is_newcombes():
    data = study(0, "dark", 1.0)
    data["patients"] = [str(n) for n in range(len(data["truth"]))]
    for gap in gaps(**data):
        cells = np.asarray(data["columns"][gap.column]) == gap.value
        among = data["truth"] if gap.measure == "sensitivity" else ~data["truth"]
        right = data["called"] == data["truth"]
        inside, outside = right[among & cells], right[among & ~cells]
        assert gap.here - gap.elsewhere == pytest.approx(inside.mean() - outside.mean())
        if gap.here < 1 and gap.elsewhere < 1 and effective(inside, np.arange(len(inside)))[1] == len(inside):
            low, high = confint_proportions_2indep(
                inside.sum(), len(inside), outside.sum(), len(outside), method="newcomb"
            )
            assert (gap.difference.low, gap.difference.high) == pytest.approx((low, high), abs=5e-3)


def test_images_that_repeat_each_other_count_as_one():
    rng = np.random.default_rng(0)
    once = rng.random(300) < 0.8
    patients = np.arange(300)
    _, single = effective(once, patients)
    _, fivefold = effective(np.repeat(once, 5), np.repeat(patients, 5))
    assert single == pytest.approx(300, rel=0.01)
    assert fivefold == pytest.approx(300, rel=0.01)
    assert effective(np.ones(50, dtype=bool), np.arange(50) // 2) == (1.0, 25.0)


def test_too_few_images_give_no_gap():
    data = study(0)
    data["columns"] = {"site": ["rare" if n < 6 else "usual" for n in range(len(data["truth"]))]}
    assert gaps(**data) == ()


def phantoms(rng: np.random.Generator, images: int, faint: str = "") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return drawn skin, whether it shows the lesion, and its tone; lesions on `faint` skin are nearly blurred away."""
    drawn, truth, tones = [], np.arange(images) % 2 == 0, []
    for lesion in truth:
        tones.append(str(TONES[rng.integers(3)]))
        picture = random_scene(rng, "lesion" if lesion else "normal", draw_skin(rng, tones[-1])).draw(rng)
        if lesion and tones[-1] == faint:
            smooth = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(6)))
            picture = (0.15 * picture + 0.85 * smooth).astype(np.uint8)
        drawn.append(picture)
    return np.stack(drawn), truth, tones


def test_lesions_drawn_fainter_on_one_tone_are_found_and_equal_ones_accuse_nobody() -> None:
    model = TrainedModel(build(VIT, 2).eval(), VIT, ("lesion", "normal"), 0.5, 0)
    rng = np.random.default_rng(1)
    images, truth, _ = phantoms(rng, 400)
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(
        embed_images(model, images), truth
    )
    found = {}
    for faint in ("", "dark"):
        images, truth, tones = phantoms(rng, 300, faint)
        called = fitted.predict(embed_images(model, images))
        cells = {"skin_tone": tones}
        found[faint] = [
            (gap.value, gap.measure)
            for gap in gaps(cells, truth, called, [str(n) for n in range(300)])
            if gap.found and gap.difference.value < 0
        ]
    assert found == {"": [], "dark": [("dark", "sensitivity")]}
