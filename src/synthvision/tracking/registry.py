"""The best classifier of a study gets a name."""

from __future__ import annotations

from dataclasses import dataclass

import mlflow

from synthvision.tracking.config import VALIDATED_ON, VALIDATION, RegistryConfig
from synthvision.tracking.store import Store


@dataclass(frozen=True)
class Registered:
    """What now has the alias."""

    uri: str  # models:/NAME@ALIAS
    version: str
    run_id: str
    value: float  # of the metric it was chosen by
    among: int  # runs that it was chosen from


def register(store: Store, wanted: RegistryConfig) -> Registered:
    """Register the best finished classifier and point the alias at it; the same run is registered once.

    Only runs validated on the same images can be compared: those of the newest one.

    Raises:
        ValueError: the study has no finished classifier of that kind, or none with that metric.
    """
    kind = f" and tags.arm = '{wanted.arm}'" if wanted.arm else ""
    client = mlflow.MlflowClient()
    runs = client.search_runs(
        [store.experiment_id],
        f"attributes.status = 'FINISHED' and tags.stage = 'classify'{kind}",
        order_by=["attributes.start_time DESC"],
        max_results=50_000,  # MLflow's limit
    )
    of = f" of arm {wanted.arm}" if wanted.arm else ""
    if not runs:
        raise ValueError(
            f"study {store.study} has no finished classifier{of} in {store.config.place}; run stage=classify first"
        )
    same = [run for run in runs if _validated_on(run) == _validated_on(runs[0])]
    rated = [run for run in same if wanted.metric in run.data.metrics]
    if not rated:
        known = sorted(name for name in runs[0].data.metrics if name.startswith(VALIDATION))
        raise ValueError(f"stage.metric must be one of {known}, which stage=classify logged; it is {wanted.metric!r}")
    sign = -1 if wanted.greatest else 1
    best = min(rated, key=lambda run: (sign * run.data.metrics[wanted.metric], run.info.start_time))
    version = _version(client, store.study, best, wanted)
    client.set_registered_model_alias(wanted.model, wanted.alias, version)
    value = best.data.metrics[wanted.metric]
    return Registered(f"models:/{wanted.model}@{wanted.alias}", version, best.info.run_id, value, len(rated))


def _version(client: mlflow.MlflowClient, study: str, run: mlflow.entities.Run, wanted: RegistryConfig) -> str:
    """Return the version under which a run's classifier is registered, now or before."""
    named = f"name = '{wanted.model}' and run_id = '{run.info.run_id}'"
    before = client.search_model_versions(named)
    if before:
        return str(before[0].version)
    tags = {key: value for key, value in run.data.tags.items() if key in ("arm", "seed", "fingerprint")}
    tags |= {"study": study, "chosen_by": wanted.metric}
    assert run.outputs is not None  # a finished classify has logged its model
    model = run.outputs.model_outputs[0].model_id
    return str(mlflow.register_model(f"models:/{model}", wanted.model, tags=tags).version)


def _validated_on(run: mlflow.entities.Run) -> str:
    """Return the digest of the images that a run's validation metrics were measured on."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    of = [each.dataset.digest for each in inputs if VALIDATED_ON in [tag.value for tag in each.tags]]
    return str(of[0]) if of else ""
