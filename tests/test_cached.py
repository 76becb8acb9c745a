"""Training images out of the shared cache: the same pixels, decoded once for all runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeManifest

from synthvision.data import cached
from synthvision.data.cache import ImageCache
from synthvision.data.cached import cached_batch
from synthvision.data.images import UnusableImage, load_batch, write_png
from synthvision.data.intake import FolderSource, GuideSource
from synthvision.data.prepare import prepare
from synthvision.data.rules import Rules
from synthvision.data.torch_data import ImageTensors
from synthvision.manifest import Manifest


@pytest.fixture
def manifest(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(n=5, size=40)


def test_it_gives_what_files_give_and_decodes_none_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (40, 16):
        cache = ImageCache(tmp_path / ".cache", size, 0)
        np.testing.assert_array_equal(cached_batch(manifest, cache), load_batch(manifest, size))
    part, decoded = Manifest(manifest.records[::-2], manifest.root), []
    monkeypatch.setattr(cached, "read_picture", lambda *given: decoded.append(given))
    again = ImageCache(tmp_path / ".cache", 16, 0)
    np.testing.assert_array_equal(cached_batch(part, again), load_batch(part, 16))
    assert decoded == []
    loaded = ImageTensors.from_manifest(manifest, ("lesion", "normal"), 16, again)
    plain = ImageTensors.from_manifest(manifest, ("lesion", "normal"), 16)
    assert torch.equal(loaded.images, plain.images)
    np.testing.assert_array_equal(loaded.pixels(), load_batch(manifest, 16))


def test_a_file_that_changed_is_read_anew(manifest: Manifest, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / ".cache", 40, 0)
    before = cached_batch(manifest, cache)
    write_png(manifest.file(manifest.records[3]), 255 - before[3])
    after = cached_batch(manifest, cache)
    np.testing.assert_array_equal(after[3], 255 - before[3])
    np.testing.assert_array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))


def test_one_colour_is_an_image_and_a_missing_or_broken_file_is_named(manifest: Manifest, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / ".cache", 40, 0)
    write_png(manifest.file(manifest.records[0]), np.full((40, 40, 3), 7, np.uint8))
    for _ in range(2):
        assert (cached_batch(manifest, cache)[0] == 7).all()
    manifest.file(manifest.records[1]).write_bytes(b"no picture")
    with pytest.raises(UnusableImage, match=r"image 'lesion-1' \(images/lesion-1\.png\)"):
        cached_batch(manifest, cache)
    manifest.file(manifest.records[1]).unlink()
    with pytest.raises(UnusableImage, match=r"image 'lesion-1'"):
        cached_batch(manifest, cache)


def test_a_damaged_cache_is_found(manifest: Manifest, tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / ".cache", 40, 0)
    cached_batch(manifest, cache)
    with (cache.shelf.folder / "pixels").open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\x00" * 50)
    with pytest.raises(ValueError, match=r"is damaged; delete it"):
        cached_batch(manifest, cache)


def test_the_same_content_elsewhere_is_not_decoded_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ImageCache(tmp_path / ".cache", 16, 0)
    expected = cached_batch(manifest, cache)
    shutil.copytree(manifest.root / "images", tmp_path / "another run" / "images")
    monkeypatch.setattr(cached, "read_picture", _refuse)
    np.testing.assert_array_equal(cached_batch(Manifest(manifest.records, tmp_path / "another run"), cache), expected)


def test_what_prepare_writes_is_known_to_training(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, guides = FolderSource("normal", str(manifest.root / "images")), tmp_path / "guides"
    write_png(guides / "a.png", np.random.default_rng(99).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (guides / "a.txt").write_text("a guide")
    cache, study = ImageCache(tmp_path / ".cache", 16, 0), tmp_path / "study"
    rules = Rules(counts={"normal": {"train": 3}}, size=16, seed=0)
    prepared = prepare(
        [source], GuideSource(str(guides), "lesion"), rules, ("lesion", "normal"), study, study / "prepare", cache
    ).manifest
    monkeypatch.setattr(cached, "read_picture", _refuse)
    np.testing.assert_array_equal(cached_batch(prepared, cache), load_batch(prepared, 16))


def _refuse(file: Path, *_: object) -> None:
    pytest.fail(f"{file.name} is decoded again")
