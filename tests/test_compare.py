"""Runs beside one another, from the store alone."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from test_summary import job

from synthvision.tracking.compare import CompareConfig, compare, page
from synthvision.tracking.config import PARENT, TrackingConfig
from synthvision.tracking.query import runs_of
from synthvision.tracking.store import Store, open_store


@pytest.fixture
def store(tracking_root: Path) -> Store:
    return open_store(TrackingConfig(str(tracking_root), system_metrics=False), "phantom")


def leave(store: Store, name: str, accuracy: float, seed: int = 0, sweep: str = "") -> str:
    """Leave the run of a pipeline with a tested classifier."""
    tags = {PARENT: sweep} if sweep else {}
    with store.pipeline_run(name, {"arm": {"name": name}, "seed": seed}, "", tags) as run:
        run.describe(f"synthvision arm={name} seed={seed}")
        ends = {"": accuracy, "_low": accuracy - 0.1, "_high": accuracy + 0.05}
        run.log_metrics({f"test/accuracy{end}": value for end, value in ends.items()})
        run.log_metrics({"best/val/loss": 1 - accuracy, "system/cpu": 3.0, "val/loss": 9.0})
    return run.run_id


def test_two_runs_with_their_own_intervals_the_best_by_validation_first(store: Store) -> None:
    worse, better = leave(store, "control", 0.7), leave(store, "real", 0.9)
    found = compare(store.config, "phantom", CompareConfig((worse[:12], "real")))
    assert [line.values for line in found.lines] == [{"arm": "real"}, {"arm": "control"}]
    assert [line.estimates["test/accuracy"] for line in found.lines] == [
        pytest.approx((0.9, 0.8, 0.95)),
        pytest.approx((0.7, 0.6, 0.75)),
    ]
    assert math.isnan(found.lines[0].estimates["best/val/loss"][1])
    assert found.metrics == ("test/accuracy", "best/val/loss")
    text = page(found, store.config)
    assert "http://127.0.0.1:5000/#/experiments/" in text
    assert better in text
    assert "0.800-0.950" in text
    assert "synthvision arm=real seed=0" in text
    assert text.count("<svg") == 1
    assert page(compare(store.config, "phantom", CompareConfig((worse[:12], "real"))), store.config) == text


def test_seeds_become_one_line_with_an_interval(store: Store) -> None:
    with store.sweep_run("arms", "d", {}) as (sweep, _):
        for seed, accuracy in enumerate((0.8, 0.9, 0.85)):
            leave(open_store(store.config, "phantom"), "real", accuracy, seed, sweep.run_id)
        leave(open_store(store.config, "phantom"), "control", 0.7, 0, sweep.run_id)
    found = compare(store.config, "phantom", CompareConfig(sweep="arms"))
    assert [(line.name, line.n) for line in found.lines] == [("arm real", 3), ("arm control", 1)]
    half = 4.302653 * 0.05 / 3**0.5
    assert found.lines[0].estimates["test/accuracy"] == pytest.approx((0.85, 0.85 - half, 0.85 + half), abs=1e-6)


def test_budgets_are_lines(store: Store) -> None:
    with store.sweep_run("grid", "d", {}) as (sweep, _):
        job(store, sweep.run_id, 1e-3, "adam", [2, 5])
        job(store, sweep.run_id, 1e-4, "adam", [2, 5])
    found = compare(store.config, "phantom", CompareConfig(sweep=sweep.run_id[:8], metrics=("best/val/loss",)))
    assert [line.values for line in found.lines] == [
        {"lr": "0.001", "epochs": "5"},
        {"lr": "0.001", "epochs": "2"},
        {"lr": "0.0001", "epochs": "5"},
        {"lr": "0.0001", "epochs": "2"},
    ]


def test_both_ways_of_reading_the_store_agree(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL on the embedded database, and MLflow's own interface, which a server has."""
    from synthvision.tracking import query

    leave(store, "real", 0.9)
    with store.stage_run("classify", {"long": "x" * 5_000}, "", {}) as run:
        run.log_metrics({"nan": math.nan, "inf": math.inf})
        run.write([("loss", 2.0, 2, 1), ("loss", 1.0, 1, 0)])
    by_sql = runs_of(store.config, "phantom")
    monkeypatch.setattr(query, "_from_file", query._from_server)
    by_mlflow = runs_of(store.config, "phantom")
    assert len(by_sql) == 2
    assert math.isnan(by_sql[0].metrics.pop("nan"))
    assert math.isnan(by_mlflow[0].metrics.pop("nan"))
    assert by_sql == by_mlflow


def test_what_cannot_be_compared_is_named(store: Store) -> None:
    leave(store, "real", 0.9)
    leave(store, "real", 0.8, seed=1)

    def ask(**values: object) -> None:
        compare(store.config, "phantom", CompareConfig(**values))  # type: ignore[arg-type]

    with pytest.raises(ValueError, match=r"either stage\.runs=.*or stage\.sweep=NAME"):
        ask()
    with pytest.raises(ValueError, match=r"stage\.runs: study=phantom has no run 'nope'; the newest are: real \("):
        ask(runs=("nope",))
    with pytest.raises(ValueError, match=r"stage\.runs: 2 runs of study=phantom are called 'real'; name one by its id"):
        ask(runs=("real",))
    with pytest.raises(ValueError, match=r"stage\.sweep: study=phantom has no sweep 'x'; the newest are: none"):
        ask(sweep="x")
    run_id = runs_of(store.config, "phantom")[0].run_id
    with pytest.raises(ValueError, match=r"stage\.metrics must be of those.*'test/accuracy'.*it has \['test/f1'\]"):
        ask(runs=(run_id,), metrics=("test/f1",))
    with pytest.raises(ValueError, match=r"study=other has no runs in .*there are \['phantom'"):
        compare(store.config, "other", CompareConfig(("x",)))


def test_the_command_prints_a_table_and_writes_a_page(store: Store, tmp_path: Path) -> None:
    ids = [leave(store, "control", 0.7), leave(store, "real", 0.9)]
    asked = [f"stage.runs=[{','.join(ids)}]", f"tracking.root={store.config.root}"]
    command = [sys.executable, "-X", "importtime", "-m", "synthvision", "stage=compare", *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "control" in done.stdout
    assert "0.900" in done.stdout
    assert "0.800-0.950" in done.stdout
    (file,) = (tmp_path / "studies" / "phantom" / "compare").glob("*.html")
    assert str(file) in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & {"mlflow", "torch", "pandas", "sklearn"}  # it answers at once
