"""What a search draws from, and what it does with trials that an earlier start left behind."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from synthvision.sweep.composed import Pruned
from synthvision.sweep.search import Pruning, Report, _ask_again, _ended, corners, distribution

LR = FloatDistribution(1e-5, 1e-2, log=True)


@pytest.fixture
def pruning(tmp_path: Path) -> Pruning:
    return Pruning(f"sqlite:///{tmp_path / 'optuna.db'}", "x", "val/loss", greatest=False, startup=2, warmup=1)


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("classifier.lr=tag(log, interval(1e-5, 1e-2))", LR),
        ("classifier.label_smoothing=interval(0, 0.5)", FloatDistribution(0.0, 0.5)),
        ("classifier.epochs=int(interval(2, 8))", IntDistribution(2, 8)),
        ("classifier.epochs=range(2, 9, 3)", IntDistribution(2, 8, step=3)),
        ("optimizer=adam,rmsprop", CategoricalDistribution(["adam", "rmsprop"])),
        ("classifier.lr=1e-3,1e-4", CategoricalDistribution(["0.001", "0.0001"])),
    ],
)
def test_what_is_written_is_what_is_drawn_from(text: str, drawn: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([text])
    assert distribution(override) == drawn


def test_the_ends_of_all_ranges_are_checked() -> None:
    space = {"lr": LR, "optimizer": CategoricalDistribution(["adam", "adamw", "rmsprop"])}
    assert corners(space) == [
        ["lr=1e-05", "optimizer=adam"],
        ["lr=0.01", "optimizer=adamw"],
        ["lr=0.01", "optimizer=rmsprop"],
    ]


def test_what_was_running_or_failed_is_asked_again_once(pruning: Pruning) -> None:
    study = pruning.open()
    done, failed, running = (study.ask({"lr": LR}) for _ in range(3))
    study.tell(done, 0.5)
    study.tell(failed, state=TrialState.FAIL)
    for _ in range(2):  # a second start before either ran changes nothing
        study = pruning.open()
        _ask_again(study)
        assert _ended(study) == 1
    again = [study.ask({"lr": LR}) for _ in range(2)]
    assert [trial.params for trial in again] == [failed.params, running.params]
    for trial in again:
        study.tell(trial, 0.4)
    assert _ended(study) == 3


def test_a_trial_behind_the_median_ends(pruning: Pruning) -> None:
    study = pruning.open()

    def train(losses: list[float]) -> optuna.Trial:
        trial = study.ask({"lr": LR})
        for epoch, loss in enumerate(losses):
            Report(pruning, trial._trial_id)(epoch, {"val/loss": loss})
        study.tell(trial, min(losses))
        return trial

    train([0.9, 0.8, 0.7])
    train([0.9, 0.6, 0.5])
    train([2.0, 0.7, 0.6])  # its first epoch is warm-up
    with pytest.raises(Pruned, match="behind the median of the others after epoch 2"):
        train([0.95, 0.9, 0.1])
    with pytest.raises(ValueError, match=r"hydra\.sweeper\.metric must be one of \['best/val/auroc'\]"):
        Report(pruning, study.ask({"lr": LR})._trial_id)(0, {"val/auroc": 0.5, "train/loss": 0.1})
