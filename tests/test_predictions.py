"""Predictions check themselves and survive a trip through their CSV bit for bit."""

import numpy as np
import pytest

from synthvision.predictions import Predictions

CLASSES = ("lesion", "normal", "other")


def make(n: int = 7, **changes: object) -> Predictions:
    probability = np.random.default_rng(0).dirichlet(np.ones(3), n)
    values: dict = {
        "image_id": tuple(f"image-{i}" for i in range(n)),
        "label": tuple(CLASSES[i % 3] for i in range(n)),
        "classes": CLASSES,
        "probability": probability,
    }
    return Predictions(**(values | changes))


@pytest.mark.parametrize("n", [0, 1, 50])
def test_a_csv_gives_back_the_same_bits(tmp_path, n):
    before = make(n)
    before.write(tmp_path / "predictions.csv")
    after = Predictions.read(tmp_path / "predictions.csv")
    assert (after.image_id, after.label, after.classes) == (before.image_id, before.label, before.classes)
    assert after.probability.tobytes() == before.probability.tobytes()
    assert after.probability.shape == (n, 3)
    assert len(after) == n


def test_names_with_commas_and_quotes_survive(tmp_path):
    classes = ('le,"sion', "normal ü", "other")
    before = make(3, classes=classes, label=(classes[0], classes[1], ""))
    before.write(tmp_path / "p.csv")
    after = Predictions.read(tmp_path / "p.csv")
    assert after.classes == classes
    assert after.label == before.label


def test_of_returns_the_column_of_a_class():
    predictions = make()
    np.testing.assert_array_equal(predictions.of("normal"), predictions.probability[:, 1])
    with pytest.raises(ValueError, match="'mole'"):
        predictions.of("mole")


def test_probabilities_are_a_read_only_copy():
    source = np.array([[0.5, 0.5]])
    predictions = Predictions(("a",), ("x",), ("x", "y"), source)
    source[:] = 9
    assert predictions.probability.tolist() == [[0.5, 0.5]]
    with pytest.raises(ValueError, match="read-only"):
        predictions.probability[0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": ("a", "a")}, "image_id must be unique"),
        ({"label": ("lesion",)}, "one per image"),
        ({"label": ("lesion", "mole")}, "mole"),
        ({"classes": ("lesion", "lesion", "other")}, "classes must be"),
        ({"probability": np.ones((2, 2)) / 2}, "of shape"),
        ({"probability": np.array([[0.2, 0.3, 0.5], [np.nan, 0.5, 0.5]])}, "image-1"),
        ({"probability": np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.6]])}, "sum to 1"),
        ({"probability": np.array([[-0.5, 1.0, 0.5], [0.2, 0.3, 0.5]])}, "image-0"),
    ],
)
def test_broken_rules_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make(2, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("# synthvision predictions 99\n", "predictions 99"),
        ("# synthvision predictions 1\n", "columns"),
        ("# synthvision predictions 1\nimage_id,p_a,p_b\nx,0.5,0.5\n", "columns"),
        ("# synthvision predictions 1\nimage_id,label,p_a,p_b\nx,a,0.5\n", r"\[3\]"),
    ],
)
def test_foreign_files_are_refused(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        Predictions.read(tmp_path / "p.csv")
