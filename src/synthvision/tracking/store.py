"""The runs of a study: how they nest, begin and end."""

from __future__ import annotations

import getpass
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import RunStatus

from synthvision import __version__, artifact
from synthvision.tracking.config import OFFLINE, PARENT, TrackingConfig, without_passwords
from synthvision.tracking.delivery import Delivery, Sent, is_refusal, search_all
from synthvision.tracking.process import git_commit, is_alive, this_process
from synthvision.tracking.runs import Run
from synthvision.tracking.sender import Sender, note_answer, send_left_behind
from synthvision.tracking.system import sampled

PROCESS_TAG = "process"
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"  # the UI shows runs, not chats
SWEEP_TAG = "sweep"  # digest of a sweep's jobs, on its own run

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # migrations and monitors narrate every step


class Store:
    """The runs of one study; made by `open_store`."""

    def __init__(self, config: TrackingConfig, study: str, experiment_id: str) -> None:
        self.config = config
        self.study = study
        self.experiment_id = experiment_id
        self._open: list[Run] = []  # the parent before its child
        self._sender: Sender | None = None  # while a run is open

    def link(self, run_id: str) -> str:
        """Return where the UI shows a run; nothing for a run that was not tracked."""
        return f"{self.config.address}/#/experiments/{self.experiment_id}/runs/{run_id}" if run_id else ""

    def save_view(self, key: str, view: str) -> str:
        """Keep a view of the study's table of runs, and return where the UI shows it. The store must answer.

        Args:
            key: tells it from others; a view of the same key is replaced.
            view: as `view.view_of` makes it.
        """
        mlflow.MlflowClient().set_experiment_tag(self.experiment_id, f"mlflow.sharedViewState.{key}", view)
        runs = f"{self.config.address}/#/experiments/{self.experiment_id}/runs"
        return f"{runs}?workflowType=machine_learning&viewStateShareKey={key}"

    @contextmanager
    def sweep_run(
        self, name: str, digest: str, tags: Mapping[str, object], known: str | None = None
    ) -> Iterator[tuple[Run, bool]]:
        """Open the parent run of a sweep, or open it again where an earlier start left one.

        Its children may be opened in other processes, with the tag PARENT.

        Args:
            name: as the UI shows it.
            digest: of the sweep's jobs.
            tags: of the run.
            known: id that an earlier start's run had in this store; believed while the store does not answer.

        Yields:
            The run, and whether it was there before.
        """
        earlier = self._sweep_of(digest, known)
        with self._run(name, {"stage": "sweep", SWEEP_TAG: digest, **tags}, earlier) as run:
            yield run, earlier is not None

    def _sweep_of(self, digest: str, known: str | None) -> str | None:
        try:
            if known and known.startswith(OFFLINE):
                send_left_behind(Delivery(self.config), self.config)  # the store may not have heard of it yet
            found = mlflow.MlflowClient().search_runs(
                [self.experiment_id], f"tags.{SWEEP_TAG} = '{digest}'", max_results=1
            )
        except Exception as error:
            if is_refusal(error):
                raise
            return known  # the store does not answer
        return str(found[0].info.run_id) if found else None

    def close_dead_runs(self) -> None:
        """Mark runs KILLED whose process on this machine is gone; a store that is away is left to the next start."""
        try:
            _close_dead_runs(mlflow.MlflowClient(), [self.experiment_id])
        except Exception as error:
            if self.config.server is None or is_refusal(error):
                raise

    @contextmanager
    def again(self, run_id: str) -> Iterator[Run]:
        """Write into a run that ended or is open elsewhere, and leave its status alone."""
        sender = self._sender or Sender(self.config)
        try:
            yield Run(run_id, "", sender.append, sender.journal)
            sender.wait()
        finally:
            if sender is not self._sender:
                sender.close()

    @contextmanager
    def pipeline_run(
        self, name: str, params: Mapping[str, Any], config_text: str, tags: Mapping[str, object]
    ) -> Iterator[Run]:
        """Open the parent run of a pipeline; stage runs opened inside become its children."""
        # No system metrics: they would stand before the results wherever pipelines are compared.
        with self._run(name, {"stage": "pipeline", **tags}) as run:
            run.log_params(params)
            run.log_config(config_text)
            yield run

    @contextmanager
    def stage_run(
        self, stage: str, params: Mapping[str, Any], config_text: str, tags: Mapping[str, object]
    ) -> Iterator[Run]:
        """Open the run of one stage, as a child of the open pipeline run if there is one."""
        with self._run(stage, {**tags, "stage": stage}) as run, ExitStack() as sampling:
            if self.config.system_metrics:
                sampling.enter_context(sampled(run.log_metrics, self.config.system_metrics_interval))
            run.log_params(params)
            run.log_config(config_text)
            yield run

    @contextmanager
    def budget_run(self, epochs: int, params: Mapping[str, Any], tags: Mapping[str, object]) -> Iterator[Run]:
        """Open the run of a budget, below the open run of the training that it is read off.

        Its parameters are those of the run that was trained alone to this budget.
        """
        alone = {**params, "classifier": {**params["classifier"], "epochs": epochs, "budgets": []}}
        # Many trainings have an epoch 20: beside one another in the UI each needs the name of what it belongs to.
        with self._run(f"{self._open[0].name}, epoch {epochs}", {**tags, "stage": "budget", "budget": epochs}) as run:
            run.log_params(alone)
            yield run

    @contextmanager
    def _run(self, name: str, tags: Mapping[str, object], earlier: str | None = None) -> Iterator[Run]:
        """Open a run, or one that ended earlier again; however the block ends, the run's status says how."""
        sender = self._sender or Sender(self.config)
        self._sender = sender
        status = RunStatus.KILLED  # holds for whatever is no Exception: KeyboardInterrupt, SystemExit, a signal
        try:
            run = Run(earlier or self._begin(sender, name, tags), name, sender.append, sender.journal)
            if earlier:
                sender.append({"op": "end", "run": earlier, "status": "RUNNING", "time": None})
                run.set_tags({**tags, PROCESS_TAG: this_process()})
                sender.wait()
            self._open.append(run)
            try:
                yield run
                status = RunStatus.FINISHED
            except Exception:
                status = RunStatus.FAILED
                raise
            finally:
                self._open.remove(run)
                sender.append({"op": "end", "run": run.run_id, "status": RunStatus.to_string(status), "time": _now()})
                sender.wait()
        finally:
            if not self._open:
                self._sender = None
                sender.close()

    def _begin(self, sender: Sender, name: str, tags: Mapping[str, object]) -> str:
        """Make a run in the store, or in the journal alone while the store does not answer; return its id."""
        fixed = {
            "study": self.study,
            "version": __version__,
            "git_commit": git_commit(),
            PROCESS_TAG: this_process(),
            "mlflow.user": getpass.getuser(),
            "mlflow.source.name": "synthvision",
            "mlflow.source.type": "LOCAL",
        }
        if self._open:
            fixed[PARENT] = self._open[-1].run_id
        entry: dict[str, Any] = {
            "op": "run",
            "run": OFFLINE + uuid.uuid4().hex,
            "experiment": self.experiment_id,
            "name": name,
            "tags": {key: str(value) for key, value in {**fixed, **tags}.items()},
            "time": _now(),
        }
        if not sender.failing and not entry["tags"].get(PARENT, "").startswith(OFFLINE):
            try:
                return Delivery(self.config).start(entry)
            except Exception as error:
                if is_refusal(error):
                    raise
                sender.report_failure(error)
        sender.append(entry)
        return str(entry["run"])


