"""A small study to review: drawn candidates of two sets, guides and real images, and the desk that serves them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import uvicorn

from synthvision.artifact import sha256_file
from synthvision.data.images import write_png
from synthvision.manifest import Manifest, Record
from synthvision.review.desk import Desk
from synthvision.review.findings import findings
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.queue import Item, Material
from synthvision.review.server import Address, application, settings
from synthvision.review.store import Event, Store
from synthvision.study import REJECT_REASONS

POLICY = PhysicianPolicy(
    accept=100, per_set=None, reads=1, readers=[], rule="majority", rounds="alike", salt=0, repeats=0, seed=0,
    max_similarity=0.95, min_change=0.01,
)  # fmt: skip


def drawn(root: Path, prefix: str, number: int, seed: int, side: int = 24, **values: str) -> Manifest:
    """Draw images of noise around a tone; every second one of set "b"."""
    records = []
    for index in range(number):
        rng = np.random.default_rng([seed, index])
        name = f"{prefix}-{index}"
        image = rng.normal(rng.uniform(90, 200), 20, (side, side, 3)).clip(0, 255).astype(np.uint8)
        write_png(root / f"{name}.png", image, {"Origin": prefix})
        fixed = {"set": "ab"[index % 2], "prompt": f"photo of {['few', 'many'][index % 2]} sks spots"}
        digest = sha256_file(root / f"{name}.png")
        records.append(Record(name, f"{name}.png", digest, "lesion", **{"origin": "synthetic", **fixed, **values}))
    return Manifest(tuple(records), root)


def material(root: Path, number: int = 12, real: int = 6, **policy: object) -> Material:
    """Return candidates, three guides and real images."""
    return Material(
        drawn(root, "made", number, 1),
        drawn(root, "guide", 3, 2, origin="real", split="guide", prompt="", caption="few <sks> & sks spots"),
        drawn(root, "real", real, 3, origin="real", split="val", prompt="", set="guides"),
        replace(POLICY, **policy),  # type: ignore[arg-type]
        REJECT_REASONS,
        "sks",
        "Spots & <others>",
        Manifest((), root),
    )


def desk(given: Material, store: Store) -> Desk:
    """Return a desk with true findings."""
    folder = given.candidates.root / "decisions"
    checks = findings(given.candidates + given.real, given.guides, given.real, given.policy, 24, folder)
    return Desk(given, store, checks)


def vote(item: Item, reader: str, verdict: str, number: int = 0, **values: object) -> Event:
    """Return a reader's decision on an item."""
    reason = str(values.pop("reason", "artefact"))
    fixed = {"role": item.role, "kind": "decide", "shown_as": item.shown_as, "supersedes": "", "shown_ms": 1000}
    record, said = item.record, {"verdict": verdict, "reason": reason if verdict == "reject" else "", "note": ""}
    about = {"image": record.sha256, "image_id": record.image_id, "set": item.set, "prompt": item.prompt, "page": "p"}
    return Event(f"{reader} {item.token} {number}", reader, **{**fixed, **said, **about, **values})  # type: ignore[arg-type]


def decided(given: Material, verdicts: Mapping[str, str], store: Store) -> None:
    """Let each reader decide the same on every item."""
    for reader, verdict in verdicts.items():
        for item in given.queue(reader):
            store.add(vote(item, reader, verdict))


@contextmanager
def served(desk: Desk, token: str = "", address: Address | None = None) -> Iterator[str]:
    """Serve a desk from a thread; give its address."""
    app = application(desk, address or Address("127.0.0.1", 0, []), token)
    config = settings(app)
    config.port = 0
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
