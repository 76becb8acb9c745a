"""Metrics against scikit-learn, against the definition, and against the two papers' tables."""

import numpy as np
import pytest
from sklearn import metrics as sk

from synthvision.evaluation import metrics
from synthvision.evaluation.evaluate import Choices, evaluate
from synthvision.manifest import Manifest, Record
from synthvision.predictions import Predictions

HPV = np.array([[66.0, 4.0], [0.0, 70.0]])
HPV_TABLE = """\
              precision    recall  f1-score   support

         HPV       1.00      0.94      0.97        70
      Normal       0.95      1.00      0.97        70

    accuracy                           0.97       140
   macro avg       0.97      0.97      0.97       140
weighted avg       0.97      0.97      0.97       140
"""
# The Mpox paper prints 96/98/96 of 100 and precisions of 0.96, 0.97, 0.97: only columns of 100, 101 and 99 give those.
MPOX = np.array([[96.0, 2.0, 2.0], [1.0, 98.0, 1.0], [3.0, 1.0, 96.0]])
MPOX_TABLE = """\
              precision    recall  f1-score   support

       M-pox       0.96      0.96      0.96       100
      Normal       0.97      0.98      0.98       100
       Other       0.97      0.96      0.96       100

    accuracy                           0.97       300
   macro avg       0.97      0.97      0.97       300
weighted avg       0.97      0.97      0.97       300
"""