def open_store(config: TrackingConfig, study: str) -> Store:
    """Open the store, make it and the study's experiment if missing, and mark dead runs KILLED.

    Only one process at a time does so: parallel first starts would collide in the database's migration.

    Raises:
        ConnectionError: the server does not answer, and it has never answered for this study before; one that it knows
            goes on without it.
    """
    config.spool.mkdir(parents=True, exist_ok=True)
    known_file = config.spool / "experiments.json"
    with FileLock(config.folder / "mlflow.lock"):
        known = json.loads(known_file.read_text()) if known_file.exists() else {}
        try:
            client = connect(config)
            experiment_id = _experiment(client, config, study)
            _close_dead_runs(client, [experiment_id])
        except Exception as error:
            if config.server is None or is_refusal(error):
                raise
            if study not in known:
                raise ConnectionError(_no_answer(config, error)) from None
            return Store(config, study, known[study])
        note_answer(config)
        if known.get(study) != experiment_id:
            artifact.write_json(known_file, {**known, study: experiment_id})
    return Store(config, study, experiment_id)


def sync(config: TrackingConfig) -> Sent:
    """Send what runs left while the store did not answer, and mark dead runs KILLED.

    Raises:
        ConnectionError: the server does not answer.
    """
    try:
        client = connect(config)
        sent = send_left_behind(Delivery(config), config)
        _close_dead_runs(client, [each.experiment_id for each in client.search_experiments()])
    except Exception as error:
        if config.server is None or is_refusal(error):
            raise
        raise ConnectionError(_no_answer(config, error)) from None
    return sent


def connect(config: TrackingConfig) -> mlflow.MlflowClient:
    """Return MLflow's client of a store, and make the store the one that MLflow's functions ask too."""
    if config.credentials:
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = config.credentials
    mlflow.set_tracking_uri(config.uri)
    return mlflow.MlflowClient()  # migrates an embedded database


def _no_answer(config: TrackingConfig, error: Exception) -> str:
    reason = without_passwords(str(error)).splitlines()[0][:200]
    return (
        f"tracking.server={config.uri} does not answer ({reason}); start it, correct the address, or keep runs here "
        "with tracking=local"
    )


def _experiment(client: mlflow.MlflowClient, config: TrackingConfig, study: str) -> str:
    """Return the id of a study's experiment, which is made, or restored if it was deleted."""
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        # A server has a place of its own for artifacts, and takes them itself.
        place = (config.folder / "artifacts").as_uri() if config.server is None else None
        try:
            return str(client.create_experiment(study, artifact_location=place, tags={KIND: TRAINING}))
        except mlflow.exceptions.MlflowException:
            experiment = client.get_experiment_by_name(study)
            if experiment is None:  # otherwise another machine was faster
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if KIND not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, KIND, TRAINING)
    return str(experiment.experiment_id)


def _close_dead_runs(client: mlflow.MlflowClient, experiments: list[str]) -> None:
    for run in search_all(client, experiments, "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS_TAG)
        if process and not is_alive(process):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def _now() -> int:
    return time.time_ns() // 1_000_000
