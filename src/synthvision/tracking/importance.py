"""How much each hyperparameter matters in a sweep, by permutation in a random forest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from synthvision.tracking.rows import number

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sklearn.ensemble import RandomForestRegressor

LEAST_ROWS = 16  # with fewer, a forest's importances are noise
REPEATS = 20
TREES = 100
FOLDS = 4


@dataclass(frozen=True)
class Importance:
    """What shuffling a parameter costs, on rows that the forest has not seen."""

    values: Mapping[str, tuple[float, float]]  # name -> mean fall of R², and its standard deviation
    r2: float  # of the forest on rows it has not seen; near or below 0 its importances say nothing
    n: int  # rows


def importance(columns: Mapping[str, Sequence[str]], result: Sequence[float], groups: Sequence[str]) -> Importance:
    """Measure each parameter's importance for a result.

    Args:
        columns: name -> a value per row.
        result: a number per row.
        groups: of rows that are no independent trials (read off one training); they share a fold.

    Raises:
        ValueError: there are too few rows.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold

    if len(result) < LEAST_ROWS or len(set(groups)) < FOLDS:
        raise ValueError(
            f"importance needs at least {LEAST_ROWS} results of {FOLDS} trainings; there are {len(result)} of "
            f"{len(set(groups))}"
        )
    x, y = np.column_stack([_codes(values) for values in columns.values()]), np.asarray(result, float)
    falls, predicted = [], np.empty_like(y)
    for fold, (train, test) in enumerate(GroupKFold(FOLDS).split(x, y, groups)):
        forest = RandomForestRegressor(TREES, random_state=fold, n_jobs=1).fit(x[train], y[train])
        predicted[test] = forest.predict(x[test])
        rises = _rises(forest, x[test], y[test], np.random.default_rng(fold))
        # As a share of the variance of all rows: folds of few rows have no R² of their own.
        falls.append(rises / max(float(np.var(y)), 1e-12))
    each = np.concatenate(falls, axis=1)  # (parameters, folds x repeats)
    values = {name: (float(row.mean()), float(row.std())) for name, row in zip(columns, each, strict=True)}
    ordered = dict(sorted(values.items(), key=lambda item: -item[1][0]))
    return Importance(ordered, float(r2_score(y, predicted)), len(y))


def _rises(
    forest: RandomForestRegressor, x: NDArray[np.float64], y: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return how much the mean squared error rises by shuffling: (parameters, REPEATS)."""
    n, parameters = x.shape
    shuffled = np.broadcast_to(x, (parameters, REPEATS, n, parameters)).copy()
    for index in range(parameters):
        for repeat in range(REPEATS):
            shuffled[index, repeat, :, index] = rng.permutation(x[:, index])
    answers = forest.predict(shuffled.reshape(-1, parameters)).reshape(parameters, REPEATS, n)
    error = float(np.mean((forest.predict(x) - y) ** 2))
    rises: NDArray[np.float64] = np.mean((answers - y) ** 2, axis=2) - error
    return rises


def _codes(values: Sequence[str]) -> list[float]:
    numbers = [number(value) for value in values]
    if all(each is not None for each in numbers):
        return [float(each) for each in numbers if each is not None]
    words = sorted(set(values))
    return [float(words.index(value)) for value in values]
