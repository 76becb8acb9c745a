"""The tracking store: runs, nesting, parameters, metrics, data sets, figures and models. The only importer of MLflow.

A study is an MLflow experiment, a pipeline is a parent run, each of its stages is a child run. A run that was left by
an exception is FAILED, by a signal KILLED; one left RUNNING by `kill -9` is marked KILLED at the next start.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # medical work: nothing leaves the machine
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # spares the UI seven helper processes
os.environ["GIT_PYTHON_REFRESH"] = "quiet"  # a machine without git is no reason for a warning

import mlflow
import numpy as np
import psutil
from filelock import FileLock
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from synthvision import __version__
from synthvision.manifest import COLUMNS, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pytorch_lightning.loggers.logger import Logger

PARAM_LENGTH = 6_000  # MLflow's limit for a parameter's value
PARAM_BATCH = 100  # MLflow's limits per call
METRIC_BATCH = 1_000
DIGEST_LENGTH = 36  # MLflow's limit for a data set's digest
CLOCK_DRIFT = 60.0  # seconds by which a process's start time may seem to move when the clock is set
PROCESS_TAG = "process"
SWEEP_TAG = "sweep"  # digest of a sweep's jobs, on its own run
JOB_TAG = "job"  # identity of a job, on each run that a start of its sweep gave it
PARENT_TAG = "mlflow.parentRunId"
MODEL_NAME = "classifier"
VALIDATION = "best/val/"  # begins the metrics that a model may be chosen by
VALIDATED_ON = "validation"  # context of the data set that these metrics were measured on
SAID = {  # what the classifier answers beside a probability per class; see served.py
    "decision": DataType.string,
    "calibrated": DataType.double,
    "foreign": DataType.boolean,
    "quality": DataType.string,
}

_Item = TypeVar("_Item")

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.system_metrics"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # migrations and monitors narrate every step


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are kept: `conf/tracking/*.yaml`.

    Raises:
        ValueError: a value breaks its rule; the message names the key.
    """

    root: str = "mlruns"  # folder of mlflow.db and artifacts/; relative to the current folder
    ui: str = "http://127.0.0.1:5000"  # where reports expect the UI when they link to a run
    system_metrics: bool = True
    system_metrics_interval: float = 5.0  # seconds between two samples of CPU, memory and GPU

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("tracking.root must name a folder; it is empty. Set tracking.root=mlruns")
        if not re.match(r"https?://\w", self.ui):
            raise ValueError(f"tracking.ui must begin with http:// or https:// and name a host; it is {self.ui!r}")
        if self.system_metrics_interval <= 0:
            value = self.system_metrics_interval
            raise ValueError(f"tracking.system_metrics_interval must be above 0 seconds; it is {value}")

    @property
    def folder(self) -> Path:
        """The store's folder, absolute."""
        return Path(self.root).absolute()

    @property
    def uri(self) -> str:
        """The tracking URI, which works from any folder."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def ui_command(self, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
        """Return the command that opens the MLflow UI on this store, from any folder."""
        server = ["--host", host, "--port", str(port), "--workers", "1"]
        return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.uri, *server]


@dataclass(frozen=True)
class RegistryConfig:
    """Which run's classifier gets a name: `conf/stage/register.yaml`.

    Raises:
        ValueError: a value breaks its rule; the message names the key.
    """

    model: str
    alias: str = "best"
    metric: str = f"{VALIDATION}loss"
    greatest: bool = False
    arm: str | None = None

    def __post_init__(self) -> None:
        for key in ("model", "alias"):
            value = getattr(self, key)
            if not re.fullmatch(r"[A-Za-z][\w.-]*", value) or re.fullmatch(r"latest|v\d+", value.lower()):
                raise ValueError(
                    f"stage.{key} must begin with a letter, hold letters, digits and . _ - and be neither latest nor "
                    f"v with a number, which MLflow keeps for itself; it is {value!r}"
                )
        if not self.metric.startswith(VALIDATION):
            raise ValueError(
                f"stage.metric must be one of validation, {VALIDATION}...: a choice by test results would make them "
                f"worthless; it is {self.metric!r}"
            )


@dataclass(frozen=True)
class Registered:
    """What now has the alias."""

    uri: str  # models:/NAME@ALIAS
    version: str
    run_id: str
    value: float  # of the metric it was chosen by
    among: int  # runs that it was chosen from


class Run:
    """One MLflow run that is open; made by `Store.pipeline_run` and `Store.stage_run`."""

    def __init__(self, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self.experiment_id = experiment_id
        self._client = mlflow.MlflowClient()

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; existing ones of the same name are replaced."""
        self._client.log_batch(self.run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def note(self, markdown: str) -> None:
        """Set the description that the UI shows above the run."""
        self.set_tags({"mlflow.note.content": markdown})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log nested values as flat parameters (`classifier.lr`); a longer value is cut at 6,000 characters."""
        params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(values).items()]
        for batch in _batches(params, PARAM_BATCH):
            self._client.log_batch(self.run_id, params=batch)

    def log_config(self, text: str) -> None:
        """Store the resolved config as `config.yaml`."""
        self._client.log_text(self.run_id, text, "config.yaml")

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log values at one step."""
        now = time.time_ns() // 1_000_000
        self.write([(name, float(value), now, step) for name, value in values.items()])

    def write(self, rows: Sequence[tuple[str, float, int, int]]) -> None:
        """Log (name, value, time in milliseconds, step) in as few transactions as MLflow allows."""
        for batch in _batches([Metric(*row) for row in rows], METRIC_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)

    def log_manifest(self, manifest: Manifest, name: str, context: str) -> None:
        """Record a data set: its name, content digest, columns and size, but no image and no row.

        Args:
            manifest: the images.
            name: searchable as `datasets.name = '…'`.
            context: what it was used for: "guides", "training", "validation", "testing".
        """
        import pandas as pd

        frame = pd.DataFrame({column: manifest.column(column) for column in COLUMNS}, dtype=object)
        source = CodeDatasetSource(tags={"study": manifest.root.name})  # no path: it says nothing to another machine
        digest = manifest.digest()[:DIGEST_LENGTH]
        dataset = from_pandas(frame, source=source, name=name, digest=digest)
        mlflow.log_input(dataset, context=context)

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a file, or all that lies in a folder, as an artifact."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder or path.name)
        else:
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_classifier(self, weights: Path, classes: Sequence[str], example: NDArray[np.uint8]) -> str:
        """Log a classifier that `mlflow.pyfunc.load_model` loads and that predicts with.

        Args:
            weights: folder with model.safetensors and model.json.
            classes: the columns of its answer.
            example: some images, uint8 (N, H, W, 3).

        Returns:
            The model's URI.
        """
        images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), name=None)
        answer: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, name) for name in classes]
        answer += [ColSpec(kind, name) for name, kind in SAID.items()]
        logged = mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            loader_module="synthvision.served",  # code of the installed package; a pickled model could run anything
            data_path=str(weights),
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema(answer)),
            input_example=example,
            pip_requirements=[f"synthvision=={__version__}"],
        )
        return str(logged.model_uri)

    def lightning_logger(self) -> Logger:
        """Return a Lightning logger that writes into this run and leaves its status alone."""
        from synthvision.metric_logger import MetricLogger  # Lightning takes seconds to import

        return MetricLogger(self.run_id, self.write)


