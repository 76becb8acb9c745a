"""What the decisions say about the prompts: which to drop or reword before the next round of generation."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthvision.artifact import write_text
from synthvision.review.agreement import LEVEL, Interval, wilson
from synthvision.review.queue import votes_of
from synthvision.review.store import Event, Key


@dataclass(frozen=True)
class Acceptance:
    """How often images of one prompt, or of all prompts with one word, were accepted by most of their readers."""

    kind: str  # "prompt" or "word"
    text: str
    accepted: int
    share: Interval
    reasons: Mapping[str, int]  # why votes rejected
    advice: str  # "drop or reword", "keep" or "": its share differs from that of all images, all rows considered


def acceptance(current: Mapping[Key, Event]) -> list[Acceptance]:
    """Return the acceptance of each prompt and of each word that not every prompt has, the least accepted first.

    All rounds of generation count: a decision keeps its prompt. Words tell more than prompts where many attributes give
    each prompt few images.
    """
    images = list(votes_of(current).values())
    overall = wilson(sum(map(_accepted, images)), len(images)).value
    prompts: dict[str, list[list[Event]]] = {}
    for votes in images:
        prompts.setdefault(votes[0].prompt, []).append(votes)
    everywhere = set.intersection(*[_words(prompt) for prompt in prompts]) if prompts else set()
    words: dict[str, list[list[Event]]] = {}
    for prompt, group in prompts.items():
        for word in sorted(_words(prompt) - everywhere):
            words.setdefault(word, []).extend(group)
    rows = [_row("prompt", text, group, overall, len(prompts)) for text, group in prompts.items()]
    rows += [_row("word", text, group, overall, len(words)) for text, group in words.items()]
    return sorted(rows, key=lambda row: (row.kind, row.share.value, -row.share.n, row.text))


def write_acceptance(file: Path, rows: Sequence[Acceptance]) -> None:
    """Write the table as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "text", "images", "accepted", "share", "low", "high", "advice", "reasons"])
    for row in rows:
        reasons = "; ".join(f"{reason} {count}" for reason, count in row.reasons.items())
        share = [f"{value:.3f}" for value in (row.share.value, row.share.low, row.share.high)]
        writer.writerow([row.kind, row.text, row.share.n, row.accepted, *share, row.advice, reasons])
    write_text(file, out.getvalue())


def _row(kind: str, text: str, images: Sequence[Sequence[Event]], overall: float, rows: int) -> Acceptance:
    """Return one row. Its advice is Bonferroni's: of hundreds of prompts with two images each, many fail by chance."""
    accepted, n = sum(map(_accepted, images)), len(images)
    careful = wilson(accepted, n, 1 - (1 - LEVEL) / rows)
    reasons = Counter(vote.reason for votes in images for vote in votes if vote.reason)
    advice = "drop or reword" if careful.high < overall else "keep" if careful.low > overall else ""
    return Acceptance(kind, text, accepted, wilson(accepted, n), dict(reasons.most_common()), advice)


def _accepted(votes: Sequence[Event]) -> bool:
    return sum(vote.verdict == "accept" for vote in votes) * 2 > len(votes)


def _words(prompt: str) -> set[str]:
    return {word.strip(",.;") for word in prompt.split()}
