"""The stages' own logic: what an arm trains on, when phantoms are drawn anew, and what a digest of sources sees."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir

from synthvision.cli import study_of
from synthvision.data.images import read_rgb
from synthvision.manifest import Manifest, Record
from synthvision.stages.composition import training_phases
from synthvision.stages.context import Context
from synthvision.stages.dreambooth import SetTask, train_set
from synthvision.stages.prepare import draw_phantoms, source_digest
from synthvision.study import Arm, Phase, Study

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
    (chosen,) = training_phases(asked(given, Arm("x", positives)))
    assert chosen.column("image_id") == ["r-train-normal", *images]
    assert not chosen.where(split="test")
    assert not chosen.where(split="val")


def asked(given: Context, arm: Arm) -> Context:
    return replace(given, study=replace(given.study, arm=arm))


@pytest.fixture
def many(study: Study) -> Context:
    """Folders that hold 3 guides, 40 real lesions, 60 normals and 30 accepted images."""
    kinds = {("guide", "lesion"): 3, ("train", "lesion"): 40, ("train", "normal"): 60}
    records = [Record(f"{s}-{c}-{n}", "x.png", DIGEST, c, "real", s) for (s, c), k in kinds.items() for n in range(k)]
    made = [Record(f"made-{n}", "x.png", DIGEST, "lesion", "synthetic", decision="accept") for n in range(30)]
    before = {"prepare": study.folder / "prepare", "review": study.folder / "review"}
    for name, rows in (("prepare", records), ("review", made)):
        Manifest(tuple(rows), study.folder).write(before[name] / "manifest.csv")
    return Context(study, study.folder / "classify", before, None, "")


def kinds(images: Manifest) -> dict[str, int]:
    return dict(Counter(name.rsplit("-", 1)[0] for name in images.column("image_id")))


def test_fewer_lesions_are_among_more_and_another_seed_draws_others(many: Context) -> None:
    drawn = {}
    for number in (5, 10, 40):
        (images,) = training_phases(asked(many, Arm("x", ["real"], {"real": number})))
        assert kinds(images) == {"train-normal": 60, "train-lesion": number}
        drawn[number] = images.where(label="lesion").column("image_id")
    assert set(drawn[5]) < set(drawn[10]) < set(drawn[40])
    assert drawn[40] == [f"train-lesion-{n}" for n in range(40)]  # all of them, in their own order
    assert drawn[10] == [name for name in drawn[40] if name in set(drawn[10])]
    other = asked(replace(many, study=replace(many.study, seed=1)), Arm("x", ["real"], {"real": 10}))
    assert training_phases(other)[0].where(label="lesion").column("image_id") != drawn[10]


def test_a_ratio_counts_synthetic_images_by_real_ones_and_guides(many: Context) -> None:
    (images,) = training_phases(asked(many, Arm("x", ["synthetic", "real", "guides"], {"real": 5}, ratio=2.5)))
    assert kinds(images) == {"train-normal": 60, "made": 20, "train-lesion": 5, "guide-lesion": 3}
    (fewer,) = training_phases(asked(many, Arm("x", ["synthetic", "real"], {"real": 5}, ratio=1)))
    assert set(fewer.column("image_id")) < set(images.column("image_id"))
    with pytest.raises(ValueError, match=r"arm=x: arm\.ratio=7.* must be at most the 30 there are; it is 35"):
        training_phases(asked(many, Arm("x", ["synthetic", "real"], {"real": 5}, ratio=7)))


def test_other_classes_can_be_as_many_or_any_number(many: Context) -> None:
    (equal,) = training_phases(asked(many, Arm("x", ["real"], {"real": 5}, equal_classes=True)))
    assert kinds(equal) == {"train-normal": 5, "train-lesion": 5}
    (some,) = training_phases(asked(many, Arm("x", ["guides"], {"normal": 7})))
    assert kinds(some) == {"train-normal": 7, "guide-lesion": 3}


def test_a_first_phase_has_images_of_its_own(many: Context) -> None:
    arm = Arm("x", ["guides"], ratio=2, before=Phase(["synthetic"], 2, 1e-3))
    first, last = training_phases(asked(many, arm))
    assert kinds(first) == {"train-normal": 60, "made": 6}
    assert kinds(last) == {"train-normal": 60, "guide-lesion": 3}
    assert asked(many, arm).study.generates


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
