"""What a sweep's own run says of its jobs."""

import csv
import io
import math
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sklearn.metrics import r2_score

from synthvision.tracking.config import PARENT, TrackingConfig
from synthvision.tracking.importance import importance
from synthvision.tracking.query import runs_of
from synthvision.tracking.rows import Row, configurations, mean_interval, rows_of_sweep, short_names, varying
from synthvision.tracking.store import Store, open_store
from synthvision.tracking.summary import log_sweep_summary


@pytest.fixture
def store(tracking_root: Path) -> Store:
    return open_store(TrackingConfig(str(tracking_root), system_metrics=False), "phantom")


def loss_of(lr: float, epochs: int, optimizer: str) -> float:
    """The truth that is planted: the rate matters most, epochs less, the optimizer next to nothing."""
    return (math.log10(lr) + 3) ** 2 + 0.1 / epochs + (1e-4 if optimizer == "adam" else 0)


def job(
    store: Store,
    sweep: str,
    lr: float,
    optimizer: str,
    budgets: list[int],
    seed: int = 0,
    fails: bool = False,
    of: str = "",
) -> str:
    """Leave the runs that a job of a sweep leaves: a pipeline, its training, and a run for each budget."""
    params = {"optimizer": {"name": optimizer, "weight_decay": 0.1 if optimizer == "adam" else 0.2}, "seed": seed,
              "classifier": {"lr": lr, "optimizer": optimizer, "epochs": budgets[-1] if budgets else 9}}  # fmt: skip
    own = open_store(store.config, store.study)
    tags = {PARENT: sweep, "job": of or f"{lr} {optimizer} {seed}"}
    with suppress(RuntimeError), own.pipeline_run(f"lr={lr} {optimizer}", params, "", tags) as parent:
        parent.describe(f"synthvision classifier.lr={lr} optimizer={optimizer}")
        with own.stage_run("classify", params, "", {}) as run:
            run.write([("val/loss", 9.0, 0, 0), ("train/loss", 9.0, 0, 0)])
            run.log_metrics({"best/val/loss": loss_of(lr, budgets[-1] if budgets else 9, optimizer)})
            for epochs in budgets:
                with own.budget_run(epochs, params, {}) as read_off:
                    read_off.log_metrics({"best/val/loss": loss_of(lr, epochs, optimizer)})
        if fails:
            raise RuntimeError
        parent.log_metrics({"test/auc": 0.9})
    return parent.run_id


def tables(run_id: str, name: str = "table.csv") -> list[dict[str, str]]:
    text = mlflow.artifacts.load_text(f"{mlflow.get_run(run_id).info.artifact_uri}/summary/{name}")
    return list(csv.DictReader(io.StringIO(text)))


def test_a_grid_with_budgets_is_summed_up_on_its_run(store: Store) -> None:
    rates, budgets = (1e-2, 1e-3, 1e-4), [2, 5, 10, 20]
    with store.sweep_run("grid", "abc", {}) as (sweep, before):
        assert not before
        sweep.note("12 jobs.")
        for optimizer in ("adam", "rmsprop"):
            for lr in rates:
                job(store, sweep.run_id, lr, optimizer, budgets)
        job(store, sweep.run_id, 1e-1, "adam", budgets, fails=True)
        log_sweep_summary(store, sweep.run_id)
        log_sweep_summary(store, sweep.run_id)
    run = mlflow.get_run(sweep.run_id)
    assert run.info.status == "FINISHED"
    table = tables(sweep.run_id)
    assert len(table) == 24  # nothing of the job that failed
    assert list(table[0]) == ["epochs", "lr", "optimizer", "best/val/loss", "test/auc", "name", "run_id", "command"]
    for row in table:
        expected = loss_of(float(row["lr"]), int(row["epochs"]), row["optimizer"])
        assert float(row["best/val/loss"]) == expected
        assert row["test/auc"] == ("0.9" if row["epochs"] == "20" else "")  # only the whole training was tested
    best = min(table, key=lambda row: float(row["best/val/loss"]))
    assert (best["lr"], best["epochs"], best["optimizer"]) == ("0.001", "20", "rmsprop")
    assert run.data.tags["best_run"] == best["run_id"]
    assert run.data.metrics["best/val/loss"] == pytest.approx(float(best["best/val/loss"]))
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("12 jobs.")
    assert note.count("Best of 24 by validation") == 1
    assert "```\nsynthvision classifier.lr=0.001 optimizer=rmsprop\n```" in note
    assert "| 20 | 0.001 | rmsprop | 0.005 |" in note
    assert "Importance (permutation, n = 24" in note
    matters = note.partition("Importance")[2]
    assert matters.index("lr ") < matters.index("epochs ")
    listed = {
        Path(each.path).name for each in mlflow.artifacts.list_artifacts(run_id=sweep.run_id, artifact_path="summary")
    }
    figures = ("parallel_coordinates", "heat_map_adam", "heat_map_rmsprop", "importance")
    assert listed == {"table.csv", *(f"{name}.{end}" for name in figures for end in ("png", "svg"))}


