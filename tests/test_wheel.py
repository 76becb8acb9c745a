"""An installed wheel works as the checkout does: from another folder, with its configs, sweeps and weights."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from test_pipeline import SMALL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `synthvision` command of an environment that holds nothing but the wheel; dependencies are borrowed."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    borrowed = home / "lib" / version / "site-packages" / "borrowed.pth"
    borrowed.write_text(sysconfig.get_path("purelib") + "\n")  # after the wheel on the path, so the wheel wins
    return home / "bin" / "synthvision"


def output(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_all_that_is_not_code(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "synthvision"
    data = {file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    wanted = {f"synthvision/{file.relative_to(package).as_posix()}" for file in data}
    wanted |= {f"synthvision/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "conf").rglob("*.yaml")}
    wanted |= {f"synthvision/{file.relative_to(ROOT).as_posix()}" for file in (ROOT / "sweeps").glob("*.yaml")}
    wanted.add("hydra_plugins/synthvision_sweep.py")
    assert wanted - names == set()


def test_it_is_the_wheel_that_runs(command: Path, tmp_path: Path) -> None:
    code = "import synthvision.cli as cli; print(cli.ROOT); print(cli.ROOT == cli.PACKAGE)"
    root, inside = output([str(command.with_name("python")), "-c", code], tmp_path).split()
    assert Path(root).is_relative_to(command.parents[1])
    assert inside == "True"


def test_help_from_another_folder(command: Path, tmp_path: Path) -> None:
    help_ = output([str(command), "--help"], tmp_path)
    assert "experiment: hpv, mpox, phantom" in help_
    assert "phantom_arms" in next(line for line in help_.splitlines() if line.startswith("sweeps: "))


def test_a_short_study_from_another_folder(command: Path, tmp_path: Path) -> None:
    printed = output([str(command), *SMALL], tmp_path)
    assert "95% interval" in printed
    assert len(list((tmp_path / "studies" / "phantom" / "report").glob("*/report.html"))) == 1


def test_a_sweep_of_the_wheel(command: Path, tmp_path: Path) -> None:
    """Hydra finds the sweeper where no checkout is near."""
    done = subprocess.run([str(command), "-m", "backbone=tiny,nope"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nothing was started: of 2 jobs some cannot run" in done.stderr


def test_configs_and_sweeps_are_found(command: Path, tmp_path: Path) -> None:
    assert "study: hpv" in output([str(command), "experiment=hpv", "--cfg", "job"], tmp_path)
    assert "mode: MULTIRUN" in output([str(command), "+sweeps=phantom_arms", "--cfg", "hydra"], tmp_path)
