"""Intake measured: reading against bare decoding, a second run after 100 images were added, copies, memory.

    python benchmarks/intake.py [images, default 1000] [side in pixels, default 256]

Draws JPEG files, one in 50 a mirrored and re-encoded copy of another, and prints one line of JSON.
`ratio` is the time of reading over the time of decoding alone by as many processes; `peak_mb` are the largest resident
sizes of the process that gives out the work and of all its workers together, `before_mb` that process before it began.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from synthvision.data.cache import ImageCache
from synthvision.data.decoding import decode_file
from synthvision.data.duplicates import near_duplicates
from synthvision.data.reading import read_pictures

SIDE, EVERY, CHUNK = int(sys.argv[2]) if len(sys.argv) > 2 else 256, 50, 64


def picture(number: int) -> Image.Image:
    """Draw a smooth picture with blobs of every size, and noise."""
    rng = np.random.default_rng(number)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3), float)
        for n in (3, 6, 12, 24)
    ]
    mixed = np.average(layers, axis=0, weights=[4, 3, 2, 1]) + rng.normal(0, 3, (SIDE, SIDE, 3))
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def draw(folder: Path, first: int, last: int) -> None:
    """Write the files first … last - 1."""
    for number in range(first, last):
        copied = number - 7 if number % EVERY == EVERY - 1 else number
        image = picture(copied)
        if copied != number:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85 if copied == number else 75)
        (folder / f"{number:06}.jpg").write_bytes(out.getvalue())


def decode_only(files: list[Path]) -> int:
    """Decode files and keep nothing."""
    return sum(len(decode_file(file.read_bytes()).pixels) for file in files)


class Peak(threading.Thread):
    """Follows the memory of this process and its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.workers = 0
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.05):
            self.own = max(self.own, me.memory_info().rss)
            sizes = []
            for child in me.children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.workers = max(self.workers, sum(sizes))


def measured(folder: Path, number: int) -> dict[str, float]:
    """Return the figures for `number` images."""
    workers = len(os.sched_getaffinity(0))
    images = folder / "images"
    images.mkdir(parents=True)
    with ProcessPoolExecutor(workers, get_context("forkserver")) as pool:
        steps = [(start, min(start + CHUNK, number)) for start in range(0, number, CHUNK)]
        list(pool.map(draw, [images] * len(steps), *zip(*steps, strict=True)))
        files = sorted(images.iterdir())
        list(pool.map(decode_only, [files[:1]] * 8))  # the processes have begun
        start = time.monotonic()
        list(pool.map(decode_only, [files[first:last] for first, last in steps]))
        bare = time.monotonic() - start
    before, peak = psutil.Process().memory_info().rss, Peak()
    peak.start()
    cache = ImageCache(folder / "cache", 64, 0)
    start = time.monotonic()
    pictures = read_pictures(files, cache)
    reading = time.monotonic() - start
    draw(images, number, number + 100)
    files = sorted(images.iterdir())
    start = time.monotonic()
    pictures = read_pictures(files, cache)
    second = time.monotonic() - start
    peak.done.set()
    rows = np.array([each.row for each in pictures])
    start = time.monotonic()
    cpu = time.process_time()
    pairs = near_duplicates(cache.thumbs(), rows)
    search, search_cpu = time.monotonic() - start, time.process_time() - cpu
    found = {(i, j) for i, j, _ in pairs}
    planted = {(n - 7, n) for n in range(EVERY - 1, len(files), EVERY)}
    return {
        "images": number, "side": SIDE, "workers": workers,
        "bare_seconds": round(bare, 1), "seconds": round(reading, 1),
        "per_second": round(number / reading), "ratio": round(reading / bare, 2), "second_run": round(second, 2),
        "before_mb": before >> 20, "peak_mb": peak.own >> 20, "workers_mb": peak.workers >> 20,
        "search_seconds": round(search, 1), "search_cpu": round(search_cpu, 1),
        "after_search_mb": psutil.Process().memory_info().rss >> 20,
        "copies_found": len(found & planted), "copies": len(planted), "false": len(found - planted),
    }  # fmt: skip


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(Path(folder), number)))


if __name__ == "__main__":
    main()
