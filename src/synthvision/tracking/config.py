"""Where runs are kept, and which of them gets a name. No MLflow here: a config is made long before it is needed."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

VALIDATION = "best/val/"  # begins the metrics that a model may be chosen by
NOTE_TAG = "mlflow.note.content"
VALIDATED_ON = "validation"  # context of the data set that a model may be chosen by
COMMAND_TAG = "command"  # remakes the run
PARENT = "mlflow.parentRunId"
JOB_TAG = "job"  # identity of a sweep's job, on each run that a start of the sweep gave it
OF_SWEEP = "of_sweep"  # run of the sweep, on its jobs and all below them
KEY_TAG = "journal_key"  # names a run before the server gave it an id
OFFLINE = "offline-"  # begins such a name
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*@")


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are kept: `conf/tracking/*.yaml`.

    Raises:
        ValueError: a value breaks its rule; the message names the key, and never a password.
    """

    root: str = (
        "mlruns"  # folder of mlflow.db and artifacts/, and of what waits to be sent; relative to the current one
    )
    # A team's MLflow server; None: the embedded store. It may hold user and password, hence no repr.
    server: str | None = field(default=None, repr=False)
    ui: str | None = "http://127.0.0.1:5000"  # where reports expect the UI when they link to a run; None: the server
    patience: float = 20.0  # seconds that the end of a run waits for a store that does not answer
    system_metrics: bool = True
    system_metrics_interval: float = 5.0  # seconds between two samples of CPU, memory and GPU

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("tracking.root must name a folder; it is empty. Set tracking.root=mlruns")
        if self.server is not None and not (_is_address(self.server) and urlsplit(self.server).hostname):
            raise ValueError(
                "tracking.server must begin with http:// or https:// and name a host; it is "
                f"{without_passwords(self.server)!r}. Set tracking.server=http://HOST:PORT or MLFLOW_TRACKING_URI, "
                "or keep runs here with tracking=local"
            )
        if not _is_address(self.address):
            raise ValueError(f"tracking.ui must begin with http:// or https:// and name a host; it is {self.ui!r}")
        if self.patience < 0:
            raise ValueError(f"tracking.patience must be 0 seconds or more; it is {self.patience}")
        if self.system_metrics_interval <= 0:
            value = self.system_metrics_interval
            raise ValueError(f"tracking.system_metrics_interval must be above 0 seconds; it is {value}")

    @property
    def folder(self) -> Path:
        """The local folder, absolute."""
        return Path(self.root).absolute()

    @property
    def database(self) -> Path:
        """The embedded store's file; a server's lies elsewhere."""
        return self.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        """The tracking URI, which works from any folder and holds no password."""
        if self.server is None:
            return f"sqlite:///{self.database}"
        return split_credentials(self.server.rstrip("/"))[0]

    @property
    def credentials(self) -> tuple[str, str] | None:
        """User and password of the server's address, if it holds them."""
        return split_credentials(self.server or "")[1]

    @property
    def place(self) -> str:
        """Where runs are kept, in words."""
        return str(self.folder) if self.server is None else self.uri

    @property
    def address(self) -> str:
        """Where the UI is."""
        return (self.uri if self.ui is None else self.ui).rstrip("/")

    @property
    def spool(self) -> Path:
        """The folder of journals on their way to this store: what waits for one server is never sent to another."""
        return self.folder / "spool" / hashlib.sha256(self.uri.encode()).hexdigest()[:8]

    @property
    def refused(self) -> Path:
        """The file of entries that the store refused for good, with its reasons."""
        return self.spool / "refused.jsonl"

    def ui_command(self, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
        """Return the command that opens the MLflow UI on the embedded store, from any folder."""
        server = ["--host", host, "--port", str(port), "--workers", "1"]
        return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", self.uri, *server]


@dataclass(frozen=True)
class RegistryConfig:
    """Which run's classifier gets a name: `conf/stage/register.yaml`.

    Raises:
        ValueError: a value breaks its rule; the message names the key.
    """

    model: str
    alias: str = "best"
    metric: str = f"{VALIDATION}loss"
    greatest: bool = False
    arm: str | None = None

    def __post_init__(self) -> None:
        for key in ("model", "alias"):
            value = getattr(self, key)
            if not re.fullmatch(r"[A-Za-z][\w.-]*", value) or re.fullmatch(r"latest|v\d+", value.lower()):
                raise ValueError(
                    f"stage.{key} must begin with a letter, hold letters, digits and . _ - and be neither latest nor "
                    f"v with a number, which MLflow keeps for itself; it is {value!r}"
                )
        if not self.metric.startswith(VALIDATION):
            raise ValueError(
                f"stage.metric must be one of validation, {VALIDATION}...: a choice by test results would make them "
                f"worthless; it is {self.metric!r}"
            )


def split_credentials(address: str) -> tuple[str, tuple[str, str] | None]:
    """Return an address without user and password, and these two if it holds them."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return address, None
    name, _, password = user.partition(":")
    return urlunsplit(parts._replace(netloc=host)), (unquote(name), unquote(password))


def without_passwords(value: Any) -> Any:
    """Return text, or all text in lists and mappings, with what stands before the host of an address blotted out."""
    if isinstance(value, str):
        return _CREDENTIALS.sub("***@", value)
    if isinstance(value, Mapping):
        return {key: without_passwords(each) for key, each in value.items()}
    return [without_passwords(each) for each in value] if isinstance(value, (list, tuple)) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level with dotted keys; `_target_` keys are left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key == "_target_":
            continue
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_address(text: str) -> bool:
    return re.match(r"https?://\w", text) is not None
