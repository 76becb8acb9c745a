"""The command line: compose the config, make its dataclasses, run the stage, end with an honest exit code.

With `sweep/` the only importer of Hydra and OmegaConf. Nothing heavy (torch, diffusers, MLflow) is imported before a
stage needs it.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synthvision.sweep.composed import (
    ReportedError,
    StopOnSignal,
    Stopped,
    is_ours,
    make,
    shared_folder,
    study_of,
    text_of,
)

if TYPE_CHECKING:
    from synthvision.pipeline import Outcome
    from synthvision.stages.reading import Session
    from synthvision.tracking.config import TrackingConfig

PACKAGE = Path(__file__).parent
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]  # a wheel holds conf/; a checkout has it on top
OF_THE_STORE = ("register", "sync", "compare", "clean")  # stages that train nothing
SERVER = "tracking.server="  # begins the argument that may hold a password
URI_VARIABLE = "MLFLOW_TRACKING_URI"
FAILED = 1
SIGNALLED = 128  # plus the signal's number, as shells do


def main() -> int:
    """Run `synthvision`.

    Returns:
        0: done; 1: failed; 128 + n: stopped by signal n; argparse's 2 for a wrong option leaves as SystemExit.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us whole; what to show of them is decided here
    handler = StopOnSignal()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)
    hide_credentials()
    register_sweeps(ROOT / "sweeps")
    try:
        hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")(run_stage)()
    except Stopped as stop:
        name = signal.Signals(stop.signum).name
        print(f"synthvision: stopped by {name}; run the same command to resume", file=sys.stderr)
        return SIGNALLED + stop.signum
    except ReportedError:
        return FAILED
    except (HydraException, OmegaConfBaseException) as error:
        print(f"synthvision: {error}", file=sys.stderr)
        return FAILED
    return 0


def hide_credentials() -> None:
    """Move user and password of a server's address from the arguments to where MLflow looks for them.

    Hydra prints and keeps its arguments; MLflow's messages hold the address.
    """
    from synthvision.tracking.config import split_credentials

    given = {index: text.partition("=") for index, text in enumerate(sys.argv) if text.startswith(SERVER)}
    parts = [split_credentials(address) for _, _, address in given.values()]
    for (index, (key, _, _)), (address, _) in zip(given.items(), parts, strict=True):
        sys.argv[index] = f"{key}={address}"
    if URI_VARIABLE in os.environ:
        parts = [split_credentials(os.environ[URI_VARIABLE]), *parts]
        os.environ[URI_VARIABLE] = parts[0][0]
    for _, user in parts:
        if user:
            os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user


def register_sweeps(folder: Path) -> None:
    """Make each `sweeps/NAME.yaml` selectable as `+sweeps=NAME`, and our sweeper and launcher the default ones."""
    Plugins.instance()  # finds Hydra's own, whose names are then taken over
    for group, default in (("sweeper", "grid"), ("launcher", "in_process")):
        node = OmegaConf.load(ROOT / "conf" / "hydra" / group / f"{default}.yaml")
        ConfigStore.instance().store(group=f"hydra/{group}", name="basic", node=node)
    for file in sorted(folder.glob("*.yaml")):
        # the file's own "# @package" line is not read here, so the package is given again
        ConfigStore.instance().store(group="sweeps", name=file.stem, node=OmegaConf.load(file), package="_global_")


def run_stage(config: DictConfig, overrides: Sequence[str] | None = None, **swept: Any) -> Outcome | None:
    """Run what `stage=` names: alone, when Hydra calls this, or as a job of a sweep.

    Args:
        config: composed.
        overrides: from which the command is rebuilt that remakes it; None asks Hydra.
        swept: what a sweep tells its job; see `pipeline.Swept`.

    Raises:
        ReportedError: the stage failed. The error is printed here, when it happens.
        Stopped: a signal came, or a library turned one into SystemExit, which would pass for success.
    """
    try:
        if config.stage.name == "ui":
            _open_ui(config)
        elif config.stage.name in OF_THE_STORE:
            _ask_store(config)
        else:
            return _run_pipeline(config, _overrides() if overrides is None else overrides, swept)
    except SystemExit as error:
        raise Stopped(signal.SIGTERM) from error
    except Exception as error:
        if config.debug or not is_ours(error):
            traceback.print_exception(error)
        else:
            print(f"synthvision: {text_of(error)}", file=sys.stderr)
        raise ReportedError from error
    return None


def _run_pipeline(config: DictConfig, overrides: Sequence[str], swept: Mapping[str, Any]) -> Outcome:
    if config.trainer.accelerator == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: no room need be told, none can forget it
    study = study_of(config)
    tracking: TrackingConfig = make(config, "tracking")
    from synthvision.pipeline import Swept, run
    from synthvision.tracking.config import without_passwords

    session, job = _session(config), Swept(**swept) if swept else None
    resolved = without_passwords(OmegaConf.to_container(config, resolve=True))
    return run(study, config.stage.name, resolved, without_passwords(list(overrides)), tracking, session, job)


def _overrides() -> list[str]:
    hydra_part = HydraConfig.get()
    return [*shared_folder(hydra_part), *hydra_part.overrides.task]


def _session(config: DictConfig) -> Session | None:
    """Return what `stage=review` shall do; other stages have no readers."""
    if config.stage.name != "review":
        return None
    from synthvision.stages.reading import Session

    values = make(config, "stage")
    return Session(**{name: value for name, value in values.items() if name != "name"})


def _ask_store(config: DictConfig) -> None:
    """Run a stage that reads and writes the tracking store alone."""
    tracking: TrackingConfig = make(config, "tracking")
    from synthvision.tracking import commands

    if config.stage.name != "sync":
        _require_store(tracking)
    values = {name: value for name, value in make(config, "stage").items() if name != "name"}
    getattr(commands, config.stage.name)(tracking, commands.Place(config.study, Path(config.root)), **values)


def _require_store(tracking: TrackingConfig) -> None:
    if tracking.server is None and not tracking.database.is_file():
        remedy = "run synthvision first or set tracking.root=/path/to/mlruns"
        raise FileNotFoundError(f"no runs in {tracking.folder}; {remedy}")


def _open_ui(config: DictConfig) -> None:
    tracking: TrackingConfig = make(config, "tracking")
    _require_store(tracking)
    if tracking.server:
        print(f"MLflow UI: {tracking.address} (the server's own)", flush=True)
        return
    address = f"http://{config.stage.host}:{config.stage.port}/#/experiments?workflowType=machine_learning"
    print(f"MLflow UI: {address} (Ctrl-C ends it)", flush=True)
    command = tracking.ui_command(config.stage.host, config.stage.port)
    os.execv(command[0], command)  # in our place, so that signals reach the server and nothing of it outlives us
