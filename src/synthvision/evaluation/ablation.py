"""What an ablation says: each arm with its intervals and beside a baseline, curves over numbers of images, and worth.

Every figure is a mean over seeds. Differences are tested as `comparison` says. Intervals of arms and of what is read
off curves are drawn over patients and seeds together, the same for all arms. Which arms make a curve follows from what
they were trained on, never from how they did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import isotonic_regression

from synthvision.evaluation.comparison import (
    ArmRuns,
    Difference,
    Truth,
    differences,
    draw_seeds,
    measure,
    people,
)
from synthvision.evaluation.intervals import LEVEL, Estimate, bootstrap
from synthvision.evaluation.metrics import Floats

DRAWS = 5_000
CURVE = 2  # points that make a curve


@dataclass(frozen=True)
class Composition:
    """How many training images of the disease an arm has, by origin; guides are real, and counted apart."""

    real: int
    guides: int
    synthetic: int
    ratio: float | None = None  # synthetic images for each other one, where the arm is made by one
    shown: int = 0  # images of all classes in all epochs of its training
    settings: str = ""  # of training, where they are unlike most arms'
    opened: str = ""  # how it came to open its test sets


@dataclass(frozen=True)
class Arm:
    """One arm: what it was trained on, and its run of each seed."""

    made_of: Composition
    runs: ArmRuns


@dataclass(frozen=True)
class Row:
    """One arm's results."""

    arm: str
    made_of: Composition
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate


@dataclass(frozen=True)
class Point:
    """One arm on a curve of accuracy."""

    x: float
    arm: str
    accuracy: Estimate


@dataclass(frozen=True)
class Saturation:
    """From which ratio on more synthetic images do not help.

    `ratio` is the least that no greater one beats by an interval without zero, each by itself; where it is the greatest
    that was run, saturation was not reached.
    """

    real: int  # images, the same at all ratios
    ratio: float
    greatest: float
    left: Estimate  # of accuracy: the best ratio above minus this one; NaN where there is none above


@dataclass(frozen=True)
class Worth:
    """As many real images alone give an arm's accuracy.

    -inf and inf: fewer than `least`, and more than `most`, which were run.
    """

    arm: str
    images: float
    low: float
    high: float
    least: int
    most: int


@dataclass(frozen=True)
class Ablation:
    """All that arms of one study say together."""

    baseline: str
    seeds: tuple[int, ...]
    patients: int
    rows: tuple[Row, ...]  # the most accurate first
    differences: tuple[Difference, ...]
    real_alone: tuple[Point, ...]  # over the number of real images
    real_and_synthetic: tuple[Point, ...]  # the same with synthetic ones
    ratios: tuple[Point, ...]  # over synthetic images per real one
    saturation: Saturation | None  # None where fewer than two ratios were run
    worth: tuple[Worth, ...]  # of arms without real images but guides


def ablate(
    arms: Mapping[str, Arm], baseline: str, truths: Sequence[Truth], seeds: Sequence[int], draws: int = DRAWS
) -> Ablation:
    """Compare arms that were run with the same seeds.

    Args:
        arms: by name, each with a run per seed.
        baseline: the arm that the others stand beside.
        truths: of each seed.
        seeds: in the order of the runs.
        draws: of the bootstrap.

    Raises:
        ValueError: the baseline is not among the arms, or an arm has other seeds or images.
    """
    runs = {name: arm.runs for name, arm in arms.items()}
    measured = measure(runs, truths, draws)
    found = differences(runs, baseline, truths, measured)
    means = {name: {m: (float(each.found[m].mean()), draw_seeds(each.drawn[m])) for m in each.found}
             for name, each in measured.items()}  # fmt: skip
    rows = [
        Row(name, arm.made_of, **{m: bootstrap(*mean, people(truths)) for m, mean in means[name].items()})
        for name, arm in arms.items()
    ]
    rows.sort(key=lambda row: (-row.accuracy.value, row.arm))
    accuracy = {name: of["accuracy"] for name, of in means.items()}
    alone = _over_real([row for row in rows if _is_real(row) and not row.made_of.synthetic])
    beside = _over_real([row for row in rows if _is_real(row) and row.made_of.synthetic and row.made_of.ratio is None])
    real, ratios = _ladder([row for row in rows if _is_real(row) and row.made_of.ratio is not None])
    return Ablation(
        baseline, tuple(seeds), people(truths), tuple(rows), found, alone, beside, ratios,
        _saturation(real, ratios, accuracy), _worths(rows, alone, accuracy),
    )  # fmt: skip


