"""The floors of the house, proved from the source: an import goes down only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthvision

PACKAGE = Path(synthvision.__file__).parent
FLOORS = {  # a room imports rooms of lower floors only; rooms of one floor do not know each other
    "artifact": 0,
    "manifest": 1,
    "predictions": 1,
    "data": 2,
    "training": 2,
    "diffusion": 3,
    "review": 3,
    "classification": 3,
    "evaluation": 4,
    "study": 5,
    "served": 5,
    "stages": 6,
    "pipeline": 7,
    "sweep": 8,
    "cli": 9,
    "__main__": 10,
}
ASIDE = {"tracking": {"artifact", "manifest", "metric_logger"}, "metric_logger": set()}  # beside the floors: may import
ASKED_BY = {"tracking": {"pipeline", "sweep", "cli"}, "metric_logger": {"tracking"}}  # and may be imported by
ONLY_IN = {  # third parties that one room speaks for
    "mlflow": {"tracking"},
    "hydra": {"sweep", "cli"},
    "omegaconf": {"sweep", "cli"},
    "optuna": {"sweep"},
    "pickle": set(),
    "cloudpickle": set(),
    "torch": {"data", "training", "diffusion", "classification", "pipeline"},
    "pytorch_lightning": {
        "training",
        "diffusion",
        "classification",
        "metric_logger",
        "stages",
        "tracking",
    },  # the last two: a type
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[str]:
    """Yield every imported module, also those imported inside functions; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(file: Path) -> set[str]:
    own = [name.split(".") for name in imports_of(file) if name.split(".")[0] == "synthvision"]
    return {parts[1] for parts in own if len(parts) > 1} - {"__version__", "__file__"}


def allowed(room: str) -> set[str]:
    if room in ASIDE:
        return ASIDE[room] | {room}
    below = {other for other, floor in FLOORS.items() if floor < FLOORS[room]}
    return below | {room} | {aside for aside, askers in ASKED_BY.items() if room in askers}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_go_down(file: Path) -> None:
    room = room_of(file)
    if room != "__init__":
        assert room in FLOORS or room in ASIDE, f"{file.name} needs a floor in this test"
        assert rooms_imported(file) - allowed(room) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_third_parties_keep_to_their_rooms(file: Path) -> None:
    strangers = {name.split(".")[0] for name in imports_of(file)} & set(ONLY_IN)
    assert {name for name in strangers if room_of(file) not in ONLY_IN[name]} == set()


def test_the_test_sees_a_breach() -> None:
    assert "pipeline" not in allowed("data")
    assert "diffusion" not in allowed("review")
    assert "tracking" not in allowed("evaluation")
    assert rooms_imported(PACKAGE / "manifest.py") == {"artifact"}


def test_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "diffusers", "transformers", "mlflow", "timm", "pandas", "numpy", "matplotlib"}
    code = "import sys, synthvision.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(done.stdout.split()) == set()
