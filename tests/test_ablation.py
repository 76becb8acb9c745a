"""An ablation: what is read off curves against definitions, planted truths found, the page through the real command."""

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_pipeline import run

from synthvision.evaluation.ablation import Ablation, Arm, Composition, ablate, images_worth
from synthvision.evaluation.ablation_page import sentences, write_page
from synthvision.evaluation.comparison import ArmRuns, Truth
from synthvision.evaluation.ledger import Ledger
from synthvision.evaluation.metrics import Floats
from synthvision.stages.ablation import newest_reports, shared

N, SEEDS = 240, 5
POSITIVE = np.arange(N) < N // 2
TRUTHS = [Truth(POSITIVE, tuple(f"{seed} {n // 2}" for n in range(N))) for seed in range(SEEDS)]
GROWTH = {10: 0.5, 25: 0.8, 50: 1.1, 100: 1.4, 250: 1.8, 500: 2.1}  # real images -> how far apart the classes are


def runs(shift: float, name: int) -> ArmRuns:
    """Return runs in which both classes lie `shift` standard deviations from the threshold."""
    scores = []
    for seed in range(SEEDS):
        hard = np.random.default_rng(seed).normal(size=N)  # of the images, the same for all arms
        own = np.random.default_rng([seed, name]).normal(size=N)
        scores.append(np.where(POSITIVE, shift, -shift) + 0.8 * hard + 0.6 * own)
    return ArmRuns([score > 0 for score in scores], scores)


@pytest.fixture(scope="module")
def found() -> Ablation:
    arms = {f"real_{n}": Arm(Composition(n, 0, 0), runs(shift, n)) for n, shift in GROWTH.items()}
    arms["guides_only"] = Arm(Composition(0, 10, 0), runs(0.5, 1))
    arms["synthetic_only"] = Arm(Composition(0, 0, 500), runs(GROWTH[100], 2))
    arms["hopeless"] = Arm(Composition(0, 0, 500), runs(0.1, 3))
    arms["perfect"] = Arm(Composition(0, 10, 500), runs(4.0, 4))
    for ratio, shift in {0.4: 0.8, 2: 1.1, 4: 1.5, 20: 1.5}.items():
        arms[f"mixed_{ratio}"] = Arm(Composition(25, 0, round(25 * ratio), ratio), runs(shift, 100 + round(10 * ratio)))
    for n in (10, 50):
        arms[f"real_{n}_synthetic"] = Arm(Composition(n, 0, 500), runs(GROWTH[100], 200 + n))
    # As many images of each origin as an arm of a curve, and much better: results do not say which arms make a curve.
    arms["real_x"] = Arm(Composition(10, 0, 0), runs(4.0, 5))
    arms["real_x_synthetic"] = Arm(Composition(25, 0, 500), runs(4.0, 6))
    return ablate(arms, "guides_only", TRUTHS, range(SEEDS), draws=200)


def test_a_rising_curve_is_read_off_over_the_logarithm() -> None:
    numbers, curve = np.array([10.0, 100.0, 1000.0]), np.array([[0.6, 0.7, 0.9]])
    assert images_worth(numbers, curve, np.array([0.65]))[0] == pytest.approx(10**1.5)
    assert images_worth(numbers, curve, np.array([0.9]))[0] == pytest.approx(1000)
    assert images_worth(numbers, curve, np.array([0.6]))[0] == 10
    assert images_worth(numbers, curve, np.array([0.59]))[0] == -math.inf
    assert images_worth(numbers, curve, np.array([0.91]))[0] == math.inf


