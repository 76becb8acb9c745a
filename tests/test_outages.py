"""What a tracking server that dies, freezes or comes back does to a run: nothing, and no row is lost or doubled."""

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import Run as MlflowRun
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import Logger
from servers import Server
from test_cli import STAND_IN
from torch.utils.data import DataLoader

from synthvision.tracking.config import OF_SWEEP, PARENT, TrackingConfig, without_passwords
from synthvision.tracking.journal import Journal, left_behind
from synthvision.tracking.store import open_store, sync

STEPS = 40


@pytest.fixture(scope="module")
def the_server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests, since it takes seconds to start; its database has MLflow's tables already."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "server.db")
    server = Server(f"sqlite:///{folder / 'server.db'}", folder)
    server.start()
    yield server
    server.kill()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def server(the_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that answers, with clients that give up early on one that does not."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    if not the_server.answers():
        the_server.start()
    return the_server


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    """Every test has a study of its own on the server."""
    return str(request.node.name)


@pytest.fixture
def config(server: Server, tmp_path: Path) -> TrackingConfig:
    root = str(tmp_path / "mlruns")
    return TrackingConfig(root, server.address, None, patience=0.5, system_metrics_interval=0.05)


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class At(Callback):
    """Does something to the server in the middle of the training."""

    def __init__(self, does: dict[int, object]) -> None:
        self.does = does

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        action = self.does.get(trainer.global_step)
        if callable(action):
            action()


def fit(logger: Logger, does: dict[int, object], folder: Path) -> None:
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, log_every_n_steps=1, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, callbacks=[At(does)],
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(STEPS, 1)))


def rows(server: Server, study: str) -> list[tuple[str, float, int, int]]:
    """Return the server's (name, value, time, step) of a training, as they lie in its database."""
    query = """select m.key, m.value, m.timestamp, m.step
        from metrics m join runs r on r.run_uuid = m.run_uuid join experiments e on e.experiment_id = r.experiment_id
        where m.key = 'train/loss' and e.name = ? order by m.step, m.timestamp"""
    with sqlite3.connect(server.database.removeprefix("sqlite:///")) as database:
        return database.execute(query, [study]).fetchall()


def spooled(config: TrackingConfig) -> list[tuple[str, float, int, int]]:
    """Return all rows of a training that the journals hold, sent or not."""
    lines = [line for file in sorted(config.spool.glob("*.ndjson")) for line in file.read_text().splitlines()]
    found = [row for line in lines for row in json.loads(line).get("rows", ())]
    return [tuple(row) for row in found if row[0] == "train/loss"]


