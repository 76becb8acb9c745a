"""Hydra looks for sweepers in this namespace only; these are `synthvision.sweep`'s."""

from synthvision.sweep import search, sweeper


class GridSweeper(sweeper.GridSweeper):
    """Chosen by `conf/hydra/sweeper/grid.yaml`."""


class OptunaSweeper(search.OptunaSweeper):
    """Chosen by `conf/hydra/sweeper/optuna.yaml`."""
