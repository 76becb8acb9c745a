"""Every candidate is decided on."""

from __future__ import annotations

from collections import Counter

from synthvision.manifest import kind_of_reason
from synthvision.review.unattended import decide
from synthvision.stages.context import MANIFEST, Context, Result


def run_review(given: Context) -> Result:
    """Decide on every candidate."""
    real, candidates = given.manifest("prepare"), given.manifest("generate")
    decided = decide(candidates, real.where(split="guide"), given.study.review, given.study.dataset.size, real)
    decided.write(given.out / MANIFEST)
    accepted, rejected = decided.where(decision="accept"), decided.where(decision="reject")
    reasons = Counter(kind_of_reason(record.reason) for record in rejected)
    metrics = {f"rejected/{reason}": float(count) for reason, count in sorted(reasons.items())}
    tags = {"reviewer": ", ".join(sorted(set(decided.column("reviewer"))))}
    return Result({"accepted": len(accepted), **metrics}, [given.out / MANIFEST], {"accepted": accepted}, tags=tags)
