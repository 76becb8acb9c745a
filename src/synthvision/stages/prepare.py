"""Real images: drawn where the study is the phantom, read, checked and split."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from synthvision import artifact
from synthvision.data.phantom import write_phantoms
from synthvision.data.prepare import prepare
from synthvision.stages.context import Context, Result
from synthvision.study import Study

PHANTOM = "phantom.json"  # says how the phantoms beside it were drawn


def run_prepare(given: Context) -> Result:
    """Read, check and split the real images."""
    study, data = given.study, given.study.dataset
    audit = prepare(
        data.sources, study.disease.guides, data.counts, data.size, data.seed, study.folder, given.out,
        study.disease.classes, data.leaks,
    )  # fmt: skip
    counts = {f"images/{label}/{part}": n for label, row in audit.counts().items() for part, n in row.items()}
    metrics = {**counts, "quarantined": audit.quarantined, "duplicates": audit.duplicates, "leaks": len(audit.leaks)}
    return Result(metrics, files=[given.out / "audit.json"], inputs={"prepared": audit.manifest})


def draw_phantoms(study: Study) -> None:
    """Draw the phantom study's images, unless they are there: what follows treats them as a user's."""
    config = study.dataset.phantom
    if config is None:
        return
    folder = Path(study.dataset.folder)
    wanted = {"config": asdict(config), "code": artifact.code_digest("data")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # two jobs of a sweep may start at once
        marker = folder / PHANTOM
        if marker.is_file() and json.loads(marker.read_text()) == wanted:
            return
        if folder.exists() and not marker.is_file():
            raise ValueError(
                f"dataset.folder={folder} holds something else; for your own images set dataset.phantom=null"
            )
        drawing = folder.with_name(f".{folder.name}{artifact.PART}")
        for old in (folder, drawing):
            shutil.rmtree(old, ignore_errors=True)
        write_phantoms(drawing, config)
        artifact.write_json(drawing / PHANTOM, wanted)
        drawing.rename(folder)


def source_digest(study: Study) -> str:
    """Return a digest of what the user's sources tell and of the files they name."""
    sources = [study.disease.guides, *study.dataset.sources]
    rows = [
        (number, found.file.name, sorted(found.values.items()), *map(_digest_of_file, [found.file, found.mask]))
        for number, source in enumerate(sources)
        for found in source.read()
    ]
    return artifact.digest_of(rows)


def _digest_of_file(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return artifact.sha256_file(file)
    except OSError:
        return "unreadable"  # prepare will say why
