"""A symmetric arm: the other classes' images go through the model as well, one for one."""

from pathlib import Path

import numpy as np
import pytest
from test_pipeline import folder_of, run

from synthvision.data.images import load_batch
from synthvision.diffusion.backbone import BackboneConfig, load
from synthvision.diffusion.counterparts import through_autoencoder
from synthvision.diffusion.sampler import to_pixels, to_tensor
from synthvision.manifest import Manifest
from synthvision.study import Arm

SIDE = 64


def test_an_image_comes_back_as_the_autoencoder_sees_it(make_manifest, tmp_path: Path) -> None:
    backbone = load(BackboneConfig("tiny", "package:tiny", SIDE, "sd"))
    images = make_manifest(("normal", "other"), n=3, size=SIDE, split="train", patient="p")
    made = through_autoencoder(backbone, images, 4, tmp_path / "out")
    pictures = to_tensor(load_batch(images, SIDE))
    expected = to_pixels(backbone.decode(backbone.encode_images(pictures).mean))
    assert np.abs(load_batch(made, SIDE).astype(int) - expected.astype(int)).max() <= 1
    for record, real in zip(made, images, strict=True):
        assert (record.origin, record.painted_on, record.label) == ("synthetic", real.image_id, real.label)
        assert (record.split, record.patient) == ("train", "p")
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    assert through_autoencoder(backbone, images, 4, tmp_path / "out") == made
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == stamps


@pytest.mark.parametrize("positives", [["real"], ["synthetic", "guides"]])
def test_real_images_of_the_disease_have_no_place_in_it(positives: list[str]) -> None:
    with pytest.raises(ValueError, match=r"arm.symmetric=true.*arm.positives must be \['synthetic'\] alone"):
        Arm("mine", positives, symmetric=True)


def test_every_training_image_of_the_arm_is_synthetic(tmp_path: Path) -> None:
    run(tmp_path, "arm=symmetric", "stage=classify")
    root = tmp_path / "studies" / "phantom"
    real = Manifest.read(folder_of(tmp_path, "prepare") / "manifest.csv", root)
    training = Manifest.read(folder_of(tmp_path, "classify") / "training.csv", root)
    assert set(training.column("origin")) == {"synthetic"}
    normal = training.where(label="normal")
    own = {record.image_id: record for record in real.where(split="train", label="normal")}
    assert sorted(normal.column("painted_on")) == sorted(own)
    for record in normal:
        before, after = (
            load_batch(Manifest((each,), root), SIDE)[0].astype(int) for each in (own[record.painted_on], record)
        )
        assert np.abs(before - after).max() > 0
        assert np.abs(before - after).mean() < 20
        assert record.mode == "paint"
        assert "lesion" not in record.prompt
    made = Manifest.read(folder_of(tmp_path, "generate") / "manifest.csv", root)
    assert set(training.where(label="lesion").column("image_id")) <= set(made.column("image_id"))
