"""A sweep's results as a table of the MLflow UI: a saved view with what varies and the metrics as columns.

MLflow keeps a view as a tag of the experiment, in a form that is the UI's own; `tests/test_view.py` opens one in a
browser.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from synthvision.tracking.config import OF_SWEEP
from synthvision.tracking.query import RunData
from synthvision.tracking.rows import Row, is_less_better, telling, usual_metrics, validation_metric

MOST_COLUMNS = 20  # of parameters; a tag holds 5,000 characters


def view_of(sweep: RunData, rows: Sequence[Row], runs: Sequence[RunData]) -> str:
    """Return a sweep's view for `Store.save_view`: its jobs or, where all results are its budgets, these.

    The best by validation is on top. A job that failed stays in the table, without metrics.

    Args:
        sweep: the sweep's run.
        rows: its results.
        runs: of the study.
    """
    metric = validation_metric(rows)
    budgets = {run.run_id for run in runs if run.stage == "budget" and run.tags.get(OF_SWEEP) == sweep.run_id}
    columns = [f"params.`{key}`" for key in telling(rows)][:MOST_COLUMNS]
    stage = "budget" if {row.run_id for row in rows} <= budgets else "pipeline"
    state = {
        "searchFilter": f"tags.{OF_SWEEP} = '{sweep.run_id}' and tags.stage = '{stage}'",
        "orderByKey": f"metrics.`{metric}`" if metric else "attributes.start_time",
        "orderByAsc": bool(metric and is_less_better(metric)),
        "selectedColumns": [*(f"metrics.`{name}`" for name in usual_metrics(rows)), *columns],
    }
    view = {"name": sweep.name, "createdAt": sweep.start, "updatedAt": sweep.start, "state": json.dumps(state)}
    return json.dumps(view)