def _is_real(row: Row) -> bool:
    return row.made_of.real > 0 and not row.made_of.guides


def _over_real(rows: Sequence[Row]) -> tuple[Point, ...]:
    """Return a curve over the number of real images; of two arms with the same number the first by name is on it."""
    by_name = sorted(rows, key=lambda row: row.arm, reverse=True)
    points = {row.made_of.real: Point(float(row.made_of.real), row.arm, row.accuracy) for row in by_name}
    return tuple(points[x] for x in sorted(points))


def _ladder(rows: Sequence[Row]) -> tuple[int, tuple[Point, ...]]:
    """Return the number of real images that was run with most ratios, and these; no points where there are too few."""
    ladders: dict[int, list[Point]] = {}
    for row in rows:
        assert row.made_of.ratio is not None
        ladders.setdefault(row.made_of.real, []).append(Point(row.made_of.ratio, row.arm, row.accuracy))
    if not ladders:
        return 0, ()
    real = max(ladders, key=lambda number: (len(ladders[number]), -number))
    return real, tuple(sorted(ladders[real], key=lambda point: point.x)) if len(ladders[real]) >= CURVE else ()


def _saturation(real: int, ratios: Sequence[Point], accuracy: Mapping[str, tuple[float, Floats]]) -> Saturation | None:
    if not ratios:
        return None
    for place, point in enumerate(ratios):
        value, drawn = accuracy[point.arm]
        above = [bootstrap(accuracy[p.arm][0] - value, accuracy[p.arm][1] - drawn, 0) for p in ratios[place + 1 :]]
        if not any(gain.low > 0 for gain in above):
            none = Estimate(math.nan, math.nan, math.nan, 0, "")
            return Saturation(real, point.x, ratios[-1].x, max(above, key=lambda gain: gain.value, default=none))
    raise AssertionError("nothing is above the greatest ratio")


def _worths(
    rows: Sequence[Row], alone: Sequence[Point], accuracy: Mapping[str, tuple[float, Floats]]
) -> tuple[Worth, ...]:
    if len(alone) < CURVE:
        return ()
    numbers = np.array([point.x for point in alone])
    values, draws = (
        np.stack([np.atleast_1d(accuracy[point.arm][part]) for point in alone], axis=1) for part in (0, 1)
    )  # (1, points), (draws, points)
    found = []
    for row in (each for each in rows if each.made_of.synthetic and not each.made_of.real):
        value, drawn = accuracy[row.arm]
        point = float(images_worth(numbers, values, np.array([value]))[0])
        spread = np.sort(images_worth(numbers, draws, drawn))
        low, high = (float(spread[round(share * (len(spread) - 1))]) for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        found.append(Worth(row.arm, point, low, high, int(numbers[0]), int(numbers[-1])))
    return tuple(found)


def images_worth(numbers: Floats, curve: Floats, target: Floats) -> Floats:
    """Return how many real images alone reach an accuracy.

    The curve is made monotone (isotonic regression) and read off between its points over the logarithm of the number:
    the least number that reaches the target.

    Args:
        numbers: of real images, rising, (K,).
        curve: accuracy at each, (draws, K).
        target: the accuracy to be reached, (draws,).

    Returns:
        (draws,); -inf where the first point is above the target, inf where none reaches it.
    """
    logs = np.log(numbers)
    found = np.empty(len(target))
    for draw, (values, wanted) in enumerate(zip(curve, target, strict=True)):
        rising = isotonic_regression(values)
        reached = np.flatnonzero(rising >= wanted)
        if not len(reached):
            found[draw] = math.inf
        elif not reached[0]:
            found[draw] = numbers[0] if rising[0] == wanted else -math.inf
        else:
            after = reached[0]
            share = (wanted - rising[after - 1]) / (rising[after] - rising[after - 1])
            found[draw] = math.exp(logs[after - 1] + share * (logs[after] - logs[after - 1]))
    return found
