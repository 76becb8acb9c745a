"""Real images: drawn where the study is the phantom, read, checked and split."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock

from synthvision import artifact
from synthvision.data.audit import write_audit
from synthvision.data.cache import ImageCache
from synthvision.data.phantom import write_phantoms
from synthvision.data.prepare import prepare
from synthvision.data.reading import read_pictures
from synthvision.evaluation.shortcuts import in_words, probe_intake, probe_metrics, write_probes
from synthvision.stages.context import Context, Result, image_cache
from synthvision.study import Study

PROBES = "probes.json"
PHANTOM = "phantom.json"  # says how the phantoms beside it were drawn


def run_prepare(given: Context) -> Result:
    """Read, check and split the real images."""
    study, data, cache = given.study, given.study.dataset, _cache(given.study)
    audit = prepare(
        data.sources, study.disease.guides, data.rules, study.disease.classes, study.folder, given.out, cache
    )
    probes = probe_intake(audit.traits, cache.pixels(), study.disease.classes, data.seed)
    write_probes(given.out / PROBES, probes)
    files = write_audit(given.out, audit, [in_words(probe) for probe in probes])
    counts = {f"images/{label}/{part}": n for label, row in audit.counts().items() for part, n in row.items()}
    found = {"quarantined": audit.quarantined, "duplicates": audit.duplicates, "near_duplicates": len(audit.near)}
    metrics = {**counts, **found, "leaks": len(audit.leaks), **probe_metrics(probes, "shortcut")}
    return Result(metrics, files=files, inputs={"prepared": audit.manifest})


def _cache(study: Study) -> ImageCache:
    return image_cache(study, study.dataset.size)


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
    """Return a digest of what the user's sources tell and of the files they name.

    What is new is read and decoded here, once; `prepare` finds it in the cache.
    """
    sources = enumerate([study.disease.guides, *study.dataset.sources])
    found = [(number, each) for number, source in sources for each in source.read()]
    pictures = read_pictures([each.file for _, each in found], _cache(study), study.dataset.workers)
    rows = [
        (number, each.file.name, sorted(each.values.items()), picture.sha256 or "unreadable", _mask_digest(each.mask))
        for (number, each), picture in zip(found, pictures, strict=True)
    ]
    return artifact.digest_of(rows)


def _mask_digest(mask: Path | None) -> str:
    try:
        return artifact.sha256_file(mask) if mask else ""
    except OSError:
        return "unreadable"  # prepare will say why
