"""A sweep's saved view, as MLflow's own UI shows it."""

import re
import shutil
from pathlib import Path

import mlflow
import pytest
from playwright.sync_api import Browser, sync_playwright
from servers import Server

from synthvision.tracking.config import OF_SWEEP, PARENT, TrackingConfig
from synthvision.tracking.store import Store, open_store
from synthvision.tracking.summary import log_sweep_summary

LOSSES = {(1e-2, 2): 0.5, (1e-2, 5): 0.45, (1e-3, 2): 0.3, (1e-3, 5): 0.4}  # (rate, epochs) -> validation loss


def train(store: Store, sweep: str, lr: float, budgets: tuple[int, ...]) -> None:
    params = {"classifier": {"lr": lr, "epochs": 5, "batch_size": 32}, "arm": {"name": "real_only"}}
    own, tags = open_store(store.config, store.study), {OF_SWEEP: sweep}
    with own.pipeline_run(f"lr={lr}", params, "", {**tags, PARENT: sweep, "job": str(lr)}) as job:
        with own.stage_run("classify", params, "", tags):
            for epochs in budgets:
                with own.budget_run(epochs, params, tags) as read_off:
                    read_off.log_metrics({"best/val/loss": LOSSES[lr, epochs]})
        job.log_metrics({"best/val/loss": LOSSES[lr, 5]})


def link_of_a_sweep(store: Store, name: str, budgets: tuple[int, ...]) -> str:
    """Run a sweep and return where its note says that its table is."""
    with store.sweep_run(name, name, {}) as (sweep, _):
        for lr in (1e-2, 1e-3):
            train(store, sweep.run_id, lr, budgets)
        log_sweep_summary(store, sweep.run_id)
    note = mlflow.get_run(sweep.run_id).data.tags["mlflow.note.content"]
    found = re.search(rf"\[view \*{name}\*\]\((.*?)\)", note)
    assert found
    return found.group(1)


def table(browser: Browser, address: str) -> tuple[list[str], set[str]]:
    """Return the runs that the UI shows there, from the top, and the columns of their metrics and parameters."""
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.goto(address)
    page.locator("[row-index] a[href*='/runs/']").first.wait_for(timeout=60_000)
    page.locator("[role=columnheader][col-id*='best/val/loss']").first.wait_for(timeout=60_000)
    rows = page.locator("[row-index]:has(a)").all()
    names = {int(row.get_attribute("row-index") or 0): row.locator("a").first.inner_text() for row in rows}
    columns = {
        column.get_attribute("col-id") or "" for column in page.locator("[role=columnheader][col-id*='`']").all()
    }
    return [names[place] for place in sorted(names)], columns - {"attributes.`Run Name`"}


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH; .ci/run installs Debian's")
def test_the_ui_shows_what_varies_and_the_best_first(tracking_root: Path) -> None:
    server = Server(f"sqlite:///{tracking_root / 'mlflow.db'}", tracking_root / "server")
    store = open_store(TrackingConfig(str(tracking_root), ui=server.address, system_metrics=False), "phantom")
    rates, grid = link_of_a_sweep(store, "rates", ()), link_of_a_sweep(store, "grid", (2, 5))
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            found = [table(browser, address) for address in (rates, grid)]
            browser.close()
    finally:
        server.kill()
    metric, rate, epochs = "metrics.`best/val/loss`", "params.`classifier.lr`", "params.`classifier.epochs`"
    assert found == [
        (["lr=0.001", "lr=0.01"], {metric, rate}),
        (["lr=0.001, epoch 2", "lr=0.001, epoch 5", "lr=0.01, epoch 5", "lr=0.01, epoch 2"], {metric, rate, epochs}),
    ]
