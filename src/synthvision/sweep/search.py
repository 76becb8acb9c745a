"""A search by Optuna: each trial is asked for, run as a job, and told; a training that falls behind is ended early.

Optuna itself, by ask and tell: its Hydra plugin wants an Optuna from before version 3 and fails with SQLAlchemy 2.
Trials lie in `optuna.db` in the sweep's folder, so a search that was killed goes on with what it has learnt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from synthvision import artifact
from synthvision.sweep.book import DONE, PRUNED, Job
from synthvision.sweep.composed import Pruned
from synthvision.sweep.plan import PlanError
from synthvision.sweep.progress import Goal
from synthvision.sweep.sweeper import GridSweeper, Started, opens_test_set

if TYPE_CHECKING:
    import optuna

AGAIN = "asked again"  # numbers of trials that failed, whose values stand in the queue once more
Space = dict[str, Any]  # key -> Optuna's distribution


@dataclass(frozen=True)
class Pruning:
    """Where trials are kept, and when one is ended early: its best value so far is behind the others' median."""

    storage: str
    study: str
    key: str  # of an epoch's metrics
    greatest: bool
    startup: int  # trials that are ended early by nothing
    warmup: int  # epochs likewise

    def open(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        """Return Optuna's study; it is made where there is none."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)  # the sweep tells how it stands
        return optuna.create_study(
            storage=self.storage,
            study_name=self.study,
            load_if_exists=True,
            direction="maximize" if self.greatest else "minimize",
            sampler=sampler or optuna.samplers.RandomSampler(),  # who reports draws nothing
            pruner=optuna.pruners.MedianPruner(self.startup, self.warmup),
        )


@dataclass(frozen=True)
class Report:
    """Tells Optuna of a trial's epochs, in the process that trains it."""

    pruning: Pruning
    trial: int  # Optuna's id

    def __call__(self, epoch: int, values: Mapping[str, float]) -> None:
        """Report an epoch.

        Raises:
            Pruned: the trial is not worth going on.
            ValueError: the metric is none of an epoch's.
        """
        import optuna

        if self.pruning.key not in values:
            known = sorted(f"best/{name}" for name in values if name.startswith("val/"))
            raise ValueError(f"hydra.sweeper.metric must be one of {known}; it is 'best/{self.pruning.key}'")
        trial = optuna.Trial(self.pruning.open(), self.trial)
        trial.report(values[self.pruning.key], epoch)
        if trial.should_prune():
            raise Pruned(f"behind the median of the others after epoch {epoch + 1}")


class OptunaSweeper(GridSweeper):
    """A search by Parzen estimators (TPE; Bergstra et al., NeurIPS 2011) with pruning below the median.

    Args:
        metric, greatest: of validation; what is searched for.
        trials: in all, those of earlier starts too.
        startup: trials drawn at random before the estimators choose, and before anything is pruned.
        warmup: epochs of a trial in which it is not pruned.
        seed: of the draws; with one job at a time the same seed asks for the same trials.
        params: key -> values: `a,b`, `interval(0, 1)`, `tag(log, interval(1e-5, 1e-2))`, `range(1, 9)`.
    """

    def __init__(
        self, metric: str, greatest: bool, trials: int, startup: int, warmup: int, seed: int, params: Any = None
    ) -> None:
        super().__init__(metric, greatest, params)
        self.trials, self.startup, self.warmup, self.seed = trials, startup, warmup, seed

    def _sweep(self, arguments: list[str]) -> None:
        params = [f"{key}={value}" for key, value in self.params.items()]
        parsed = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(params + arguments)
        last = {str(each.get_key_element()): each for each in parsed}  # the command line narrows the file
        space = {key: distribution(each) for key, each in last.items() if each.is_sweep_override()}
        fixed = [f"{key}={each.get_value_element_as_str()}" for key, each in last.items() if key not in space]
        if not space:
            raise ValueError("a search needs keys to choose: hydra.sweeper.params is empty, and no value has a choice")
        groups = [
            [f"{key}={each}" for each in drawn.choices] for key, drawn in space.items() if self.compose.is_group(key)
        ]
        for choices in product(*groups):
            self.compose([*choices, *fixed])  # files are read now; what is written into them later changes no trial
        ends = self.plan([[*values, *fixed] for values in corners(space)])
        if any(opens_test_set(job) for job in ends):
            raise PlanError(
                f"nothing was started: stage={ends[0].config['stage']['name']} opens the test set, by which a search "
                "must not choose; set stage=classify, which says what validation does"
            )
        identity = {"space": {key: str(each) for key, each in space.items()}, "of": ends[0].digest}
        digest = artifact.digest_of([identity, self.goal.metric, self.seed])[:16]
        with self.start(arguments, digest, ends[0].config["study"], self.trials) as started:
            pruning = Pruning(
                f"sqlite:///{started.book.folder / 'optuna.db'}", digest, self.goal.metric.removeprefix("best/"),
                self.goal.greatest, self.startup, self.warmup,
            )  # fmt: skip
            self._search(started, pruning, space, fixed)

    def _search(self, started: Started, pruning: Pruning, space: Space, fixed: Sequence[str]) -> None:
        study = pruning.open()
        _ask_again(study)
        started.progress.forgotten = _ended(study)
        while (left := self.trials - _ended(study)) > 0:
            asked = [self._ask(study, space, fixed) for _ in range(min(left, started.launcher.width))]
            hooks = {job.digest: Report(pruning, trial._trial_id) for trial, job in asked}
            started.work = replace(started.work, hooks=hooks)
            started.run([job for _, job in asked])
            for trial, job in asked:
                _tell(study, trial, started, job, self.goal)

    def _ask(self, study: optuna.Study, space: Space, fixed: Sequence[str]) -> tuple[optuna.Trial, Job]:
        """Return the next trial and its job."""
        import optuna

        # A sampler for each draw: its draws follow from the seed and the trial's number, killed or not.
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + len(study.get_trials(deepcopy=False)), n_startup_trials=self.startup
        )
        trial = study.ask(space)
        values = [f"{key}={value}" for key, value in trial.params.items()]
        (job,) = self.plan([[*values, *fixed]], [f"trial {trial.number} {_short(trial.params)}"])
        return trial, job


