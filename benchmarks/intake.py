"""Intake measured: reading against bare decoding, a second run after 100 images were added, copies, memory.

    python benchmarks/intake.py [images, default 1000] [side in pixels, default 256] [prepared side, default 64]

Draws JPEG files, one in 50 a mirrored and re-encoded copy of another, and prints one line of JSON. `bare` is Pillow's
decoding and resizing to the prepared side and nothing else, by as many processes; `read` is what `stage=prepare` does
to each file; `again` reads what was added since; `search` looks for near duplicates; `prepare` is all of it, with the
pictures known already. `cpu` counts seconds of all processes, which other work on the machine changes less than
`seconds`; `ratio_cpu` and `ratio` are `read` over `bare`. `peak_mb` is the most memory that the process that gives out
the work had of its own, begun anew for each step, without the files that are mapped into it; `workers_mb` is what its
workers had together.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from synthvision.data.cache import ImageCache
from synthvision.data.duplicates import near_duplicates
from synthvision.data.intake import FolderSource, GuideSource
from synthvision.data.prepare import prepare
from synthvision.data.reading import read_pictures
from synthvision.data.rules import Rules

EVERY, BACK, CHUNK, ADDED, GUIDES = 50, 8, 64, 100, 10
CLASSES = ("even", "odd")
Step = dict[str, Any]


def picture(number: int, side: int) -> Image.Image:
    """Draw a smooth picture with blobs of every size, and noise."""
    rng = np.random.default_rng(number)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((side, side), 3), np.float32)
        for n in (3, 6, 12, 24)
    ]
    noise = rng.standard_normal((side, side, 3), dtype=np.float32) * 3
    mixed = np.tensordot(np.float32([0.4, 0.3, 0.2, 0.1]), np.stack(layers), 1) + noise
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def name(number: int) -> str:
    return f"{CLASSES[number % 2]}/{number:06}.jpg"


def draw(folder: Path, first: int, last: int, side: int) -> None:
    """Write the files first … last - 1."""
    for number in range(first, last):
        copied = number - BACK if number % EVERY == EVERY - 1 else number
        image = picture(copied, side)
        if copied != number:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85 if copied == number else 75)
        (folder / name(number)).write_bytes(out.getvalue())


def bare(files: list[Path], size: int) -> float:
    """Decode and resize files as a loader does, keep nothing, and return the seconds of computing."""
    start = time.process_time()
    for file in files:
        with Image.open(file) as image:
            np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0))
    return time.process_time() - start


def bare_step(files: list[Path], size: int) -> Step:
    workers = len(os.sched_getaffinity(0))
    parts = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    with ProcessPoolExecutor(workers, get_context("forkserver")) as pool:
        list(pool.map(bare, [files[:1]] * 4 * workers, [size] * 4 * workers))  # the processes have begun
        start = time.monotonic()
        cpu = sum(pool.map(bare, parts, [size] * len(parts)))
        return {"seconds": time.monotonic() - start, "cpu": cpu}


class Peak(threading.Thread):
    """Follows the memory of this process, without the files that are mapped into it, and of its children."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.own = self.workers = 0
        self.done = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.done.wait(0.1):
            memory = me.memory_info()
            self.own, sizes = max(self.own, memory.rss - memory.shared), []
            for child in me.children(recursive=True):
                try:
                    sizes.append(child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            self.workers = max(self.workers, sum(sizes))


def measured(work: Callable[[], Step]) -> Step:
    """Do the work and return what it cost, with what it returns."""
    me, peak = psutil.Process(), Peak()
    peak.start()
    start, own = time.monotonic(), time.process_time()
    result = work()
    seconds, own = time.monotonic() - start, time.process_time() - own
    peak.done.set()
    workers = [child.cpu_times() for child in me.children()]  # the server that forks them, which has waited for them
    cpu = own + sum(times.children_user + times.children_system for times in workers)
    return {"seconds": seconds, "cpu": cpu, "peak_mb": peak.own >> 20, "workers_mb": peak.workers >> 20, **result}


def read_step(folder: Path, files: list[Path], size: int) -> Step:
    cache = ImageCache(folder / "cache", size, 0)
    before = cache.next_row()

    def work() -> Step:
        read_pictures(files, cache)
        return {"files_read": cache.next_row() - before}

    return measured(work)


def search_step(folder: Path, files: list[Path], size: int) -> Step:
    cache = ImageCache(folder / "cache", size, 0)
    rows = np.array([each.row for each in read_pictures(files, cache)])

    def work() -> Step:
        found = {(i, j) for i, j, _ in near_duplicates(cache.thumbs(), rows)}
        planted = {(n - BACK, n) for n in range(EVERY - 1, len(files), EVERY)}
        return {"copies": len(planted), "found": len(found & planted), "false": len(found - planted)}

    return measured(work)


def prepare_step(folder: Path, number: int, size: int) -> Step:
    sources = [FolderSource(label, str(folder / "images" / label)) for label in CLASSES]
    counts = {label: {"train": int(number * 0.3), "val": number // 20, "test": number // 20} for label in CLASSES}
    guides, rules = GuideSource(str(folder / "guides"), CLASSES[0]), Rules(counts=counts, size=size, seed=0)
    study, cache = folder / "study", ImageCache(folder / "cache", size, 0)

    def work() -> Step:
        audit = prepare(sources, guides, rules, CLASSES, study, study / "prepare" / "x", cache)
        return {"in_manifest": len(audit.manifest), "near": len(audit.near)}

    return measured(work)


def alone(step: Callable[..., Step], *given: object) -> Step:
    """Run a step in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return {key: round(value, 2) for key, value in pool.submit(step, *given).result().items()}


def drawn(images: Path, first: int, last: int, side: int) -> list[Path]:
    """Draw files, in parallel, and return all that there are."""
    steps = [(start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("forkserver")) as pool:
        list(pool.map(draw, [images] * len(steps), *zip(*steps, strict=True), [side] * len(steps)))
    return [images / name(number) for number in range(last)]


def figures(folder: Path, number: int, side: int, size: int) -> Step:
    """Return the figures for `number` images."""
    for label in (*(f"images/{label}" for label in CLASSES), "guides"):
        (folder / label).mkdir(parents=True)
    for guide in range(GUIDES):
        picture(10**9 + guide, max(side, size)).save(folder / "guides" / f"{guide}.png")
        (folder / "guides" / f"{guide}.txt").write_text("blobs")
    files = drawn(folder / "images", 0, number, side)
    result: Step = {"images": number, "side": side, "size": size, "workers": len(os.sched_getaffinity(0))}
    result["bare"] = alone(bare_step, files, size)
    result["read"] = alone(read_step, folder, files, size)
    for key, of in (("ratio", "seconds"), ("ratio_cpu", "cpu")):
        result[key] = round(result["read"][of] / result["bare"][of], 2)
    files = drawn(folder / "images", number, number + ADDED, side)
    result["again"] = alone(read_step, folder, files, size)
    result["search"] = alone(search_step, folder, files, size)
    result["prepare"] = alone(prepare_step, folder, number, size)
    return {**result, "load": os.getloadavg()[0]}


def main() -> None:
    number, side, size = (int(given) for given in [*sys.argv[1:], *("1000", "256", "64")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(figures(Path(folder), number, side, size)))


if __name__ == "__main__":
    main()
