"""Many processes log at once: every row is there, and none twice."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from servers import Postgres, Server, initdb

from synthvision.tracking.config import TrackingConfig

STEPS, METRICS = 150, 4
# Forked after the imports, which would take each of the processes seconds; before any of them touches the store.
CODE = """
    import os, sys
    from synthvision.tracking.config import TrackingConfig
    from synthvision.tracking.store import open_store
    root, server, processes = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
    config = TrackingConfig(root, server, patience=120, system_metrics=False)
    children = []
    for number in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        with open_store(config, "phantom").stage_run("classify", {"seed": number}, "", {}) as run:
            for step in range(STEPS):
                run.write([(f"metric/{name}", number + step / 1_000, step, step) for name in range(METRICS)])
        os._exit(0)
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    database = Postgres()
    database.start()
    yield database
    database.stop()


def log_from(processes: int, root: Path, server: str) -> None:
    code = textwrap.dedent(CODE).replace("STEPS", str(STEPS)).replace("METRICS", str(METRICS))
    command = [sys.executable, "-c", code, str(root), server, str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check(database: str, processes: int) -> None:
    """Compare every row of the database with what was logged."""
    engine = sqlalchemy.create_engine(database)
    with engine.connect() as connection:
        query = """select p.value, m.key, m.value, m.timestamp, m.step
            from metrics m join params p on p.run_uuid = m.run_uuid and p.key = 'seed'"""
        rows = sorted((int(row[0]), *row[1:]) for row in connection.execute(sqlalchemy.text(query)))
        statuses = [row[0] for row in connection.execute(sqlalchemy.text("select status from runs"))]
    engine.dispose()
    assert statuses == ["FINISHED"] * processes
    expected = [
        (number, f"metric/{name}", number + step / 1_000, step, step)
        for number in range(processes)
        for name in range(METRICS)
        for step in range(STEPS)
    ]
    assert rows == expected


@pytest.mark.skipif(not initdb(), reason="no PostgreSQL; .ci/run installs Debian's")
def test_sixteen_processes_on_a_server_with_postgresql(postgres: Postgres, tmp_path: Path) -> None:
    server = Server(postgres.database, tmp_path / "server")
    server.start()
    try:
        log_from(16, tmp_path / "mlruns", server.address)
        check(postgres.database, 16)
    finally:
        server.kill()


def test_eight_processes_on_the_embedded_store(tmp_path: Path) -> None:
    """From an empty folder: the first of them makes the database."""
    log_from(8, tmp_path / "mlruns", "")
    check(TrackingConfig(str(tmp_path / "mlruns")).uri, 8)
