"""Every file in sweeps/ starts a multirun whose jobs all compose and make their dataclasses."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from synthvision import cli
from synthvision.sweep.composer import Composer
from synthvision.sweep.search import corners, distribution

FOLDER = cli.ROOT / "sweeps"
SWEEPS = sorted(file.stem for file in FOLDER.glob("*.yaml"))


@pytest.fixture(autouse=True)
def configs() -> Iterator[None]:
    cli.register_sweeps(FOLDER)
    with initialize_config_dir(str(cli.ROOT / "conf"), version_base="1.3"):
        yield


def sweep(name: str) -> DictConfig:
    return compose("config", [f"+sweeps={name}"], return_hydra_config=True)


def jobs(name: str) -> list[list[str]]:
    """Return each job's overrides, as Hydra's own sweeper makes them; of a search those at the ends of its ranges."""
    sweeper = sweep(name).hydra.sweeper
    found = []
    for table in sweeper.get("tables") or [{}]:
        parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in {**sweeper.params, **table}.items()])
        if sweeper._target_.endswith("OptunaSweeper"):
            return corners({each.key_or_group: distribution(each) for each in parsed})
        found += [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    return found


def test_there_are_sweeps() -> None:
    assert "phantom_arms" in SWEEPS


@pytest.mark.parametrize("name", SWEEPS)
def test_starts_a_multirun_by_itself(name: str) -> None:
    hydra = sweep(name).hydra
    assert hydra.mode.name == "MULTIRUN"
    assert all(isinstance(value, str) for value in hydra.sweeper.params.values()), "a YAML list would be a single job"


@pytest.mark.parametrize("name", SWEEPS)
def test_says_how_to_run_it(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert f"synthvision +sweeps={name}\n" in text


@pytest.mark.parametrize("name", SWEEPS)
def test_every_job_makes_a_study_of_its_own(name: str) -> None:
    resolved, composer = [], Composer(GlobalHydra.instance().config_loader(), sweep(name))
    for overrides in jobs(name):
        config = compose("config", [f"+sweeps={name}", *overrides])
        cli.study_of(config)
        composed = composer([*overrides, f"+sweeps={name}"])
        assert all(composed[key] == config[key] for key in config)
        resolved.append(OmegaConf.to_yaml(config, resolve=True))
    assert len(set(resolved)) == len(resolved) > 1


def test_papers_tables() -> None:
    assert {name: len(jobs(name)) for name in ("hpv_grid", "mpox_tuning", "backbones", "phantom_ratio")} == {
        "hpv_grid": 8, "mpox_tuning": 18, "backbones": 15, "phantom_ratio": 30,
    }  # fmt: skip
    assert list(sweep("hpv_grid").classifier.budgets) == [20, 50, 100, 150, 200]


def test_the_phantoms_ablation_is_seventeen_arms_of_five_seeds() -> None:
    assert len(jobs("phantom_arms")) == 40
    arms: dict[tuple[str, ...], set[str]] = {}
    for job in jobs("phantom_ablation"):
        arms.setdefault(tuple(each for each in job if not each.startswith("seed=")), set()).update(job)
    assert len(arms) == 17
    assert all({f"seed={seed}" for seed in range(10, 15)} <= each for each in arms.values())


def test_a_value_on_the_command_line_narrows_the_sweep() -> None:
    config = compose("config", ["+sweeps=phantom_arms", "seed=1"])
    assert config.seed == 1