def test_a_sweep_is_one_run_however_often_it_starts(store: Store) -> None:
    for number in range(2):
        with store.sweep_run("grid", "abc", {"jobs": 1}) as (sweep, before):
            assert before == bool(number)
            assert mlflow.get_run(sweep.run_id).info.status == "RUNNING"
            job(store, sweep.run_id, 1e-3, "adam", [])  # the job that was interrupted is run again
    assert mlflow.get_run(sweep.run_id).info.status == "FINISHED"
    runs = runs_of(store.config, "phantom")
    assert [run.stage for run in runs].count("sweep") == 1
    (row,) = rows_of_sweep(runs, sweep.run_id)
    assert row.run_id == next(run.run_id for run in runs if run.stage == "pipeline")  # the newest


def test_seeds_are_no_hyperparameter(store: Store) -> None:
    """One lucky seed does not make a configuration the best."""
    with store.sweep_run("seeds", "abc", {}) as (sweep, _):
        for lr in (1e-3, 1e-4):
            for seed in range(3):
                job(store, sweep.run_id, lr, "adam", [], seed)
        log_sweep_summary(store, sweep.run_id)
    assert {row["seed"] for row in tables(sweep.run_id)} == {"0", "1", "2"}
    by_seed = tables(sweep.run_id, "configurations.csv")
    assert [(row["lr"], row["seeds"]) for row in by_seed] == [("0.001", "3"), ("0.0001", "3")]
    note = mlflow.get_run(sweep.run_id).data.tags["mlflow.note.content"]
    assert "Best of 2 by validation" in note
    assert "mean of 3 seeds" in note
    assert "importance needs at least 16 results of 4 trainings; there are 6 of 6" in note


def test_a_stage_that_another_run_had_finished_counts(store: Store) -> None:
    """Jobs share stages: the second one's training is a child of the first."""
    first = job(store, "", 1e-3, "adam", [5])
    trained = next(run for run in runs_of(store.config, "phantom") if run.stage == "classify")
    with store.sweep_run("again", "abc", {}) as (sweep, _):
        own = open_store(store.config, "phantom")
        with own.pipeline_run("reused", {"classifier": {"epochs": 5}}, "", {PARENT: sweep.run_id}) as run:
            run.set_tags({"run/classify": trained.run_id})
    (row,) = rows_of_sweep(runs_of(store.config, "phantom"), sweep.run_id)
    assert row.metrics == {"best/val/loss": loss_of(1e-3, 5, "adam")}
    assert first != row.run_id


def test_an_empty_sweep_says_so(store: Store) -> None:
    with store.sweep_run("none", "abc", {}) as (sweep, _):
        log_sweep_summary(store, sweep.run_id)
    assert "none is called the best" in mlflow.get_run(sweep.run_id).data.tags["mlflow.note.content"]
    with pytest.raises(ValueError, match="study phantom has no run nowhere"):
        log_sweep_summary(store, "nowhere")


def row(**params: str) -> Row:
    return Row("id", "name", params, {}, "")


def test_only_what_tells_runs_apart_is_a_column() -> None:
    arms = [{"arm.name": a, "arm.guides": g, "seed": s, "dataset.seed": s, "tracking.root": s, "same": "1"}
            for a, g in (("real", "no"), ("mixed", "yes"), ("control", "no")) for s in ("0", "1")]  # fmt: skip
    rows = [row(**each) for each in arms]
    assert varying(rows) == {"arm": ["real", "real", "mixed", "mixed", "control", "control"], "seed": ["0", "1"] * 3}
    drawn = [row(**{"classifier.lr": str(i), "classifier.decay": str(-i)}) for i in range(8)]
    assert set(varying(drawn)) == {"lr", "decay"}  # all different by chance: neither follows from the other
    assert [len(each.rows) for each in configurations(rows, varying(rows))] == [2, 2, 2]


