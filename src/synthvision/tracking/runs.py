"""One run that is open: whatever it is given goes into the journal, so that no server can hold up or stop the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.pandas_dataset import from_pandas
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from synthvision import __version__
from synthvision.manifest import COLUMNS, Manifest
from synthvision.tracking.config import COMMAND_TAG, NOTE_TAG, flatten
from synthvision.tracking.journal import Journal

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pytorch_lightning.loggers.logger import Logger

PARAM_LENGTH = 6_000  # MLflow's limit for a parameter's value
ALIASES = ("optimizer.",)  # begin keys that others repeat (classifier.optimizer): one column for one choice
PARAM_BATCH = 100  # MLflow's limit per call
DIGEST_LENGTH = 36  # MLflow's limit for a data set's digest
MODEL_NAME = "classifier"
SAID = {  # what the classifier answers beside a probability per class; see served.py
    "decision": DataType.string,
    "calibrated": DataType.double,
    "foreign": DataType.boolean,
    "quality": DataType.string,
}
_Item = TypeVar("_Item")


class Run:
    """One MLflow run that is open; made by `Store.pipeline_run` and `Store.stage_run`.

    Args:
        run_id: MLflow's, or a name of its own where the server was away when the run began.
        name: as the UI shows it.
        append: takes entries of the journal.
        journal: keeps files on their way.
    """

    def __init__(self, run_id: str, name: str, append: Callable[[dict[str, Any]], None], journal: Journal) -> None:
        self.run_id = run_id
        self.name = name
        self._append = append
        self._journal = journal

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; existing ones of the same name are replaced."""
        if tags:
            self._log("tags", values={key: str(value) for key, value in tags.items()})

    def note(self, markdown: str) -> None:
        """Set the description that the UI shows above the run."""
        self.set_tags({NOTE_TAG: markdown})

    def describe(self, command: str) -> None:
        """Say by which command the run is remade, in its note and in a tag."""
        self.set_tags({COMMAND_TAG: command, NOTE_TAG: f"Remake it:\n\n```\n{command}\n```\n"})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log nested values as flat parameters (`classifier.lr`); a longer value is cut at 6,000 characters."""
        flat = {key: value for key, value in flatten(values).items() if not key.startswith(ALIASES)}
        params = [(key, str(value)[:PARAM_LENGTH]) for key, value in flat.items()]
        for batch in _batches(params, PARAM_BATCH):
            self._log("params", values=dict(batch))

    def log_bytes(self, name: str, data: bytes, folder: str = "") -> None:
        """Store a file of this content as an artifact."""
        key, file = self._journal.make(name)
        file.write_bytes(data)
        self._log("artifact", file=key, folder=folder)

    def log_config(self, text: str) -> None:
        """Store the resolved config as `config.yaml`."""
        self.log_bytes("config.yaml", text.encode())

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log values at one step."""
        now = time.time_ns() // 1_000_000
        self.write([(name, float(value), now, step) for name, value in values.items()])

    def write(self, rows: Sequence[tuple[str, float, int, int]]) -> None:
        """Log (name, value, time in milliseconds, step)."""
        if rows:
            self._log("metrics", rows=rows)

    def log_manifest(self, manifest: Manifest, name: str, context: str) -> None:
        """Record a data set: its name, content digest, columns and size, but no image and no row.

        Args:
            manifest: the images.
            name: searchable as `datasets.name = '…'`.
            context: what it was used for: "guides", "training", "validation", "testing".
        """
        import pandas as pd

        frame = pd.DataFrame({column: manifest.column(column) for column in COLUMNS}, dtype=object)
        source = CodeDatasetSource(tags={"study": manifest.root.name})  # no path: it says nothing to another machine
        digest = manifest.digest()[:DIGEST_LENGTH]
        self._log(
            "input", dataset=from_pandas(frame, source=source, name=name, digest=digest).to_dict(), context=context
        )

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a file, or all that lies in a folder, as an artifact."""
        self._log("artifact", file=self._journal.keep(path), folder=folder)

    def log_classifier(self, weights: Path, classes: Sequence[str], example: NDArray[np.uint8]) -> None:
        """Log a classifier that `mlflow.pyfunc.load_model("runs:/RUN_ID/classifier")` loads and that predicts with.

        Args:
            weights: folder with model.safetensors and model.json.
            classes: the columns of its answer.
            example: some images, uint8 (N, H, W, 3).
        """
        images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), name=None)
        answer: list[ColSpec | TensorSpec] = [ColSpec(DataType.double, name) for name in classes]
        answer += [ColSpec(kind, name) for name, kind in SAID.items()]
        key, folder = self._journal.make(MODEL_NAME)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module="synthvision.served",  # code of the installed package; a pickled model could run anything
            data_path=str(weights),
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema(answer)),
            input_example=example,
            pip_requirements=[f"synthvision=={__version__}"],
        )
        self._log("model", file=key, name=MODEL_NAME)

    def lightning_logger(self) -> Logger:
        """Return a Lightning logger that writes into this run and leaves its status alone."""
        from synthvision.metric_logger import MetricLogger  # Lightning takes seconds to import

        return MetricLogger(self.run_id, self.write)

    def _log(self, op: str, **values: Any) -> None:
        self._append({"op": op, "run": self.run_id, **values})


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
