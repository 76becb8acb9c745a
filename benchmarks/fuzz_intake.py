"""Damaged files of every format: does reading crash, hang, or take half a picture for a whole one?

    python benchmarks/fuzz_intake.py [files per format, default 1000]

Prints a table: per format how many files were refused, how many gave a picture, how many of those after a part of the
file was cut off and with other pixels than the whole file gives (`half`, which must be 0). `changed` are those that
were damaged otherwise and show it: bytes that differ, or are missing or doubled in the middle, are no crime in formats
without a checksum, and nobody can tell them from the picture that was meant.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from mutations import mutated, valid_files

from synthvision.data.cache import ImageCache
from synthvision.data.reading import CRASHED, pixel_digest, read_pictures


def fuzz(folder: Path, name: str, number: int) -> dict[str, float]:
    """Damage one format's file `number` times and read what comes out."""
    whole = valid_files()[name]
    files, cut = [folder / "whole"], [False]
    files[0].write_bytes(whole)
    for seed in range(number):
        data, is_cut = mutated(whole, seed)
        files.append(folder / f"{seed}")
        cut.append(is_cut)
        files[-1].write_bytes(data)
    start = time.monotonic()
    pictures = read_pictures(files, ImageCache(folder / "cache", 48, 0), seconds=5)
    usable = [(file, is_cut) for file, picture, is_cut in zip(files[1:], pictures[1:], cut[1:], strict=True)
              if picture.usable]  # fmt: skip
    original = pixel_digest(files[0])
    return {
        "files": number,
        "accounted for": len(pictures) - 1,
        "refused": number - len(usable),
        "crashed": sum(picture.reason == CRASHED for picture in pictures),
        "too slow": sum(picture.reason.startswith("took longer") for picture in pictures),
        "changed": sum(not is_cut and pixel_digest(file) != original for file, is_cut in usable),
        "half": sum(is_cut and pixel_digest(file) != original for file, is_cut in usable),
        "seconds": round(time.monotonic() - start, 1),
    }


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    for name in valid_files():
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name:18}", fuzz(Path(folder), name, number), flush=True)


if __name__ == "__main__":
    main()
