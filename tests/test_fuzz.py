"""Damaged files neither crash nor hang the reading, and half a picture is no picture. All of it: benchmarks/."""

from pathlib import Path

import pytest
from mutations import mutated, valid_files

from synthvision.data.cache import ImageCache
from synthvision.data.reading import CRASHED, pixel_digest, read_pictures

PER_FORMAT = 42  # six of each kind of damage


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    return valid_files()


def test_every_damaged_file_is_a_picture_or_has_a_reason(tmp_path: Path, whole: dict[str, bytes]) -> None:
    cases = [(name, *mutated(data, seed)) for name, data in whole.items() for seed in range(PER_FORMAT)]
    files = [tmp_path / "in" / str(number) for number in range(len(cases) + len(whole))]
    files[0].parent.mkdir()
    for file, data in zip(files, [*whole.values(), *(data for _, data, _ in cases)], strict=True):
        file.write_bytes(data)
    pictures = read_pictures(files, ImageCache(tmp_path / "cache", 48, 0), seconds=10)
    assert len(pictures) == len(files)
    originals = {name: pixel_digest(file) for name, file in zip(whole, files, strict=False)}
    assert all(picture.usable for picture in pictures[: len(whole)])
    halves = []
    for (name, _, cut), file, picture in zip(cases, files[len(whole) :], pictures[len(whole) :], strict=True):
        assert picture.usable or picture.reason
        assert picture.reason != CRASHED
        assert not picture.reason.startswith("took longer")
        if picture.usable and cut and pixel_digest(file) != originals[name]:
            halves.append(name)
    assert halves == []
    assert sum(not picture.usable for picture in pictures) > len(cases) / 2
