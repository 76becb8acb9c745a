"""Files are read once, in parallel; none can stop the others, and nothing is half read."""

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthvision.data import reading
from synthvision.data.cache import ImageCache, place_of
from synthvision.data.images import fit, read_rgb, write_png
from synthvision.data.reading import CRASHED, read_pictures

SIZE = 16


def drawn(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    names = [tmp_path / "in" / f"{number}.png" for number in range(40)]
    for number, file in enumerate(names):
        write_png(file, drawn(number))
    return names


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    return ImageCache(tmp_path / "cache", SIZE, 0)


def test_every_picture_is_its_row(files: list[Path], cache: ImageCache) -> None:
    pictures = read_pictures(files, cache, workers=2)
    rows = cache.pixels()
    assert [picture.usable for picture in pictures] == [True] * 40
    assert len({picture.row for picture in pictures}) == 40
    for file, picture in zip(files, pictures, strict=True):
        assert np.array_equal(cache.row(rows, picture), fit(read_rgb(file), SIZE))
        assert (picture.height, picture.width) == (24, 30)
    assert cache.thumbs().shape[1:] == (64, 64)


def test_a_second_run_reads_only_what_is_new_or_changed(
    files: list[Path], cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_pictures(files[:30], cache)
    read = []
    own = reading._Pool.read
    monkeypatch.setattr(reading._Pool, "read", lambda pool, jobs: read.extend(jobs) or own(pool, jobs))
    write_png(files[3], drawn(77))
    second = read_pictures(files, cache)
    assert sorted(job[0] for job in read) == [3, *range(30, 40)]
    assert [each for index, each in enumerate(second[:30]) if index != 3] == [
        each for index, each in enumerate(first) if index != 3
    ]
    assert np.array_equal(cache.row(cache.pixels(), second[3]), fit(drawn(77), SIZE))


def test_what_gives_no_picture_says_why(files: list[Path], cache: ImageCache, tmp_path: Path) -> None:
    files[1].write_bytes(b"")
    files[2].unlink()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    pictures = read_pictures([*files[:4], tmp_path / "loop.png", tmp_path / "folder.png"], cache)
    assert [picture.reason.split(":")[0] for picture in pictures] == [
        "", "the file is empty", "cannot be read", "", "cannot be read", "cannot be read",
    ]  # fmt: skip
    assert not any(str(tmp_path) in picture.reason for picture in pictures)


def test_an_interrupted_run_goes_on(files: list[Path], cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "COMMIT", 8)
    monkeypatch.setattr(reading, "CHUNK", 4)
    own = reading._Pool.read

    def interrupted(pool, jobs):
        for number, result in enumerate(own(pool, jobs)):
            if number == 20:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(reading._Pool, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_pictures(files, cache)
    known = [picture for picture in cache.known(files) if picture is not None]
    assert len(known) == 20
    monkeypatch.setattr(reading._Pool, "read", own)
    pictures = read_pictures(files, cache)
    assert len({picture.row for picture in pictures}) == 40
    rows = cache.pixels()
    for file, picture in zip(files, pictures, strict=True):
        assert np.array_equal(cache.row(rows, picture), fit(read_rgb(file), SIZE))


def test_a_file_that_hangs_or_kills_its_decoder_is_left_out(
    files: list[Path], cache: ImageCache, tmp_path: Path
) -> None:
    """A named pipe without a writer is a file that never ends: the one who opens it waits in the kernel."""
    os.mkfifo(tmp_path / "pipe.png")
    start = time.monotonic()
    pictures = read_pictures([*files[:20], tmp_path / "pipe.png", *files[20:]], cache, workers=2, seconds=1.0)
    assert time.monotonic() - start < 30
    assert pictures[20].reason == "took longer than 1 s to decode"
    assert sum(picture.usable for picture in pictures) == 40


def test_a_crash_is_found_among_those_under_way(files: list[Path], cache: ImageCache, monkeypatch) -> None:
    monkeypatch.setattr(reading, "_read_chunk", _crash_on_seven)
    pictures = read_pictures(files, cache, workers=2)
    assert [index for index, picture in enumerate(pictures) if not picture.usable] == [7]
    assert pictures[7].reason == CRASHED
    assert cache.known([files[7]]) == [None]  # next time it is tried again


_own_read_chunk = reading._read_chunk


def _crash_on_seven(jobs, shelf, seconds):
    if any(file.name == "7.png" for _, file, _ in jobs):
        os.abort()
    return _own_read_chunk(jobs, shelf, seconds)


def test_a_decoder_that_cannot_be_interrupted_ends_with_its_process(files, cache, monkeypatch) -> None:
    monkeypatch.setattr(reading, "_read_chunk", _spin_on_seven)
    monkeypatch.setattr(reading, "CHUNK", 4)
    pictures = read_pictures(files[:12], cache, workers=2, seconds=0.3)
    assert [picture.reason for picture in pictures if not picture.usable] == [CRASHED]


def _spin_on_seven(jobs, shelf, seconds):
    if any(file.name == "7.png" for _, file, _ in jobs):
        reading.decode_file = _spin
    return _own_read_chunk(jobs, shelf, seconds)


def _spin(_data):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # computes for minutes, without a look at Python's handlers


def test_a_damaged_cache_is_noticed(files: list[Path], cache: ImageCache) -> None:
    (picture,) = read_pictures(files[:1], cache)
    with (cache.shelf.folder / "pixels").open("r+b") as handle:
        handle.write(b"\0\0\0\0")
    with pytest.raises(ValueError, match="damaged; delete it"):
        cache.row(cache.pixels(), picture)


def test_sizes_and_salts_do_not_meet(files: list[Path], tmp_path: Path) -> None:
    caches = [ImageCache(tmp_path / "cache", size, salt) for size, salt in ((16, 0), (32, 0), (16, 1))]
    assert len({cache.shelf.folder for cache in caches}) == 3
    read_pictures(files[:1], caches[0])
    assert caches[1].known(files[:1]) == [None]


def test_the_cache_holds_no_name(cache: ImageCache, tmp_path: Path) -> None:
    secret = tmp_path / "Jane Doe.png"
    write_png(secret, drawn(5))
    read_pictures([secret], cache)
    assert b"Jane" not in (cache.shelf.folder / "index.db").read_bytes()


def test_a_place_changes_with_its_content(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    assert place_of(file) == ""
    out = io.BytesIO()
    Image.fromarray(drawn(0)).save(out, "PNG")
    file.write_bytes(out.getvalue())
    before = place_of(file)
    assert place_of(file) == before
    time.sleep(0.01)
    file.write_bytes(out.getvalue()[::-1])
    assert place_of(file) != before


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    files: list[Path], cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = reading.read_picture

    def changing(file: Path, *given):
        picture = own(file, *given)
        if file == files[1]:
            write_png(file, drawn(99))
        return picture

    monkeypatch.setattr(reading, "read_picture", changing)
    read = reading._read_chunk([(number, files[number], number) for number in range(3)], cache.shelf, 30.0)
    assert [place == place_of(file) for (_, _, place), file in zip(read, files, strict=False)] == [True, False, True]
    assert read[1][2] == ""


def test_processes_that_cannot_start_are_told_at_once(
    files: list[Path], cache: ImageCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_start_worker", _fails)
    with pytest.raises(RuntimeError, match="cannot start"):
        read_pictures(files, cache)


def _fails() -> None:
    raise ImportError("no such package")