def phantom(seed: int, lr: float = 1e-3, root: str = "studies") -> Row:
    """What a phantom study's parameters say of its seed."""
    folder = f"{root}/phantom/phantom/{seed}"
    return row(**{
        "seed": str(seed), "dataset.phantom.seed": str(seed), "dataset.seed": "0", "dataset.folder": folder,
        "dataset.sources": f"[{{'folder': '{folder}', 'file': '{folder}/phantoms.csv', 'licence': 'v2'}}]",
        "disease.guides.folder": f"{folder}/guides", "classifier.lr": str(lr),
    })  # fmt: skip


def groups(rows: list[Row]) -> list[tuple[dict[str, str], int]]:
    return [(dict(each.values), len(each.rows)) for each in configurations(rows, varying(rows))]


def test_what_contains_the_seed_is_no_hyperparameter() -> None:
    alone = [phantom(seed) for seed in range(3)]
    assert groups(alone) == [({}, 3)]
    assert set(varying(alone)) == {"seed"}
    two = [phantom(seed, lr) for lr in (1e-3, 1e-4) for seed in range(5)][:-1]  # a job failed
    assert groups(two) == [({"lr": "0.001"}, 5), ({"lr": "0.0001"}, 4)]
    assert groups([phantom(seed) for seed in (2, 20, 21)]) == [({}, 3)]
    apart = [phantom(seed, root=root) for root in ("a", "b") for seed in (0, 1)]
    assert [size for _, size in groups(apart)] == [2, 2]
    assert {values["folder"] for values, _ in groups(apart)} == {
        "a/phantom/phantom/{seed}",
        "b/phantom/phantom/{seed}",
    }


def test_a_rate_for_each_seed_is_a_hyperparameter() -> None:
    """Also where budgets give every seed many rows, and where rate and seed are the same number or look like it."""
    for rates in (["0.1", "0.2", "0.3"], ["1", "2", "3"], ["1e-1", "1e-2", "1e-3"], ["1.5", "2.5", "3.5"]):
        rows = [
            row(**{"seed": str(seed), "classifier.lr": rate, "classifier.epochs": epochs})
            for seed, rate in enumerate(rates, 1)
            for epochs in ("5", "10")
        ]
        assert len(groups(rows)) == 6
        assert "lr" in varying(rows)


def test_short_names_stay_distinct() -> None:
    assert short_names(["classifier.lr", "dreambooth.lr", "arm.name", "seed"]) == {
        "classifier.lr": "classifier.lr",
        "dreambooth.lr": "dreambooth.lr",
        "arm.name": "arm",
        "seed": "seed",
    }


def test_importance_finds_what_was_planted_and_knows_when_there_is_nothing() -> None:
    rng = np.random.default_rng(0)
    columns = {name: [f"{value:.3f}" for value in rng.random(200)] for name in ("strong", "weak", "none")}
    columns["word"] = list(rng.choice(["a", "b"], 200))
    x = {name: np.array([float(value) for value in columns[name]]) for name in ("strong", "weak")}
    y = 3 * x["strong"] + x["weak"]
    groups = [str(i) for i in range(200)]
    found = importance(columns, list(y), groups)
    values = {name: mean for name, (mean, _) in found.values.items()}
    assert list(values)[:2] == ["strong", "weak"]
    # Shuffling x in a + bx costs 2 b² var(x); both are uniform.
    assert values["strong"] == pytest.approx(2 * 9 / 10, rel=0.15)
    assert values["weak"] == pytest.approx(2 * 1 / 10, rel=0.35)
    assert abs(values["none"]) < 0.02
    assert abs(values["word"]) < 0.02
    assert 0.9 < found.r2 <= r2_score(y, y)
    assert importance(columns, list(rng.random(200)), groups).r2 < 0.1
    with pytest.raises(ValueError, match="there are 200 of 2"):
        importance(columns, list(y), ["a", "b"] * 100)


def test_an_interval_of_one_seed_is_unknown() -> None:
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        (2.0, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), abs=1e-4
    )
    mean, low, high = mean_interval([1.0])
    assert mean == 1.0
    assert math.isnan(low)
    assert math.isnan(high)
