"""From a composed config to a study, and from an error to what a user is told of it."""

from __future__ import annotations

import os
import traceback
from dataclasses import fields
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.conf import HydraConf
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from synthvision.study import Study


class Stopped(BaseException):
    """A signal asked to stop. No `Exception`, so that no library takes it for a failed job and goes on."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Pruned(BaseException):
    """A search ended a job early; the message says why. No `Exception`: nothing went wrong."""


class ReportedError(Exception):
    """A job failed and its error was printed; `__cause__` is that error. A sweep goes on with its other jobs."""


class StopOnSignal:
    """Handles SIGINT and SIGTERM: the first raises `Stopped`, later ones do not disturb the tidying up."""

    def __init__(self) -> None:
        self.stopping = False

    def __call__(self, signum: int, _frame: FrameType | None) -> None:
        if not self.stopping:
            self.stopping = True
            raise Stopped(signum)


def study_of(config: DictConfig) -> Study:
    """Make the study's dataclasses: each of `Study`'s fields is the config's key of the same name.

    Raises:
        InstantiationException: a dataclass refused its values; `__cause__` says why.
    """
    from synthvision.study import Study

    made: Any = {field.name: make(config, field.name) for field in fields(Study)}
    return Study(**made)


def make(config: DictConfig, key: str) -> Any:
    """Return a key's value, with every `_target_` below it called, lists as lists and mappings as dicts."""
    value = config[key]
    return instantiate(value, _convert_="all") if OmegaConf.is_config(value) else value


def shared_folder(hydra_part: HydraConf) -> list[str]:
    """Return `--config-dir=FOLDER` where it was given: the command that is kept with a run needs it to remake it."""
    given = [source.path for source in hydra_part.runtime.config_sources if source.provider == "command-line"]
    return [f"--config-dir={os.path.relpath(path)}" for path in given]


def is_ours(error: BaseException) -> bool:
    """Tell whether our own lines raised an error: then its message says all. A library's needs its traceback."""
    if isinstance(error, InstantiationException):
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    module = str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
    return isinstance(error, (ValueError, OSError, KeyError)) and module.split(".")[0] == "synthvision"


def text_of(error: BaseException) -> str:
    """Return an error's message; a dataclass's own words instead of Hydra's wrapping around them."""
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, (ValueError, OSError, KeyError)):
        return text_of(error.__cause__)
    if isinstance(error, KeyError) and len(error.args) == 1:
        return str(error.args[0])  # str(KeyError) would add quotes
    return str(error)


def first_line(error: BaseException) -> str:
    """Return what a table says of an error: the first line of its message, and the kind of an error of a library."""
    text = (text_of(error).strip() or type(error).__name__).splitlines()[0]
    return text if is_ours(error) else f"{type(error).__name__}: {text}"