def runs(config: TrackingConfig, study: str) -> dict[str, MlflowRun]:
    client = mlflow.MlflowClient(config.uri)
    found = client.search_runs([client.get_experiment_by_name(study).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)  # none was made twice
    return {str(run.info.run_name): run for run in found}


def test_a_server_killed_in_training_costs_nothing(
    server: Server, config: TrackingConfig, study: str, tmp_path: Path
) -> None:
    """Killed at step 20: the rest of this stage and a stage that begins meanwhile arrive by sync, once."""
    store = open_store(config, study)
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    with store.pipeline_run("seed 0", {"seed": 0}, "seed: 0\n", {}) as parent:
        with store.stage_run("classify", {"lr": 0.1}, "", {}) as run:
            fit(run.lightning_logger(), {STEPS // 2: server.kill}, tmp_path)
            run.log_metrics({"best/val/loss": 0.25})
            run.set_tags({"done": "yes"})
            run.log_file(tmp_path / "history.csv")
        with store.stage_run("evaluate", {"n": 7}, "", {}) as later:
            later.log_metrics({"test/auc": 0.9})
        parent.log_metrics({"test/auc": 0.9})
    assert not server.answers()
    logged = spooled(config)
    assert [row[3] for row in logged] == list(range(STEPS))
    (tmp_path / "history.csv").unlink()  # what was logged is safe from what happens to the study's folder
    (journal,) = config.spool.glob("*.ndjson")
    copy = tmp_path / "copy"
    shutil.copytree(config.spool, copy)

    server.start()
    started = time.time() * 1_000
    assert len(rows(server, study)) < STEPS
    done = sync(config)
    assert (done.journals, done.refused) == (1, 0)
    assert rows(server, study) == logged
    found = runs(config, study)
    assert {name: each.info.status for name, each in found.items()} == dict.fromkeys(found, "FINISHED")
    assert found["classify"].info.run_id == run.run_id
    assert found["classify"].data.tags["done"] == "yes"
    assert found["classify"].data.metrics["best/val/loss"] == 0.25
    text = mlflow.artifacts.load_text(f"{found['classify'].info.artifact_uri}/history.csv")
    assert text == "epoch\n1\n"
    assert found["evaluate"].data.metrics["test/auc"] == 0.9
    assert found["evaluate"].data.params == {"n": "7"}
    assert found["evaluate"].data.tags["mlflow.parentRunId"] == found["seed 0"].info.run_id
    assert found["evaluate"].info.end_time < started
    assert sync(config).entries == 0
    assert list(config.spool.glob("*.ndjson")) == []

    # Once more, as after answers that were lost: the server has it all, and we know only what we had known before.
    shutil.copy(copy / journal.name, journal)
    shutil.copytree(copy / f"{journal.stem}.files", journal.with_suffix(".files"))
    shutil.copy(copy / f"{journal.stem}.sent", journal.with_suffix(".sent"))
    assert sync(config).rows > STEPS / 2
    assert rows(server, study) == logged
    assert {each.info.status for each in runs(config, study).values()} == {"FINISHED"}


def test_a_server_that_comes_back_gets_the_rest_at_once(
    server: Server, config: TrackingConfig, study: str, tmp_path: Path
) -> None:
    config = TrackingConfig(config.root, server.address, None, patience=60, system_metrics=False)
    with open_store(config, study).stage_run("classify", {}, "", {}) as run:
        fit(run.lightning_logger(), {10: server.kill, 30: server.start}, tmp_path)
    assert [row[3] for row in rows(server, study)] == list(range(STEPS))
    assert runs(config, study)["classify"].info.status == "FINISHED"
    assert list(config.spool.glob("*.ndjson")) == []


def test_an_outage_is_waited_for_once_in_a_process(server: Server, config: TrackingConfig, study: str) -> None:
    """The second run is patient, but the first has waited: it leaves its entries, with the server on its way."""
    store = open_store(config, study)
    server.kill()
    with store.stage_run("first", {}, "", {}):
        pass
    store.config = replace(config, patience=600)
    with store.stage_run("second", {}, "", {}):
        comes_back = threading.Thread(target=server.start)
        comes_back.start()
    assert len(list(config.spool.glob("*.ndjson"))) == 2
    comes_back.join()
    store = open_store(store.config, study)  # it answers again, so the end of a run is waited for again
    with store.stage_run("third", {}, "", {}):
        pass
    until_nothing_waits(config)
    assert set(runs(config, study)) == {"first", "second", "third"}


def test_a_frozen_server_holds_nobody(server: Server, config: TrackingConfig, study: str, tmp_path: Path) -> None:
    """It takes connections and never answers: what asks it must not wait for it."""
    store = open_store(config, study)
    with store.stage_run("classify", {}, "", {}) as run:
        fit(run.lightning_logger(), {10: lambda: server.signal(signal.SIGSTOP)}, tmp_path)
    assert [row[3] for row in spooled(config)] == list(range(STEPS))
    server.signal(signal.SIGCONT)
    until_nothing_waits(config)
    assert [row[3] for row in rows(server, study)] == list(range(STEPS))
    assert runs(config, study)["classify"].info.status == "FINISHED"


def until_nothing_waits(config: TrackingConfig) -> None:
    """Sync until the thread that a frozen server held has let its journal go."""
    while list(config.spool.glob("*.ndjson")):
        sync(config)
        time.sleep(0.1)


def test_a_run_killed_in_an_outage_arrives_and_is_called_killed(
    server: Server, config: TrackingConfig, study: str
) -> None:
    code = """
        import os, signal, sys
        from synthvision.tracking.config import TrackingConfig
        from synthvision.tracking.store import open_store
        config = TrackingConfig(sys.argv[1], sys.argv[2], None, system_metrics=False)
        with open_store(config, sys.argv[3]).stage_run("classify", {}, "", {}) as run:
            print(run.run_id, flush=True)
            sys.stdin.readline()
            for step in range(40):
                run.write([("train/loss", 0.5, 1_000 + step, step)])
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), config.root, server.address, study]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        server.signal(signal.SIGSTOP)
        process.communicate("go\n")
    server.signal(signal.SIGCONT)
    asked = ["tracking=server", f"tracking.server={server.address}", f"tracking.root={config.root}", "stage=sync"]
    command = [sys.executable, "-m", "synthvision", *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"sent \d+ entries, 40 of them metric rows, to http://127", done.stdout)
    assert rows(server, study) == [("train/loss", 0.5, 1_000 + step, step) for step in range(40)]
    assert runs(config, study)["classify"].info.status == "KILLED"


def test_what_a_store_refuses_is_kept_and_the_rest_arrives(
    config: TrackingConfig, study: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_store(config, study).stage_run("classify", {"lr": 1}, "", {}) as run:
        run.log_params({"lr": 2})  # a parameter cannot change
        run.write([("good", 1.0, 0, 0)])
        run.write([("bad\nname", 1.0, 0, 0)])
    found = runs(config, study)["classify"]
    assert found.info.status == "FINISHED"
    assert found.data.metrics["good"] == 1.0
    refused = [json.loads(line) for line in config.refused.read_text().splitlines()]
    assert [each["op"] for each in refused] == ["params", "metrics"]
    assert "refused, and kept in" in caplog.text


def test_a_server_never_met_must_answer_before_work_begins(tmp_path: Path) -> None:
    config = TrackingConfig(str(tmp_path), "http://doctor:s3cret@127.0.0.1:9", None)
    with pytest.raises(
        ConnectionError, match=r"tracking\.server=http://127\.0\.0\.1:9 does not answer.*tracking=local"
    ):
        open_store(config, "phantom")
    with pytest.raises(ConnectionError, match=r"does not answer"):
        sync(config)


def test_an_outage_before_the_start_of_a_known_study(server: Server, config: TrackingConfig, study: str) -> None:
    """As for the later jobs of a sweep."""
    open_store(config, study)
    server.signal(signal.SIGSTOP)
    begun = time.time() * 1_000
    with open_store(config, study).stage_run("classify", {"lr": 1}, "", {}) as run:
        run.log_metrics({"best/val/loss": 0.5})
    ended = time.time() * 1_000
    server.signal(signal.SIGCONT)
    until_nothing_waits(config)
    found = runs(config, study)["classify"]
    assert found.data.metrics["best/val/loss"] == 0.5
    assert found.data.params == {"lr": "1"}
    assert begun <= found.info.start_time <= found.info.end_time <= ended


def sweep(config: TrackingConfig, study: str, folder: Path) -> list[str]:
    """Start a sweep of three jobs, or go on with it; return the seeds of the jobs that ran."""
    body = "import os; study.seed != 1 or os.path.exists('mended') or 1 / 0"
    code = textwrap.dedent(STAND_IN.replace("BODY", body))
    settings = ["tracking=server", f"tracking.server={config.uri}", f"tracking.root={config.root}",
                "tracking.patience=0.5", "tracking.system_metrics=false"]  # fmt: skip
    command = [sys.executable, "-c", code, "-m", "seed=0,1,2", f"study={study}", *settings]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == (0 if (folder / "mended").exists() else 1), done.stderr
    return re.findall(rf"RUN pipeline {study} (\d)", done.stdout)


def test_a_sweep_goes_on_in_an_outage_with_what_is_missing(
    server: Server, config: TrackingConfig, tmp_path: Path
) -> None:
    assert sweep(config, "swept", tmp_path) == ["0", "1", "2"]
    server.kill()
    (tmp_path / "mended").touch()
    assert sweep(config, "swept", tmp_path) == ["1"]
    server.start()
    sync(config)
    found = mlflow.MlflowClient(config.uri).search_runs([open_store(config, "swept").experiment_id])
    (above,) = [run for run in found if run.data.tags.get("stage") == "sweep"]
    jobs = {(run.info.run_name, run.info.status): run.data.tags["mlflow.parentRunId"] for run in found if run != above}
    named = {("seed 0", "FINISHED"), ("seed 1", "FAILED"), ("seed 1", "FINISHED"), ("seed 2", "FINISHED")}
    assert jobs == dict.fromkeys(named, above.info.run_id)
    assert above.info.status == "FINISHED"


def test_a_sweep_that_began_in_an_outage_is_known_until_the_store_says_otherwise(
    server: Server, config: TrackingConfig, study: str
) -> None:
    store = open_store(config, study)

    def start(known: str | None) -> tuple[str, bool]:
        with store.sweep_run("grid", "digest", {}, known) as (run, before):
            return run.run_id, before

    server.kill()
    offline, before = start(None)
    assert not before
    assert start(offline) == (offline, True)
    server.start()
    arrived, before = start(offline)
    assert before
    assert runs(config, study)["grid"].info.run_id == arrived
    mlflow.MlflowClient(config.uri).delete_run(arrived)
    for deleted in (offline, arrived):
        again, before = start(deleted)
        assert not before
        mlflow.MlflowClient(config.uri).delete_run(again)


def test_a_job_of_a_sweep_that_began_in_an_outage_names_the_sweep_that_arrived(
    server: Server, config: TrackingConfig, study: str
) -> None:
    store, own = open_store(config, study), open_store(config, study)
    server.kill()
    with store.sweep_run("grid", "digest", {}) as (sweep, _):
        below = {PARENT: sweep.run_id, OF_SWEEP: sweep.run_id}
        with own.pipeline_run("seed 0", {"seed": 0}, "seed: 0\n", below):
            pass
    server.start()
    sync(config)
    found = runs(config, study)
    assert {found["seed 0"].data.tags[tag] for tag in below} == {found["grid"].info.run_id}


PASSWORD_CODE = """
    import sys
    from types import SimpleNamespace
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Study:
        study: str

    def run(study, stage, resolved, overrides, tracking, *_):
        from synthvision.tracking.store import open_store
        store = open_store(tracking, study.study)
        with store.pipeline_run("p", resolved, str(resolved), {"command": overrides}) as run:
            print(run.run_id, stage, resolved, overrides, tracking, flush=True)
            raise RuntimeError

    sys.modules["synthvision.study"] = SimpleNamespace(Study=Study)
    sys.modules["synthvision.pipeline"] = SimpleNamespace(run=run, Swept=None)
    from synthvision.cli import main
    sys.exit(main())
"""


def test_a_password_is_nowhere(server: Server, study: str, tmp_path: Path) -> None:
    """Not in what is said, which in a failing job is much, nor in any file; wherever the address came from."""
    command = [sys.executable, "-c", textwrap.dedent(PASSWORD_CODE), f"study={study}"]
    said = ""
    for address in (server.address, "http://127.0.0.1:9"):
        secret = address.replace("//", "//doctor:s3cret@")
        (tmp_path / "mine" / "tracking").mkdir(parents=True, exist_ok=True)
        mine = f"defaults: [server]\nserver: {secret}\n"
        (tmp_path / "mine" / "tracking" / "mine.yaml").write_text(mine)
        for arguments in (["tracking=server", f"tracking.server={secret}"], ["tracking=mine", "--config-dir", "mine"]):
            done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 1
            said += done.stdout + done.stderr
    assert said.count("***@") >= 1  # a user's own file
    assert said.count("does not answer") == 2
    assert said.count("RuntimeError") >= 2
    assert "s3cret" not in said
    (tmp_path / "mine" / "tracking" / "mine.yaml").unlink()
    files = [path for folder in (tmp_path, server.folder) for path in folder.rglob("*") if path.is_file()]
    assert {"server.db", "server.log", "config.yaml", "experiments.json"} <= {path.name for path in files}
    assert [path for path in files if b"s3cret" in path.read_bytes()] == []


def test_passwords_are_blotted_out_of_any_text() -> None:
    values = {"a": ["tracking.server=https://me:p@ss@host/x", 3], "b": "postgresql://u:p@h/db and a@b"}
    assert without_passwords(values) == {
        "a": ["tracking.server=https://***@host/x", 3],
        "b": "postgresql://***@h/db and a@b",
    }


def test_a_journal_survives_being_cut_short(tmp_path: Path) -> None:
    journal = Journal.new(tmp_path)
    for number in range(3):
        journal.append({"op": "metrics", "rows": [["x", float(number), 0, number]]})
    (_, first), *_ = journal.waiting()
    journal.acknowledge(first)
    assert list(left_behind(tmp_path)) == []  # held by us
    journal.close()
    with journal.file.open("ab") as end:
        end.write(b'{"op": "metr')
    (found,) = left_behind(tmp_path)
    assert [entry["rows"][0][1] for entry, _ in found.waiting()] == [1.0, 2.0]
    found.acknowledge([end for _, end in found.waiting()][-1])
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_file_stays_as_it_was(tmp_path: Path) -> None:
    journal = Journal.new(tmp_path / "spool")
    file = tmp_path / "figures" / "a.txt"
    file.parent.mkdir()
    file.write_text("first")
    alone, folder = journal.keep(file), journal.keep(file.parent)
    file.unlink()
    file.write_text("second")
    assert journal.kept(alone).read_text() == "first"
    assert (journal.kept(folder) / "a.txt").read_text() == "first"
    journal.drop(alone)
    assert not journal.kept(alone).exists()