def test_the_number_read_off_reaches_the_target_and_less_does_not() -> None:
    rng = np.random.default_rng(0)
    numbers = np.array([10.0, 25.0, 50.0, 100.0, 250.0])
    curve, target = rng.uniform(0.5, 1, (200, 5)), rng.uniform(0.5, 1, 200)

    def monotone(values: Floats) -> Floats:
        """Isotonic regression by its min-max formula."""
        means = [[values[i : j + 1].mean() if i <= j else np.nan for j in range(5)] for i in range(5)]
        return np.array([max(min(means[i][j] for j in range(k, 5)) for i in range(k + 1)) for k in range(5)])

    for values, wanted, worth in zip(curve, target, images_worth(numbers, curve, target), strict=True):
        rising = monotone(values)
        if math.isfinite(worth):
            at = np.interp(np.log(worth), np.log(numbers), rising)
            below = np.interp(np.log(worth) - 1e-6, np.log(numbers), rising)
            assert at == pytest.approx(wanted, abs=1e-9)
            assert below < wanted or worth == numbers[0]
        else:
            assert (wanted > rising[-1]) if worth > 0 else (wanted < rising[0])


def test_a_planted_worth_lies_in_its_interval(found: Ablation) -> None:
    worth = {each.arm: each for each in found.worth}
    assert set(worth) == {"synthetic_only", "hopeless", "perfect"}
    planted = worth["synthetic_only"]
    assert planted.low < 100 < planted.high
    assert planted.low <= planted.images <= planted.high
    assert worth["hopeless"].high == -math.inf
    assert worth["perfect"].low == math.inf
    text = " ".join(sentences(found))
    assert "hopeless are worth fewer than 10 real ones" in text
    assert "perfect are worth more than 500 real ones (95% interval more than 500)" in text


def test_curves_and_saturation_are_of_the_arms_that_were_run(found: Ablation) -> None:
    assert [point.x for point in found.real_alone] == list(GROWTH)
    assert [point.x for point in found.ratios] == [0.4, 2, 4, 20]
    assert found.real_alone[0].arm == "real_10"
    beside = [(point.x, point.arm) for point in found.real_and_synthetic]
    assert beside == [(10, "real_10_synthetic"), (25, "real_x_synthetic"), (50, "real_50_synthetic")]
    assert [point.arm for point in found.ratios] == [f"mixed_{ratio}" for ratio in (0.4, 2, 4, 20)]
    assert found.saturation is not None
    assert (found.saturation.real, found.saturation.ratio, found.saturation.greatest) == (25, 4, 20)
    assert found.saturation.left.low < 0 < found.saturation.left.high
    rows = {row.arm: row for row in found.rows}
    assert found.real_alone[0].accuracy == rows["real_10"].accuracy
    assert [row.accuracy.value for row in found.rows] == sorted((r.accuracy.value for r in found.rows), reverse=True)


def test_the_page_has_every_arm_and_says_what_is_better(found: Ablation, tmp_path: Path) -> None:
    write_page(found, {"late": [3]}, "phantom", "synthvision stage=ablation", tmp_path / "ablation.html")
    page = (tmp_path / "ablation.html").read_text()
    assert all(row.arm in page for row in found.rows)
    assert "late was left out: it was not run with seed 3" in page
    assert "<svg" in page
    better = sentences(found)[0].partition("better than guides_only: ")[2]
    better = re.split(r"; |\. ", better)[0].split(", ")
    assert {"real_100", "real_500", "synthetic_only", "perfect"} <= set(better)
    assert set(better) == {d.arm for d in found.differences if d.p_adjusted < 0.05 and d.accuracy.value > 0}
    assert "hopeless" not in better
    with (tmp_path / "arms.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert float(rows["real_50"]["accuracy"]) == pytest.approx(
        next(row for row in found.rows if row.arm == "real_50").accuracy.value, abs=1e-6
    )
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {"arms.svg", "ratio.svg", "real-images.svg"}


def test_what_only_holm_s_correction_undoes_is_a_hint(found: Ablation) -> None:
    ps = {"real_500": (0.001, 0.01), "perfect": (0.02, 0.2), "hopeless": (0.03, 0.2)}
    planted = [replace(d, p=p, p_adjusted=q) for d in found.differences for p, q in [ps.get(d.arm, (0.5, 1.0))]]
    n = len(planted)
    assert sentences(replace(found, differences=tuple(planted)))[0] == (
        "By p < 0.05 after Holm's correction, better than guides_only: real_500. Each taken by itself, which is a hint "
        "and no finding, better than guides_only: perfect; worse than guides_only: hopeless. "
        f"{n - 3} of {n} arms cannot be told from guides_only."
    )


