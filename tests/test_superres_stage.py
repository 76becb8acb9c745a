"""The stage through the real command, with a random upscaler: metrics in its run, and larger candidates."""

from pathlib import Path

import pytest
from test_pipeline import SMALL, finished, folder_of, run, runs_of, start
from upscalers import LEVELS, save

from synthvision.data.images import read_rgb
from synthvision.manifest import Manifest


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    upscaler = save("tiny", tmp_path_factory.mktemp("upscaler") / "tiny")
    return (
        f"superres.upscaler.source={upscaler}",
        f"superres.upscaler.max_noise_level={LEVELS}",
        "superres.training.steps=3",
        "superres.training.checkpoint_every=2",
        "superres.upscaling.back_projections=2",
        "generate.candidates=12",
    )


def test_stage_and_candidates(options: tuple[str, ...], tmp_path: Path) -> None:
    assert SMALL  # the study of test_pipeline.py
    run(tmp_path, "stage=superres", *options)
    assert set(finished(tmp_path)) == {"prepare", "superres"}
    folder = folder_of(tmp_path, "superres")
    assert (folder / "weights" / "low_res_scheduler").is_dir()
    (tracked,) = [each for each in runs_of(tmp_path) if each.data.tags.get("stage") == "superres"]
    metrics = tracked.data.metrics
    assert metrics["val/images"] == 10
    names = {f"val/{a}/{b}" for a in ("bicubic", "before", "after") for b in ("psnr", "ssim", "colour_shift")}
    assert names <= set(metrics)
    assert metrics["val/bicubic/psnr"] > 25
    before = finished(tmp_path)["superres"].fingerprint
    run(tmp_path, "stage=generate", *options, "superres.candidates=true")
    assert finished(tmp_path)["superres"].fingerprint == before  # reused
    candidates = Manifest.read(folder_of(tmp_path, "generate") / "manifest.csv", tmp_path / "studies" / "phantom")
    assert read_rgb(candidates.file(candidates.records[0])).shape == (256, 256, 3)


def test_prepared_images_smaller_than_the_upscalers_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    process = start(tmp_path, "stage=superres", *options, "superres.upscaler.resolution=128")
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "is 64 x 64 pixels; superres needs large pictures of at least superres.upscaler.resolution=128" in output
    assert "Traceback" not in output