def distribution(override: Override) -> Any:
    """Return what Optuna draws a key's value from.

    Raises:
        ValueError: Optuna has no such draw.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        low, high, log = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    if isinstance(value, RangeSweep) and isinstance(value.range(), range):
        numbers = list(value.range())
        return IntDistribution(numbers[0], numbers[-1], step=int(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def corners(space: Space) -> list[list[str]]:
    """Return overrides with the ends of every range and each choice, so that what is wrong with one shows at once."""
    ends = {key: list(getattr(each, "choices", None) or (each.low, each.high)) for key, each in space.items()}
    return [
        [f"{key}={values[min(number, len(values) - 1)]}" for key, values in ends.items()]
        for number in range(max(len(values) for values in ends.values()))
    ]


def _short(params: Mapping[str, Any]) -> str:
    values = {key.rsplit(".", 1)[-1]: value for key, value in params.items()}
    rounded = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in values.items()}
    return " ".join(f"{key}={value}" for key, value in rounded.items())


def _ended(study: optuna.Study) -> int:
    """Return how many trials have ended; one that is asked again counts once."""
    ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    return ended - len(study.user_attrs.get(AGAIN, []))


def _ask_again(study: optuna.Study) -> None:
    """Put what an earlier start left running or failed into the queue once more."""
    from optuna.trial import TrialState

    again = set(study.user_attrs.get(AGAIN, []))
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.FAIL)):
        if trial.number not in again:
            if trial.state == TrialState.RUNNING:
                study.tell(trial.number, state=TrialState.FAIL)
            study.set_user_attr(AGAIN, sorted(again := again | {trial.number}))
            study.enqueue_trial(trial.params)


def _tell(study: optuna.Study, trial: optuna.Trial, started: Started, job: Job, goal: Goal) -> None:
    """Tell Optuna how a trial ended."""
    from optuna.trial import TrialState

    outcome = started.book.outcome(job.digest)
    value = goal.value(outcome)
    if outcome and outcome.state == DONE and value is not None:
        study.tell(trial, value)
    elif outcome and outcome.state == PRUNED:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, state=TrialState.FAIL)