def labels(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return truth and decision of each image of a confusion matrix."""
    cells = [(row, column) for (row, column), count in np.ndenumerate(matrix) for _ in range(int(count))]
    truth, decided = np.array(cells).T
    return truth, decided


@pytest.mark.parametrize(
    ("matrix", "classes", "table"),
    [(HPV, ("HPV", "Normal"), HPV_TABLE), (MPOX, ("M-pox", "Normal", "Other"), MPOX_TABLE)],
)
def test_the_papers_counts_give_the_papers_tables(matrix, classes, table):
    text = metrics.report_text(metrics.classification_report(matrix, classes))
    assert text == table
    truth, decided = labels(matrix)
    assert text == sk.classification_report(truth, decided, target_names=classes)


def test_the_hpv_papers_sensitivity_and_specificity():
    assert metrics.sensitivity(HPV) == pytest.approx(66 / 70)
    assert metrics.specificity(HPV) == 1
    assert metrics.ppv(HPV) == 1
    assert metrics.npv(HPV) == pytest.approx(70 / 74)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_measures_equal_those_of_scikit_learn(classes, seed):
    rng = np.random.default_rng([seed, classes])
    truth = np.concatenate([np.arange(classes), rng.integers(0, classes, 60)])
    decided = np.concatenate([np.arange(classes), np.where(rng.random(60) < 0.7, truth[classes:], 0)])
    weights = rng.integers(1, 4, len(truth)).astype(float)
    matrix = metrics.confusion_matrix(truth, decided, classes, weights)
    given = {"sample_weight": weights}
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(truth, decided, **given))
    assert metrics.accuracy(matrix) == pytest.approx(sk.accuracy_score(truth, decided, **given))
    assert metrics.balanced_accuracy(matrix) == pytest.approx(sk.balanced_accuracy_score(truth, decided, **given))
    assert metrics.macro_f1(matrix) == pytest.approx(sk.f1_score(truth, decided, average="macro", **given))
    assert metrics.mcc(matrix) == pytest.approx(sk.matthews_corrcoef(truth, decided, **given))
    for k in range(classes):
        one, called = truth == k, decided == k
        assert metrics.sensitivity(matrix, k) == pytest.approx(sk.recall_score(one, called, **given))
        assert metrics.specificity(matrix, k) == pytest.approx(sk.recall_score(~one, ~called, **given))
        assert metrics.ppv(matrix, k) == pytest.approx(sk.precision_score(one, called, **given))
        assert metrics.npv(matrix, k) == pytest.approx(sk.precision_score(~one, ~called, **given))
        assert metrics.f1(matrix, k) == pytest.approx(sk.f1_score(one, called, **given))


@pytest.mark.parametrize("decimals", [1, 6])  # 1: many ties
def test_areas_and_curves_equal_those_of_scikit_learn(decimals):
    rng = np.random.default_rng(decimals)
    truth = rng.random(200) < 0.3
    score = np.round(rng.normal(truth * 1.0, 1.0), decimals)
    weights = rng.integers(0, 3, 200).astype(float)
    given = {"sample_weight": weights}
    assert metrics.roc_auc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score))
    assert metrics.roc_auc(truth, score, weights) == pytest.approx(sk.roc_auc_score(truth, score, **given))
    assert metrics.average_precision(truth, score, weights) == pytest.approx(
        sk.average_precision_score(truth, score, **given)
    )
    curve = metrics.roc_curve(truth, score)
    x, y, _ = sk.roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose([curve.x, curve.y], [x, y])
    curve = metrics.precision_recall_curve(truth, score)
    precision, recall, _ = sk.precision_recall_curve(truth, score)
    np.testing.assert_allclose([curve.x[1:], curve.y[1:]], [recall[:-1][::-1], precision[:-1][::-1]])


def test_many_weightings_at_once_equal_one_after_the_other():
    rng = np.random.default_rng(0)
    truth, score, weights = rng.random(50) < 0.5, rng.random(50), rng.integers(0, 3, (7, 50)).astype(float)
    for measure in (metrics.roc_auc, metrics.average_precision):
        together = measure(truth, score, weights)
        assert together.shape == (7,)
        np.testing.assert_allclose(together, [measure(truth, score, row) for row in weights])
    decided = (score > 0.5).astype(np.int64)
    matrices = metrics.confusion_matrix(truth.astype(np.int64), decided, 2, weights)
    np.testing.assert_allclose(metrics.mcc(matrices), [metrics.mcc(matrix) for matrix in matrices])


def test_what_is_not_defined_is_nan():
    nobody_called = np.array([[0.0, 5.0], [0.0, 5.0]])
    assert np.isnan(metrics.ppv(nobody_called))
    assert metrics.f1(nobody_called) == 0
    assert np.isnan(metrics.mcc(nobody_called))
    assert np.isnan(metrics.roc_auc(np.ones(3, dtype=bool), np.arange(3.0)))


def test_a_threshold_decides_for_the_positive_class_and_the_likeliest_of_the_others_else():
    probability = np.array([[0.4, 0.35, 0.25], [0.4, 0.25, 0.35], [0.5, 0.3, 0.2]])
    assert metrics.decide(probability, 0, 0.5).tolist() == [1, 2, 0]
    assert metrics.decide(probability, 0, 0.4).tolist() == [0, 0, 0]
    assert probability[0, 0] == 0.4  # the argument is left alone


def study(matrix: np.ndarray, classes: tuple[str, ...], per_patient: int = 2) -> tuple[Predictions, Manifest]:
    """Return predictions and test set that give a confusion matrix."""
    truth, decided = labels(matrix)
    rows = [Record(f"i{n}", f"i{n}.png", "0" * 64, classes[t], "real", "test", patient=f"{t}-{n // per_patient}",
                   skin_tone=("fair", "dark")[n % 2]) for n, t in enumerate(truth)]  # fmt: skip
    probability = np.full((len(truth), len(classes)), 0.1 / (len(classes) - 1))
    probability[np.arange(len(truth)), decided] = 0.9
    names = tuple(row.image_id for row in rows)
    return Predictions(names, tuple(row.label for row in rows), classes, probability), Manifest(tuple(rows), "")


def test_evaluate_gives_the_hpv_papers_numbers_with_their_intervals():
    result = evaluate(*study(HPV, ("HPV", "Normal")), threshold=0.5, positive="HPV", draws=200)
    assert result.confusion == ((66, 4), (0, 70))
    found, cleared = result.estimates["sensitivity"], result.estimates["specificity"]
    assert [round(100 * value, 1) for value in (found.value, found.low, found.high)] == [94.3, 86.2, 97.8]
    assert [round(100 * value, 1) for value in (cleared.value, cleared.low, cleared.high)] == [100, 94.8, 100]
    assert result.patients == 70
    assert result.prevalence == 0.5
    assert metrics.report_text(result.report) == HPV_TABLE
    assert result == evaluate(*study(HPV, ("HPV", "Normal")), threshold=0.5, positive="HPV", draws=200)


def test_evaluate_gives_the_mpox_papers_accuracy_and_each_class_against_the_rest():
    result = evaluate(*study(MPOX, ("M-pox", "Normal", "Other")), threshold=0.5, positive="M-pox", draws=200)
    accuracy = result.estimates["accuracy"]
    assert [round(100 * value, 1) for value in (accuracy.low, accuracy.high)] == [94.0, 98.2]
    assert [round(each.estimates["sensitivity"].value, 2) for each in result.per_class] == [0.96, 0.98, 0.96]
    assert metrics.report_text(result.report) == MPOX_TABLE


def test_evaluate_does_not_mind_the_order_of_the_predictions():
    predictions, manifest = study(HPV, ("HPV", "Normal"))
    turned = Predictions(
        predictions.image_id[::-1], predictions.label[::-1], predictions.classes, predictions.probability[::-1]
    )
    first, second = (evaluate(each, manifest, 0.5, "HPV", draws=50) for each in (predictions, turned))
    assert first.confusion == second.confusion
    assert first.subgroups == second.subgroups


def test_three_classes_have_macro_measures_and_a_temperature_changes_no_decision():
    given = study(MPOX, ("M-pox", "Normal", "Other"))
    cold = evaluate(*given, threshold=0.5, positive="M-pox", draws=200)
    warm = evaluate(*given, threshold=0.5, positive="M-pox", draws=200, choices=Choices(temperature=3.0))
    sensitivities = [each.estimates["sensitivity"].value for each in cold.per_class]
    assert cold.macro["sensitivity"].value == pytest.approx(np.mean(sensitivities))
    assert cold.macro["auc"].low <= cold.macro["auc"].value <= cold.macro["auc"].high
    assert cold.macro["f1"].value == cold.estimates["macro_f1"].value
    assert (warm.confusion, warm.estimates) == (cold.confusion, cold.estimates)
    assert warm.reliability[0] == cold.reliability[0]
    assert warm.reliability[1] != cold.reliability[1]


def test_any_column_and_pairs_of_columns_are_subgroups():
    predictions, manifest = study(HPV, ("HPV", "Normal"))
    sited = manifest.with_values(lambda r: {"body_part": "arm" if int(r.image_id[1:]) % 3 else "face"})
    result = evaluate(predictions, sited, 0.5, "HPV", draws=50, choices=Choices(subgroups=("skin_tone", "body_part")))
    assert {group.value for group in result.subgroups if group.column == "skin_tone and body_part"} == {
        "fair, arm", "fair, face", "dark, arm", "dark, face"
    }  # fmt: skip
    alone = evaluate(predictions, sited, 0.5, "HPV", draws=50, choices=Choices(subgroups=("set",), minimum=80))
    assert [group.sensitivity for group in alone.subgroups] == [None]
    assert alone.gaps == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prevalences": [0.0]}, r"evaluate\.prevalences must lie between 0 and 1.*there is 0\.0"),
        ({"prevalences": [1.0]}, r"evaluate\.prevalences must lie between 0 and 1.*there is 1\.0"),
        ({"subgroups": ["tone"]}, r"evaluate\.subgroups must be columns of the manifest.*\['tone'\]"),
        ({"minimum": 0}, r"evaluate\.minimum must be at least 1 image; it is 0"),
    ],
)
def test_choices_that_cannot_be_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Choices(**change)


def test_evaluate_refuses_what_does_not_fit():
    predictions, manifest = study(HPV, ("HPV", "Normal"))
    with pytest.raises(ValueError, match=r"each test image once.*i139"):
        evaluate(predictions, manifest.where(lambda record: record.image_id != "i139"), 0.5, "HPV")
    with pytest.raises(ValueError, match=r"threshold must lie in \[0, 1\]; it is 1.5"):
        evaluate(predictions, manifest, 1.5, "HPV")
    with pytest.raises(ValueError, match="positive must be one of the classes"):
        evaluate(predictions, manifest, 0.5, "Mpox")
    with pytest.raises(ValueError, match=r"labels of predictions and manifest must agree.*i0"):
        evaluate(predictions, manifest.with_values(lambda _: {"label": "Normal"}), 0.5, "HPV")
    with pytest.raises(ValueError, match="real images only"):
        evaluate(predictions, manifest.with_values(lambda _: {"origin": "synthetic", "split": ""}), 0.5, "HPV")
