"""Reads the runs of a study, all at once: parameters, tags and last metrics.

From the embedded store by SQL on MLflow's tables, read-only and without importing MLflow: for 1,000 runs of 235
parameters its own search takes 5 seconds and this 0.3. From a server through its interface.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

from synthvision.tracking.config import PARENT, TrackingConfig

PAGE = 200  # runs per answer of a server, each well within the seconds that a request may take


@dataclass(frozen=True)
class RunData:
    """What the store knows of a run."""

    run_id: str
    experiment: str  # MLflow's id of the study
    name: str
    status: str
    start: int  # milliseconds
    end: int  # 0: not ended
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)  # the last of each

    @property
    def stage(self) -> str:
        """What the run did: a stage's name, "pipeline", "budget" or "sweep"."""
        return self.tags.get("stage", "")

    @property
    def parent(self) -> str:
        """The run above it, or nothing."""
        return self.tags.get(PARENT, "")


def runs_of(config: TrackingConfig, study: str) -> list[RunData]:
    """Return a study's runs that are not deleted, the newest first.

    Raises:
        ValueError: the store has no such study.
    """
    found = _from_server(config, study) if config.server else _from_file(config, study)
    return sorted(found, key=lambda run: -run.start)


def _from_file(config: TrackingConfig, study: str) -> list[RunData]:
    with closing(sqlite3.connect(f"{config.database.as_uri()}?mode=ro", uri=True, timeout=20)) as database:
        known = dict(database.execute("select name, experiment_id from experiments").fetchall())
        if study not in known:
            raise ValueError(
                f"study={study} has no runs in {config.folder}; there are {sorted(set(known) - {'Default'})}"
            )
        wanted = "experiment_id = ? and lifecycle_stage = 'active'"
        rows = database.execute(
            f"select run_uuid, experiment_id, name, status, start_time, coalesce(end_time, 0) from runs where {wanted}",
            [known[study]],
        )
        runs = {row[0]: RunData(row[0], str(row[1]), *row[2:]) for row in rows}
        of_study = f"where run_uuid in (select run_uuid from runs where {wanted})"
        for name in ("params", "tags"):  # one row per run: a row per parameter takes three times as long
            pairs = f"select run_uuid, json_group_object(key, value) from {name} {of_study} group by run_uuid"
            for run_id, values in database.execute(pairs, [known[study]]):
                getattr(runs[run_id], name).update(json.loads(values))
        metrics = f"select run_uuid, key, case when is_nan then 'nan' else value end from latest_metrics {of_study}"
        for run_id, key, value in database.execute(metrics, [known[study]]):
            runs[run_id].metrics[key] = float(value)
    return list(runs.values())


def _from_server(config: TrackingConfig, study: str) -> Iterator[RunData]:
    from synthvision.tracking.delivery import search_all
    from synthvision.tracking.store import connect

    client = connect(config)
    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        raise ValueError(f"study={study} has no runs on {config.uri}")
    for run in search_all(client, [experiment.experiment_id], "", PAGE):
        info, data = run.info, run.data
        yield RunData(info.run_id, info.experiment_id, info.run_name, info.status, info.start_time, info.end_time or 0,
                      dict(data.params), dict(data.tags), dict(data.metrics))  # fmt: skip
