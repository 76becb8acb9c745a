"""Carries a journal's entries to MLflow: in order, again where an answer was lost, and none twice.

To send again is safe. A metric's row is unique by (run, name, time, step, value), tags and artifacts replace their
like, data sets are known by their digest, and runs and models are looked for before they are made.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, cast

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from requests import HTTPError

from synthvision.tracking.config import (
    KEY_TAG,
    NOTE_TAG,
    OF_SWEEP,
    OFFLINE,
    PARENT,
    VALIDATED_ON,
    VALIDATION,
    TrackingConfig,
    without_passwords,
)
from synthvision.tracking.journal import Entry, Journal

SHOWN_WITH_MODEL = (NOTE_TAG, "mlflow.user", "mlflow.source.name", "mlflow.source.type")
METRIC_BATCH = 1_000  # MLflow's limit per call
REFUSED = (400, 404, 405, 409, 413, 422)  # answers that another try would not change

logger = logging.getLogger("synthvision.tracking")


@dataclass(frozen=True)
class Sent:
    """What was carried to the store."""

    journals: int = 0
    entries: int = 0
    rows: int = 0  # of metrics, among the entries
    refused: int = 0  # entries that the store refused for good
    held: int = 0  # journals of processes at work, which send them themselves

    def __add__(self, other: Sent) -> Sent:
        return Sent(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


class Delivery:
    """Sends entries to the store at a tracking URI; one thread at a time."""

    def __init__(self, config: TrackingConfig) -> None:
        self._client = mlflow.MlflowClient(config.uri)
        self._refused = config.refused
        self._ids: dict[str, str] = {}  # of runs that were begun while the store did not answer

    def send(self, journal: Journal) -> Sent:
        """Send what waits in a journal.

        What the store refuses for good is put aside in a file beside the journals and said, so that the rest arrives.

        Raises:
            Exception: the store does not answer; what was sent is noted in the journal.
        """
        sent = Sent(journals=1)
        for entries, position in _batches(journal.waiting()):
            refused = 0
            try:
                self._deliver(entries, journal)
            except Exception as error:
                if not is_refusal(error):
                    raise
                refused = self._one_by_one(entries, journal)
            journal.acknowledge(position)
            for entry in entries:
                if "file" in entry:
                    journal.drop(entry["file"])
            rows = sum(len(entry.get("rows", ())) for entry in entries)
            sent += Sent(entries=len(entries), rows=rows, refused=refused)
        return sent

    def start(self, entry: Entry) -> str:
        """Make the run that an entry describes, or find it; return its id."""
        key, experiment = entry["run"], entry["experiment"]
        found = self._find(key, [experiment]) if entry.get("again") else None
        if found is None:
            tags = {**entry["tags"], KEY_TAG: key}
            for tag in {PARENT, OF_SWEEP} & set(tags):  # runs that may have begun while the store was away
                tags[tag] = self._id(tags[tag])
            made = self._client.create_run(experiment, entry["time"], tags, entry["name"])
            found = str(made.info.run_id)
        self._ids[key] = found
        return found

    def _one_by_one(self, entries: Sequence[Entry], journal: Journal) -> int:
        """Send the entries of a batch that was refused, and return how many are to blame."""
        refused = 0
        for entry in entries:
            try:
                self._deliver([entry], journal)
            except Exception as error:
                if not is_refusal(error):
                    raise
                reason = without_passwords(str(error))
                with self._refused.open("a") as lines:
                    lines.write(json.dumps({**entry, "refused": reason}) + "\n")
                logger.error("tracking: refused, and kept in %s: %s", self._refused, reason.splitlines()[0])
                refused += 1
        return refused

    def _deliver(self, entries: Sequence[Entry], journal: Journal) -> None:
        first = entries[0]
        if first["op"] == "metrics":
            for run in dict.fromkeys(entry["run"] for entry in entries):
                rows = [row for entry in entries if entry["run"] == run for row in entry["rows"]]
                for start in range(0, len(rows), METRIC_BATCH):
                    metrics = [Metric(*row) for row in rows[start : start + METRIC_BATCH]]
                    self._client.log_batch(self._id(run), metrics=metrics)
        elif first["op"] == "run":
            self.start({**first, "again": True})
        else:
            getattr(self, f"_{first['op']}")(self._id(first["run"]), first, journal)

    def _tags(self, run_id: str, entry: Entry, _: Journal) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in entry["values"].items()])

    def _params(self, run_id: str, entry: Entry, _: Journal) -> None:
        self._client.log_batch(run_id, params=[Param(key, value) for key, value in entry["values"].items()])

    def _artifact(self, run_id: str, entry: Entry, journal: Journal) -> None:
        path = journal.kept(entry["file"])
        if path.is_dir():
            self._client.log_artifacts(run_id, str(path), entry["folder"] or path.name)
        else:
            self._client.log_artifact(run_id, str(path), entry["folder"] or None)

    def _input(self, run_id: str, entry: Entry, _: Journal) -> None:
        tags = [InputTag("mlflow.data.context", entry["context"])]
        self._client.log_inputs(run_id, [DatasetInput(Dataset(**entry["dataset"]), tags)])

    def _end(self, run_id: str, entry: Entry, _: Journal) -> None:
        if entry["time"] is None:
            self._client.update_run(run_id, entry["status"])
        else:
            self._client.set_terminated(run_id, entry["status"], entry["time"])

    def _model(self, run_id: str, entry: Entry, journal: Journal) -> None:
        """Upload a saved model as an output of its run, with the run's validation metrics on the model's page."""
        run = self._client.get_run(run_id)
        known = [each.model_id for each in run.outputs.model_outputs] if run.outputs else []
        model = self._client.get_logged_model(known[0]) if known else None
        if model is None:
            shown = {tag: run.data.tags[tag] for tag in SHOWN_WITH_MODEL if tag in run.data.tags}
            model = self._client.create_logged_model(
                run.info.experiment_id, entry["name"], run_id, shown, dict(run.data.params)
            )
            self._client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        if model.status == LoggedModelStatus.READY:
            return
        folder = journal.kept(entry["file"])
        described = Model.load(str(folder))
        described.model_id, described.model_uuid, described.run_id = model.model_id, model.model_id, run_id
        described.artifact_path = model.artifact_location
        described.save(str(folder / "MLmodel"))
        self._client.log_model_artifacts(model.model_id, str(folder))
        inputs = run.inputs.dataset_inputs if run.inputs else []
        images = next((each.dataset for each in inputs if VALIDATED_ON in [tag.value for tag in each.tags]), None)
        name, digest = (images.name, images.digest) if images else (None, None)
        named = [metric for metric in run.data.metrics if metric.startswith(VALIDATION)]
        points = [point for metric in named for point in self._client.get_metric_history(run_id, metric)]
        # The model's page shows them, with the images that they were measured on.
        measured = [Metric(p.key, p.value, p.timestamp, p.step, model.model_id, name, digest, run_id) for p in points]
        self._client.log_batch(run_id, metrics=measured)
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def _id(self, key: str) -> str:
        """Return a run's id in the store; most runs are called by it from the start."""
        if not key.startswith(OFFLINE):
            return key
        if key not in self._ids:
            experiments = [each.experiment_id for each in self._client.search_experiments()]
            found = self._find(key, experiments)
            if found is None:
                raise ConnectionError(f"run {key} waits in another journal")  # comes in another turn
            self._ids[key] = found
        return self._ids[key]

    def _find(self, key: str, experiments: Sequence[str]) -> str | None:
        found = self._client.search_runs(list(experiments), f"tags.{KEY_TAG} = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None


def search_all(
    client: mlflow.MlflowClient, experiments: Sequence[str], condition: str, page: int = 1_000
) -> Iterator[mlflow.entities.Run]:
    """Yield every run of these experiments that fulfils a condition, page by page."""
    token: str | None = None
    while True:
        found = client.search_runs(list(experiments), condition, max_results=page, page_token=token)
        yield from found
        token = found.token
        if not token:
            return


def is_refusal(error: Exception) -> bool:
    """Tell whether an error is the store's last word, so that to try again would be of no use."""
    if isinstance(error, MlflowException):
        status: int = cast(Any, error).get_http_status_code()  # untyped in MLflow
        return status in REFUSED
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in REFUSED
    return isinstance(error, (FileNotFoundError, KeyError, TypeError, AttributeError))  # the entry itself is at fault


def _batches(waiting: Iterator[tuple[Entry, int]]) -> Iterator[tuple[list[Entry], int]]:
    """Put metrics that follow one another together, up to MLflow's limit; every other entry stands alone."""
    batch: list[Entry] = []
    end = rows = 0
    for entry, position in waiting:
        count = len(entry.get("rows", ()))
        if batch and (entry["op"] != "metrics" or rows + count > METRIC_BATCH):
            yield batch, end
            batch, rows = [], 0
        if entry["op"] == "metrics":
            batch, end, rows = [*batch, entry], position, rows + count
        else:
            yield [entry], position
    if batch:
        yield batch, end
