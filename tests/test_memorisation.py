"""The gate: guides in any disguise are caught, held-out real images are not."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from PIL import Image

from synthvision.artifact import sha256_file
from synthvision.cli import make
from synthvision.data.images import Pixels, read_rgb, write_png
from synthvision.data.phantom import PhantomConfig, write_phantoms
from synthvision.diffusion.memorisation import REVIEWER, GateConfig, gate, judge
from synthvision.manifest import Manifest, Record, kind_of_reason

HELD_OUT = 220


@pytest.fixture(scope="module")
def config() -> GateConfig:
    """The thresholds that ship."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        shipped = make(compose("config"), "memorisation")
    assert isinstance(shipped, GateConfig)
    return shipped


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, PhantomConfig(images={"lesion": HELD_OUT, "normal": 0, "other": 0}, guides=10, seed=100))
    return folder


def manifest(files: list[Path], root: Path, **values: str) -> Manifest:
    rows = [
        Record(
            file.stem, file.relative_to(root).as_posix(), sha256_file(file), "lesion", **{"origin": "real", **values}
        )
        for file in files
    ]
    return Manifest(tuple(rows), root)


@pytest.fixture(scope="module")
def guides(phantoms: Path) -> Manifest:
    return manifest(sorted((phantoms / "guides").glob("*.png")), phantoms, split="guide")


def resized(image: Pixels, side: int) -> Pixels:
    small = Image.fromarray(np.ascontiguousarray(image)).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.uint8)


def compressed(image: Pixels, quality: int) -> Pixels:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out), dtype=np.uint8)


def recoloured(image: Pixels) -> Pixels:
    return np.clip(image[..., ::-1] * 0.7 + 40, 0, 255).astype(np.uint8)


DISGUISES = {
    "exact": lambda image: image,
    "flipped": lambda image: image[:, ::-1],
    "turned": lambda image: np.rot90(image),
    "cropped to 80%": lambda image: resized(image[:51, 13:], 64),
    "cropped to 90%": lambda image: resized(image[3:61, 3:61], 64),
    "recoloured": recoloured,
    "compressed": lambda image: compressed(image, 30),
    "halved and doubled": lambda image: resized(resized(image, 32), 64),
    "flipped, recoloured and compressed": lambda image: compressed(recoloured(image[::-1]), 50),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_every_planted_guide_is_caught(disguise: str, guides: Manifest, config: GateConfig, tmp_path: Path) -> None:
    files = []
    for record in guides:
        file = tmp_path / f"planted-{record.image_id}.png"
        write_png(file, np.ascontiguousarray(DISGUISES[disguise](read_rgb(guides.file(record)))))
        files.append(file)
    found = judge(manifest(files, tmp_path, origin="synthetic"), guides, config)
    assert [each.guide for each in found if each.fault] == guides.column("image_id")


def test_held_out_real_images_are_no_copies(phantoms: Path, guides: Manifest, config: GateConfig) -> None:
    files = sorted((phantoms / "images").glob("lesion-*.png"))[:HELD_OUT]
    found = judge(manifest(files, phantoms), guides, config)
    assert len(found) >= 200
    assert [each for each in found if each.fault] == []


def test_the_gate_rejects_with_the_evidence_and_leaves_a_sheet(
    phantoms: Path, guides: Manifest, config: GateConfig, tmp_path: Path
) -> None:
    files = []
    copied = read_rgb(guides.file(guides.records[3]))
    others = [read_rgb(file) for file in sorted((phantoms / "images").glob("*.png"))[:2]]
    for number, image in enumerate([copied, copied[::-1], *others]):
        files.append(tmp_path / f"c{number}.png")
        write_png(files[-1], np.ascontiguousarray(image))
    candidates = manifest(files, tmp_path, origin="synthetic")
    judged = gate(candidates, guides, config, tmp_path)
    assert judged.column("decision") == ["reject", "reject", "", ""]
    assert judged.records[0].reviewer == REVIEWER
    reason = judged.records[0].reason
    assert reason.startswith(f"copy of guide {guides.records[3].image_id} (as it is): correlation 1 ")
    assert kind_of_reason(reason) == "copy"
    with (tmp_path / "memorisation.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["image_id"] for row in rows] == candidates.column("image_id")
    assert [float(row["correlation"]) > 0.99 for row in rows] == [True, True, False, False]
    sheet = read_rgb(tmp_path / "nearest_pairs.png")  # the copies first, beside their guide
    assert np.array_equal(sheet[:128, :256], np.tile(sheet[:128, :128], (1, 2, 1)))
    assert np.array_equal(sheet[:128, 256:384], sheet[:128, 384:512])


def test_no_guides_is_an_error(guides: Manifest, config: GateConfig) -> None:
    with pytest.raises(ValueError, match="needs the guides"):
        judge(guides, guides.where(split="test"), config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_correlation", 1.2), ("max_similarity", -1), ("min_hash_distance", 65), ("min_feature_ratio", -0.1)],
)
def test_a_bad_config_names_its_key(key: str, value: float, config: GateConfig) -> None:
    with pytest.raises(ValueError, match=rf"memorisation\.{key} must be from"):
        replace(config, **{key: value})
