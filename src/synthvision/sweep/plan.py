"""All jobs of a sweep, composed and made before the first one starts: a mistake in the last is found at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synthvision import artifact
from synthvision.sweep.book import Job
from synthvision.sweep.composed import make, study_of, text_of

if TYPE_CHECKING:
    from synthvision.study import Study

Compose = Callable[[Sequence[str]], DictConfig]  # a job's overrides -> its config, with Hydra's own part
ASIDE = ("tracking", "debug")  # where results are kept and how errors are shown does not make another job of it
SHOWN = 40  # characters of a value in a job's name


class PlanError(ValueError):
    """Jobs cannot be run; the message lists every mistake with the jobs that have it."""


def plan(
    of_each: Sequence[Sequence[str]], compose: Compose, also: Sequence[str], names: Sequence[str] | None = None
) -> list[Job]:
    """Compose and make every job.

    Args:
        of_each: the overrides of each job.
        compose: Hydra's.
        also: overrides that a job's command needs beside its own to run it alone.
        names: of the jobs; None names them by what varies.

    Raises:
        PlanError: some cannot be composed or made, want a stage that is no work, or belong to another study.
    """
    mistakes = _Mistakes(len(of_each))
    made: list[tuple[Sequence[str], dict[str, Any], Study]] = []
    names = names or _names(of_each)
    for overrides, name in zip(of_each, names, strict=True):
        with mistakes.of(name):
            config = compose(overrides)
            values = {str(key): resolved(config, str(key)) for key in config if key != "hydra"}
            made.append((overrides, values, _checked(config)))
    studies = sorted({study.study for *_, study in made})
    if len(studies) > 1:
        rule = f"the jobs of a sweep must be of one study, whose experiment holds their runs; they are of {studies}"
        mistakes.found[f"{rule}. Start a sweep for each"] = []
    mistakes.check()
    inputs, jobs = _Inputs(), []  # read last: images may take minutes
    for (overrides, values, study), name in zip(made, names, strict=True):
        with mistakes.of(name):
            jobs.append(Job(_identity(values, inputs.of(study, values)), name, [*also, *overrides], _asked(values)))
    mistakes.check()
    return list({job.digest: job for job in jobs}.values())  # the same job asked for twice is done once


def _checked(config: DictConfig) -> Study:
    """Make all dataclasses of a job's config, and look for what it names.

    Raises:
        ValueError: a value breaks its rule.
        FileNotFoundError: there are no weights where it says.
    """
    from synthvision.pipeline import check, is_work

    study = study_of(config)
    make(config, "tracking")
    if not is_work(config.stage.name):
        raise ValueError(f"stage={config.stage.name} cannot be swept: it makes nothing of a study")
    check(study, config.stage.name)
    return study


def resolved(config: DictConfig, key: str) -> Any:
    """Return a key's value in plain values, with all that it refers to filled in."""
    value = config[key]
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _identity(config: Mapping[str, Any], inputs: str) -> str:
    return artifact.digest_of({"config": _asked(config), "inputs": inputs})[:16]


def _asked(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ASIDE}


class _Mistakes:
    """What is wrong with which jobs, of so many: message -> names."""

    def __init__(self, among: int) -> None:
        self.found: dict[str, list[str]] = {}
        self._among = among

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Note a mistake of a job that the block finds."""
        try:
            yield
        except (HydraException, OmegaConfBaseException, ValueError, OSError, KeyError) as error:
            self.found.setdefault(text_of(error).strip(), []).append(name)

    def check(self) -> None:
        """Say what was found.

        Raises:
            PlanError: something was.
        """
        if self.found:
            raise PlanError(_listed(self.found, self._among))


class _Inputs:
    """Digests of the files that jobs are given from outside. What several share is read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, study: Study, config: Mapping[str, Any]) -> str:
        from synthvision.pipeline import inputs_digest

        of = {name: value for name, value in config.items() if name not in ("seed", "classifier", "optimizer", *ASIDE)}
        of |= {"weights": config["classifier"]["model"]["weights"]}
        key = artifact.digest_of(of)
        if key not in self._known:
            self._known[key] = inputs_digest(study, config["stage"]["name"])
        return self._known[key]


def _names(of_each: Sequence[Sequence[str]]) -> list[str]:
    """Name each job by what varies: `optimizer=adam lr=0.001`."""
    varied = [key for key in _keys(of_each) if len({_value(overrides, key) for overrides in of_each}) > 1]
    short = {key: key.rsplit(".", 1)[-1] for key in varied}
    labels = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    given = [{key: value[:SHOWN] for key in varied if (value := _value(overrides, key))} for overrides in of_each]
    named = [" ".join(f"{labels[key]}={value}" for key, value in each.items()) for each in given]
    return [name or "the only job" for name in named]


def _keys(of_each: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(key for overrides in of_each for key in _parsed(overrides)))


def _value(overrides: Sequence[str], key: str) -> str:
    return _parsed(overrides).get(key, "")


def _parsed(overrides: Sequence[str]) -> dict[str, str]:
    parts = OverridesParser.create().parse_overrides(list(overrides))
    return {str(part.get_key_element()).lstrip("+~"): part.get_value_element_as_str() for part in parts}


def _listed(mistakes: Mapping[str, Sequence[str]], among: int) -> str:
    lines = [f"nothing was started: of {among} jobs some cannot run"]
    for text, names in mistakes.items():
        where = f" ({len(names)} jobs, the first: {names[0]})" if len(names) > 1 else "".join(f" ({n})" for n in names)
        lines.append(f"- {text}{where}")
    return "\n".join(lines)