def test_arms_that_were_run_are_compared_without_opening_a_test_set(tmp_path: Path) -> None:
    tables = 'hydra.sweeper.tables=[{arm: real_some, arm.counts.real: "2,5"}, {arm: real_only}]'
    short = ("classifier.warmup_epochs=0", "classifier.epochs=1", "evaluate.cases=0")
    run(tmp_path, "hydra.mode=MULTIRUN", tables, *short)
    study = tmp_path / "studies" / "phantom"
    ledgers = {file: file.read_bytes() for file in study.glob("ledger/**/*.jsonl")}
    (opened,) = study.glob("ledger/*.jsonl")
    reasons = [opening.reason.partition(" (")[0] for opening in Ledger(study / "ledger").openings(opened.stem)]
    assert reasons == [f"planned: real_{name} with tiny, seed 0" for name in (2, 5, "only")]
    output = run(tmp_path, "stage=ablation", "evaluate.baseline=real_5")
    assert "By p < 0.05 after Holm's correction" in output
    assert {file: file.read_bytes() for file in study.glob("ledger/**/*.jsonl")} == ledgers
    content = json.loads(next(study.glob("ablation/*/ablation.json")).read_text())
    assert [(row["arm"], row["made_of"]["real"]) for row in sorted(content["rows"], key=lambda r: r["arm"])] == [
        ("real_2", 2), ("real_5", 5), ("real_only", 10)
    ]  # fmt: skip
    assert {row["made_of"]["opened"] for row in content["rows"]} == {"as planned"}
    assert {row["arm"]: row["made_of"]["shown"] for row in content["rows"]} == {
        "real_2": 1000, "real_5": 1000, "real_only": 40
    }  # fmt: skip
    reports = {(r := json.loads(f.read_text()))["arm"]: r for f in study.glob("report/*/report.json")}
    for row in content["rows"]:
        assert row["accuracy"]["value"] == reports[row["arm"]]["evaluation"]["estimates"]["accuracy"]["value"]
    assert content["worth"] == []


def report(study: Path, arm: str, seed: int, backbone: str = "tiny") -> None:
    folder = study / "report" / f"{arm}-{seed}-{backbone}"
    folder.mkdir(parents=True)
    content = {"arm": arm, "backbone": backbone, "seeds": {"seed": seed}}
    (folder / "report.json").write_text(json.dumps(content))


def test_seeds_are_those_that_most_arms_share(tmp_path: Path) -> None:
    of_arm = {"guides_only": (0, 10, 11), "real_only": (10, 11), "synthetic_only": (10, 11), "late": (10,)}
    for arm, seeds in of_arm.items():
        for seed in seeds:
            report(tmp_path, arm, seed)
    kept, left_out = shared(newest_reports(tmp_path), "guides_only")
    assert sorted(kept) == ["guides_only", "real_only", "synthetic_only"]
    assert {tuple(sorted(each)) for each in kept.values()} == {(10, 11)}
    assert left_out == {"late": [11]}
    with pytest.raises(ValueError, match=r"one of \['guides_only', 'late'.*it is 'mixed'.*arm=mixed"):
        shared(newest_reports(tmp_path), "mixed")


def test_an_arm_on_two_backbones_is_two_arms_and_the_others_keep_their_names(tmp_path: Path) -> None:
    for arm, backbone in (("guides_only", "sd15"), ("synthetic_only", "sd15"), ("synthetic_only", "sdxl")):
        report(tmp_path, arm, 1, backbone)
    assert set(newest_reports(tmp_path)) == {"guides_only", "synthetic_only (sd15)", "synthetic_only (sdxl)"}
