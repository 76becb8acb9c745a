"""Every candidate is decided on: by physicians, or by automatic checks."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from synthvision import artifact
from synthvision.data.images import load_batch
from synthvision.data.sheets import contact_sheet
from synthvision.manifest import Manifest, kind_of_reason
from synthvision.review.agreement import Agreement, Interval, Reader, agreement, readers
from synthvision.review.export import export, missing
from synthvision.review.feedback import acceptance, write_acceptance
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.store import START, Event, Head, Key, Store
from synthvision.review.unattended import UnattendedPolicy, decide
from synthvision.stages.context import MANIFEST, Context, Result, Waiting
from synthvision.stages.rounds import other_rounds
from synthvision.study import Study

REVIEW = "review.json"  # what a finished review was made from, and how far its readers can be relied on
TILE = 128  # largest side of a picture on a contact sheet, in pixels


def run_review(given: Context) -> Result:
    """Decide on every candidate."""
    policy = given.study.review
    if isinstance(policy, PhysicianPolicy):
        return _by_physicians(given, policy)
    return _unattended(given, policy)


def _unattended(given: Context, policy: UnattendedPolicy) -> Result:
    real, candidates = given.manifest("prepare"), given.manifest("generate")
    decided = decide(candidates, policy, given.study.dataset.size, real)
    decided.write(given.out / MANIFEST)
    return _result(decided, {}, [given.out / MANIFEST])


def _by_physicians(given: Context, policy: PhysicianPolicy) -> Result:
    with Store(store_file(given.study)) as store:
        head = store.verify(heads(given.study))
        current = store.current()
    others = other_rounds(given.study.folder, given.before["generate"], current, policy)
    decided = export(given.manifest("generate") + others, current, policy)
    decided.write(given.out / MANIFEST)
    shown = _of_these(current, decided)
    kappas, people = agreement(shown, policy.seed), readers(shown, policy.seed)
    content = {"head": asdict(head), "rule": policy.rule, "agreement": kappas, "readers": people}
    artifact.write_json(given.out / REVIEW, _plain(content))
    write_acceptance(given.out / "prompts.csv", acceptance(current))
    files = [given.out / name for name in (MANIFEST, REVIEW, "prompts.csv")]
    for decision in ("accept", "reject"):
        files += _sheet(decided.where(decision=decision), given.out / f"{decision}ed.png", given.study.dataset.size)
    ids = set(others.column("image_id"))
    pooled = len(decided.where(lambda record: record.image_id in ids, decision="accept"))
    return _result(decided, {"accepted_in_other_rounds": pooled, **_metrics(kappas, people)}, files)


def _result(decided: Manifest, more: Mapping[str, float], files: Sequence[Path]) -> Result:
    accepted, rejected = decided.where(decision="accept"), decided.where(decision="reject")
    reasons = Counter(kind_of_reason(record.reason) for record in rejected)
    metrics = {f"rejected/{reason}": float(count) for reason, count in sorted(reasons.items())}
    tags = {"reviewer": ", ".join(sorted(set(decided.column("reviewer"))))}
    return Result({"accepted": len(accepted), **metrics, **more}, files, {"accepted": accepted}, tags=tags)


def store_file(study: Study) -> Path:
    """Return where a study's decisions lie: beside its stages, so that they outlive every config and round."""
    return study.folder / "decisions" / "decisions.sqlite"


def heads(study: Study) -> list[Head]:
    """Return the ends of the chain that finished reviews wrote down."""
    files = sorted((study.folder / "review").glob(f"*/{REVIEW}"))
    return [Head(**json.loads(file.read_text())["head"]) for file in files]


def decisions_digest(study: Study) -> str:
    """Return the end of the chain of decisions: a new decision makes a new review."""
    if not store_file(study).is_file():
        return START
    with Store(store_file(study)) as store:
        return store.head().hash


def check_decided(study: Study, before: Mapping[str, Path]) -> None:
    """Let the review begin only when every decision that its policy asks for is there.

    Raises:
        Waiting: some are missing.
    """
    if not isinstance(study.review, PhysicianPolicy):
        return
    candidates = Manifest.read(before["generate"] / MANIFEST, study.folder)
    with Store(store_file(study)) as store:
        lacking = missing(candidates, store.current(), study.review)
    if lacking.decisions:
        parts = [f"{lacking.reads} decisions on {lacking.images} of {len(candidates)} images"] * (lacking.reads > 0)
        parts += [f"{lacking.disputes} disagreements to settle"] * (lacking.disputes > 0)
        raise Waiting(f"{lacking.decisions} decisions are missing: {', and '.join(parts)}")


def _of_these(current: Mapping[Key, Event], candidates: Manifest) -> dict[Key, Event]:
    """Return the decisions on these candidates and on the real images shown among them, without those on others."""
    digests = set(candidates.column("sha256"))
    return {key: event for key, event in current.items() if event.shown_as == "salt" or event.image in digests}


def _sheet(images: Manifest, file: Path, size: int) -> list[Path]:
    if not len(images):
        return []
    contact_sheet(load_batch(images, min(size, TILE)), math.ceil(math.sqrt(len(images))), file)
    return [file]


def _metrics(kappas: Sequence[Agreement], people: Sequence[Reader]) -> dict[str, float]:
    """Return agreement and readers under names that MLflow can keep."""
    rows = {f"kappa/{row.part}/{row.measure}": row.kappa for row in kappas}
    for person in people:
        for what in ("accepted", "consistency", "d_prime", "auc"):
            rows[f"reader/{person.name}/{what}"] = getattr(person, what)
    values: dict[str, float] = {}
    for name, interval in rows.items():
        ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
        values |= {re.sub(r"[^\w./ -]", "", name) + end: value for end, value in ends.items() if value == value}
    return values


def _plain(value: object) -> object:
    """Return dataclasses as plain values, NaN as null."""
    if isinstance(value, (Agreement, Reader, Interval)):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
