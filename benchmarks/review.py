"""Measure how soon a decision shows the next image: 1,600 images in a real Chromium, with the server beside it.

    python benchmarks/review.py [decisions, 200] [side in pixels, 64]

From the key's own time stamp to the second frame after the next image stands on the page, so that it is painted.
Between decisions a key is pressed that does nothing: what its second frame takes is the machine's part. Images are
drawn here; each decision is stored durably as in a study. Chromium must be on PATH (Debian: chromium).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

import numpy as np
import uvicorn
from playwright.sync_api import expect, sync_playwright
from rich.progress import track

from synthvision.artifact import sha256_file
from synthvision.data.images import write_png
from synthvision.manifest import Manifest, Record
from synthvision.review.desk import Desk
from synthvision.review.findings import Finding
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.queue import Material
from synthvision.review.server import Address, application, settings
from synthvision.review.store import Store
from synthvision.study import REJECT_REASONS

IMAGES = 1600
PAUSE = 0.15  # seconds after each key: faster than any reader
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WATCH = """() => {
  Object.assign(window, { latencies: [], idle: [] });
  let pressed = 0;
  const measure = (since, into) =>
    requestAnimationFrame(() => requestAnimationFrame(() => into.push(performance.now() - since)));
  addEventListener("keydown", (event) => {
    pressed = event.timeStamp;
    if (event.key === "x") measure(pressed, idle);
  }, true);
  new MutationObserver(() => measure(pressed, latencies)).observe(document.getElementById("one"), { childList: true });
}"""


def drawn(root: Path, number: int, side: int, origin: str, **values: str) -> Manifest:
    """Draw smooth pictures with some grain, as photographs of skin compress."""
    records = []
    for index in track(range(number), description=f"drawing {origin}"):
        rng = np.random.default_rng([number, index])
        small = rng.uniform(80, 220, (8, 8, 3)).astype(np.uint8)
        smooth = np.kron(small, np.ones((side // 8, side // 8, 1)))
        image = (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
        name = f"{origin}-{index}"
        write_png(root / f"{name}.png", image)
        digest = sha256_file(root / f"{name}.png")
        records.append(Record(name, f"{name}.png", digest, "lesion", origin, set=f"set {index % 8}", **values))
    return Manifest(tuple(records), root)


def main(decisions: int, side: int) -> None:
    """Print the median and the 95th percentile in milliseconds."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "decisions.sqlite") as store:
        root = Path(folder)
        policy = PhysicianPolicy(1000, [100, 150], 1, [], "majority", "this", 0.0, 0.05, 0, 0.95, 0.01)
        guides = drawn(root, 10, side, "real", split="guide", caption="guide")
        candidates = drawn(root, IMAGES, side, "synthetic", prompt="spots")
        nothing = guides.where(split="val")
        material = Material(candidates, guides, nothing, policy, REJECT_REASONS, "sks", "benchmark", nothing)
        checks = {record.sha256: Finding(0.1, guides.records[0].image_id, "") for record in candidates}
        config = settings(application(Desk(material, store, checks), Address("127.0.0.1", 0, [])))
        config.port = 0
        server = uvicorn.Server(config)
        thread = Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        latencies = _press(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", decisions)
        kept = store.verify().count
        server.should_exit = True
        thread.join()
    print(f"{len(latencies['decision'])} decisions among {IMAGES} images of {side} px; {kept} kept")
    for name, values in latencies.items():
        median, high = np.quantile(values, [0.5, 0.95])
        print(f"{name}: median {median:.1f} ms, 95th percentile {high:.1f} ms, worst {max(values):.1f} ms")


def _press(url: str, decisions: int) -> dict[str, list[float]]:
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.get_by_label("Your name").fill("benchmark")
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector("#one img")
        page.wait_for_timeout(2000)
        page.evaluate(WATCH)
        for number in track(range(decisions), description="deciding"):
            for key in ("a" if number % 3 else "5", "x"):
                page.keyboard.press(key)
                time.sleep(PAUSE)
        expect(page.locator("#saved")).to_have_text("All saved", timeout=60_000)
        found: dict[str, list[float]] = page.evaluate("({ decision: latencies, 'a key that does nothing': idle })")
        browser.close()
    return found


if __name__ == "__main__":
    main(*(int(value) for value in [*sys.argv[1:], *["200", "64"][len(sys.argv) - 1 :]]))