class Store:
    """The runs of one study; made by `open_store`."""

    def __init__(self, config: TrackingConfig, study: str, experiment_id: str) -> None:
        self.config = config
        self.study = study
        self.experiment_id = experiment_id

    def link(self, run_id: str) -> str:
        """Return where the UI shows a run; nothing for a run that was not tracked."""
        return f"{self.config.ui.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{run_id}" if run_id else ""

    @contextmanager
    def sweep_run(self, name: str, digest: str, tags: Mapping[str, object]) -> Iterator[tuple[Run, bool]]:
        """Open the parent run of a sweep, or open it again where an earlier start left one.

        It is no active run: its children may be opened in other processes, with PARENT_TAG.

        Yields:
            The run, and whether it was there before.
        """
        client = mlflow.MlflowClient()
        fixed = {"study": self.study, "version": __version__, "git_commit": git_commit(), PROCESS_TAG: _process()}
        text = {key: str(value) for key, value in {**fixed, "stage": "sweep", SWEEP_TAG: digest, **tags}.items()}
        found = client.search_runs([self.experiment_id], f"tags.{SWEEP_TAG} = '{digest}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
            client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        else:
            run_id = client.create_run(self.experiment_id, run_name=name).info.run_id
        run, status = Run(run_id, self.experiment_id), RunStatus.KILLED
        run.set_tags(text)
        try:
            yield run, bool(found)
            status = RunStatus.FINISHED
        except Exception:
            status = RunStatus.FAILED
            raise
        finally:
            client.set_terminated(run_id, RunStatus.to_string(status))

    def close_dead_runs(self) -> None:
        """Mark runs KILLED whose process on this machine is gone."""
        _close_dead_runs(mlflow.MlflowClient(), self.experiment_id)

    @contextmanager
    def pipeline_run(
        self, name: str, params: Mapping[str, Any], config_text: str, tags: Mapping[str, object]
    ) -> Iterator[Run]:
        """Open the parent run of a pipeline; stage runs opened inside become its children."""
        # No system metrics: they would stand before the results wherever pipelines are compared.
        with self._run(name, {"stage": "pipeline", **tags}, system_metrics=False) as run:
            run.log_params(params)
            run.log_config(config_text)
            yield run

    @contextmanager
    def stage_run(
        self, stage: str, params: Mapping[str, Any], config_text: str, tags: Mapping[str, object]
    ) -> Iterator[Run]:
        """Open the run of one stage, as a child of the open pipeline run if there is one."""
        with self._run(stage, {**tags, "stage": stage}, self.config.system_metrics) as run:
            run.log_params(params)
            run.log_config(config_text)
            yield run

    @contextmanager
    def budget_run(self, epochs: int, params: Mapping[str, Any], tags: Mapping[str, object]) -> Iterator[Run]:
        """Open the run of a budget, below the open run of the training that it is read off.

        Its parameters are those of the run that was trained alone to this budget.
        """
        alone = {**params, "classifier": {**params["classifier"], "epochs": epochs, "budgets": []}}
        of = {**tags, "stage": "budget", "budget": epochs}
        with self._run(f"epoch {epochs}", of, system_metrics=False) as run:
            run.log_params(alone)
            yield run

    def register(self, wanted: RegistryConfig) -> Registered:
        """Register the best finished classifier and point the alias at it; the same run is registered once.

        Only runs validated on the same images can be compared: those of the newest one.

        Raises:
            ValueError: the study has no finished classifier of that kind, or none with that metric.
        """
        kind = f" and tags.arm = '{wanted.arm}'" if wanted.arm else ""
        client = mlflow.MlflowClient()
        runs = client.search_runs(
            [self.experiment_id],
            f"attributes.status = 'FINISHED' and tags.stage = 'classify'{kind}",
            order_by=["attributes.start_time DESC"],
            max_results=50_000,  # MLflow's limit
        )
        of = f" of arm {wanted.arm}" if wanted.arm else ""
        if not runs:
            raise ValueError(
                f"study {self.study} has no finished classifier{of} in {self.config.folder}; run stage=classify first"
            )
        same = [run for run in runs if _validated_on(run) == _validated_on(runs[0])]
        rated = [run for run in same if wanted.metric in run.data.metrics]
        if not rated:
            known = sorted(name for name in runs[0].data.metrics if name.startswith(VALIDATION))
            raise ValueError(
                f"stage.metric must be one of {known}, which stage=classify logged; it is {wanted.metric!r}"
            )
        sign = -1 if wanted.greatest else 1
        best = min(rated, key=lambda run: (sign * run.data.metrics[wanted.metric], run.info.start_time))
        version = self._version(client, best, wanted)
        client.set_registered_model_alias(wanted.model, wanted.alias, version)
        value = best.data.metrics[wanted.metric]
        return Registered(f"models:/{wanted.model}@{wanted.alias}", version, best.info.run_id, value, len(rated))

    def _version(self, client: mlflow.MlflowClient, run: mlflow.entities.Run, wanted: RegistryConfig) -> str:
        """Return the version under which a run's classifier is registered, now or before."""
        named = f"name = '{wanted.model}' and run_id = '{run.info.run_id}'"
        before = client.search_model_versions(named)
        if before:
            return str(before[0].version)
        tags = {key: value for key, value in run.data.tags.items() if key in ("arm", "seed", "fingerprint")}
        tags |= {"study": self.study, "chosen_by": wanted.metric}
        assert run.outputs is not None  # a finished classify has logged its model
        model = run.outputs.model_outputs[0].model_id
        return str(mlflow.register_model(f"models:/{model}", wanted.model, tags=tags).version)

    @contextmanager
    def _run(self, name: str, tags: Mapping[str, object], system_metrics: bool) -> Iterator[Run]:
        fixed = {"study": self.study, "version": __version__, "git_commit": git_commit(), PROCESS_TAG: _process()}
        text = {key: str(value) for key, value in {**fixed, **tags}.items()}
        active = mlflow.start_run(
            experiment_id=self.experiment_id,
            run_name=name,
            nested=True,
            tags=text,
            log_system_metrics=system_metrics,
        )
        status = RunStatus.KILLED  # holds for whatever is no Exception: KeyboardInterrupt, SystemExit, a signal
        try:
            yield Run(active.info.run_id, self.experiment_id)
            status = RunStatus.FINISHED
        except Exception:
            status = RunStatus.FAILED
            raise
        finally:
            mlflow.end_run(RunStatus.to_string(status))


def open_store(config: TrackingConfig, study: str) -> Store:
    """Open the store, make it and the study's experiment if missing, and mark dead runs KILLED.

    Only one process at a time does so: parallel first starts would collide in the database's migration.
    """
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(config.uri)
    os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = str(config.system_metrics_interval)
    with FileLock(folder / "mlflow.lock"):
        client = mlflow.MlflowClient()  # migrates the database
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            experiment_id = client.create_experiment(study, artifact_location=(folder / "artifacts").as_uri())
        else:
            experiment_id = experiment.experiment_id
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment_id)
        _close_dead_runs(client, experiment_id)
    return Store(config, study, experiment_id)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level with dotted keys; `_target_` keys are left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "_target_":
            continue
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def git_commit() -> str:
    """Return the commit of the running source, with "-dirty" if it was edited since; "" for an installed package."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", here.name)  # fails for a package that merely lies inside some repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    return ""


def _validated_on(run: mlflow.entities.Run) -> str:
    """Return the digest of the images that a run's validation metrics were measured on."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    of = [each.dataset.digest for each in inputs if VALIDATED_ON in [tag.value for tag in each.tags]]
    return str(of[0]) if of else ""


def _process() -> str:
    """Name this process so that another can tell later whether it still lives."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_alive(process: str) -> bool:
    """Tell whether the process that `_process` named may still run; another machine's always may."""
    host, pid, started = process.rsplit(" ", 2)
    if host != socket.gethostname():
        return True
    try:
        drift: float = psutil.Process(int(pid)).create_time() - float(started)
    except psutil.NoSuchProcess:
        return False
    return abs(drift) < CLOCK_DRIFT  # otherwise another process has the number now


def _close_dead_runs(client: mlflow.MlflowClient, experiment_id: str) -> None:
    for run in client.search_runs([experiment_id], filter_string="attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS_TAG)
        if process and not _is_alive(process):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
