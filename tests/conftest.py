"""What several test files share."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that would download must fail at once, not hang

import numpy as np
import pytest

from synthvision.artifact import sha256_file
from synthvision.data.images import write_png
from synthvision.data.masks import write_mask
from synthvision.manifest import Manifest, Record

ROOT = Path(__file__).parents[1]
MakeManifest = Callable[..., Manifest]


@pytest.fixture
def make_manifest(tmp_path: Path) -> MakeManifest:
    """A function that draws `n` noise images per label and returns their manifest, rooted at `tmp_path`."""

    def make(labels: tuple[str, ...] = ("lesion", "normal"), n: int = 2, size: int = 16, **values: str) -> Manifest:
        rng = np.random.default_rng(0)
        records = []
        for label in labels:
            for index in range(n):
                name = f"{label}-{index}"
                file = tmp_path / "images" / f"{name}.png"
                write_png(file, rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
                path = file.relative_to(tmp_path).as_posix()
                records.append(Record(name, path, sha256_file(file), label, **{"origin": "real", **values}))
        return Manifest(tuple(records), tmp_path)

    return make


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three guides of the size that the small backbones take; two have a mask."""
    from backbones import SIDE

    root = tmp_path_factory.mktemp("guides")
    rng = np.random.default_rng(0)
    records = []
    for index, caption in enumerate(("sks spots", "early spots", "many sks spots")):
        name, mask = f"g{index}", ""
        write_png(root / f"{name}.png", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        if index < 2:
            lesion = np.zeros((SIDE, SIDE), dtype=bool)
            lesion[2:6, 4 : 8 + index] = True
            mask = f"{name}.mask.png"
            write_mask(root / mask, lesion)
        digest = sha256_file(root / f"{name}.png")
        records.append(Record(name, f"{name}.png", digest, "lesion", "real", "guide", caption=caption, mask=mask))
    return Manifest(tuple(records), root)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for small backbones."""
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables and nothing in them; making one takes seconds, copying it does not."""
    from synthvision.tracking.config import TrackingConfig
    from synthvision.tracking.store import open_store

    folder = tmp_path_factory.mktemp("store")
    open_store(TrackingConfig(str(folder)), "template")
    return folder / "mlflow.db"


@pytest.fixture
def tracking_root(empty_store: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder for `TrackingConfig.root` whose database is ready; MLflow forgets it afterwards."""
    import mlflow

    root = tmp_path / "mlruns"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    yield root
    while mlflow.active_run() is not None:
        mlflow.end_run("FAILED")
    mlflow.set_tracking_uri(None)
