"""The stages' own logic: what an arm trains on, when phantoms are drawn anew, and what a digest of sources sees."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from synthvision.cli import study_of
from synthvision.data.images import read_rgb
from synthvision.manifest import Manifest, Record
from synthvision.stages.classify import training_images
from synthvision.stages.context import Context
from synthvision.stages.dreambooth import SetTask, train_set
from synthvision.stages.prepare import draw_phantoms, source_digest
from synthvision.study import Arm, Study

DIGEST = "0" * 64


@pytest.fixture
def study(tmp_path: Path) -> Study:
    few = "dataset.phantom.images={lesion: 2, normal: 2}"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return study_of(compose("config", [f"root={tmp_path}", few, "dataset.phantom.guides=1"]))


def test_a_side_that_generate_would_refuse_is_refused_before_training(study: Study, tmp_path: Path) -> None:
    wide = replace(study, generate=replace(study.generate, resolution=72))  # a multiple of 8, but the UNet halves twice
    task = SetTask(wide, Manifest((), tmp_path), tmp_path / "out", tmp_path / "work")
    with pytest.raises(ValueError, match=r"generate\.resolution must be a multiple of 16 for package:tiny; it is 72"):
        train_set(task)


@pytest.fixture
def given(study: Study) -> Context:
    """Folders of `prepare` and `review` that hold one record of each kind."""
    real = [("guide", "lesion"), ("train", "lesion"), ("train", "normal"), ("val", "lesion"), ("test", "normal")]
    records = [Record(f"r-{s}-{c}", "x.png", DIGEST, c, "real", s) for s, c in real]
    made = [Record(f"s-{d}", "x.png", DIGEST, "lesion", "synthetic", decision=d) for d in ("accept", "reject")]
    before = {"prepare": study.folder / "prepare", "review": study.folder / "review"}
    for name, rows in (("prepare", records), ("review", made)):
        Manifest(tuple(rows), study.folder).write(before[name] / "manifest.csv")
    return Context(study, study.folder / "classify", before, None, "")


@pytest.mark.parametrize(
    ("positives", "images"),
    [
        (["synthetic"], ["s-accept"]),
        (["guides"], ["r-guide-lesion"]),
        (["real"], ["r-train-lesion"]),
        (["synthetic", "guides"], ["s-accept", "r-guide-lesion"]),
    ],
)
def test_an_arm_changes_the_disease_class_only(positives: list[str], images: list[str], given: Context) -> None:
    chosen = training_images(replace(given, study=replace(given.study, arm=Arm("x", positives))))
    assert chosen.column("image_id") == ["r-train-normal", *images]
    assert not chosen.where(split="test")
    assert not chosen.where(split="val")


def test_phantoms_are_drawn_once_and_anew_when_asked_otherwise(study: Study) -> None:
    draw_phantoms(study)
    folder = Path(study.dataset.folder)
    first = folder / "images" / "lesion-00000.png"
    stamp, before = first.stat().st_mtime_ns, read_rgb(first)
    draw_phantoms(study)
    assert first.stat().st_mtime_ns == stamp
    phantom = study.dataset.phantom
    assert phantom is not None
    draw_phantoms(replace(study, dataset=replace(study.dataset, phantom=replace(phantom, seed=7, guides=0))))
    assert (read_rgb(first) != before).any()
    assert not (folder / "guides").exists()


def test_source_digest_sees_contents_and_names_but_not_times(study: Study) -> None:
    draw_phantoms(study)
    before = source_digest(study)
    caption = Path(study.disease.guides.folder) / "guide-00.txt"
    caption.touch()
    assert source_digest(study) == before
    caption.write_text("photo of another sks\n")
    assert source_digest(study) != before
