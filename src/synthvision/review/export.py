"""From readers' votes to a data set: which candidates are accepted, by a stated rule and a seeded choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synthvision.artifact import digest_of
from synthvision.manifest import Manifest, Record
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.queue import is_disputed, votes_of
from synthvision.review.store import Event, Key


@dataclass(frozen=True)
class Missing:
    """What readers still have to do before candidates can be used."""

    reads: int  # decisions
    images: int  # that these are about
    disputes: int  # images whose readers disagree and that nobody has settled; 0 unless the rule asks for it

    @property
    def decisions(self) -> int:
        """All decisions that are missing."""
        return self.reads + self.disputes


def missing(candidates: Manifest, current: Mapping[Key, Event], policy: PhysicianPolicy) -> Missing:
    """Return what is missing of the decisions on `candidates`.

    Repeats and real images are not waited for, nor what was rejected before: a copy of a guide comes to no reader.
    """
    lacking = _lacking(undecided(candidates), current, policy)
    reads = [number for number, _ in lacking.values()]
    return Missing(sum(reads), sum(map(bool, reads)), sum(disputed for _, disputed in lacking.values()))


def complete(candidates: Manifest, current: Mapping[Key, Event], policy: PhysicianPolicy) -> Manifest:
    """Return the candidates that readers decided on, none of whose decisions is missing."""
    lacking = _lacking(undecided(candidates), current, policy)
    return candidates.where(lambda record: lacking.get(record.image_id) == (0, False))


def _lacking(
    candidates: Manifest, current: Mapping[Key, Event], policy: PhysicianPolicy
) -> dict[str, tuple[int, bool]]:
    """Return by image_id how many decisions are missing, and whether a disagreement has to be settled."""
    votes, settled = votes_of(current), _settled(current)
    lacking = {}
    for record in candidates:
        given = votes.get(record.sha256, [])
        unsettled = policy.rule == "adjudicated" and record.sha256 not in settled and is_disputed(given, policy)
        lacking[record.image_id] = (max(0, policy.reads - len(given)), unsettled)
    return lacking


def undecided(candidates: Manifest) -> Manifest:
    """Return the candidates that readers decide on: all but those that the memorisation gate rejected."""
    return candidates.where(decision="")


def export(candidates: Manifest, current: Mapping[Key, Event], policy: PhysicianPolicy) -> Manifest:
    """Return the candidates, each with decision, reason and the names of those who decided.

    What was rejected before stays so, whatever readers said of it in an earlier round.

    Args:
        candidates: all of them decided on; see `missing`.
        current: the decisions that hold.
        policy: rule, and how many are wanted.

    Raises:
        ValueError: decisions are missing, or no image is accepted.
    """
    lacking = missing(candidates, current, policy)
    if lacking.decisions:
        raise ValueError(f"{lacking.decisions} decisions are missing; synthvision stage=review opens the page")
    votes, settled = votes_of(current), _settled(current)
    accepted = [r for r in undecided(candidates) if _accepts(votes[r.sha256], settled.get(r.sha256), policy)]
    if not accepted:
        raise ValueError(
            f"no candidate is accepted under review.rule={policy.rule}; look at the prompts with the most rejections "
            "(prompts.csv of the review), change disease.templates or dreambooth, and generate anew"
        )
    wanted = {record.image_id for record in choose(accepted, policy)}
    passed = {record.image_id for record in accepted}

    def decided(record: Record) -> dict[str, str]:
        if record.decision:
            return {}
        given, judge = votes[record.sha256], settled.get(record.sha256)
        judge = judge if policy.rule == "adjudicated" and is_disputed(given, policy) else None
        names = sorted({vote.reader for vote in [*given, *([judge] if judge else [])]})
        values = {"decision": "accept" if record.image_id in wanted else "reject", "reviewer": ", ".join(names)}
        if record.image_id in passed and record.image_id not in wanted:
            return values | {"reason": f"surplus: {len(wanted)} images were chosen of {len(passed)} accepted"}
        return values | {"reason": _reason(given, judge, record.image_id in passed)}

    return candidates.with_values(decided)


def choose(accepted: Sequence[Record], policy: PhysicianPolicy) -> list[Record]:
    """Return those of the accepted images that are used.

    Sets take turns, each giving its image with the lowest hash of seed and digest, until `policy.accept` are chosen; no
    set gives more than `policy.per_set` allows.
    """
    order = sorted(accepted, key=lambda record: digest_of([policy.seed, "choice", record.sha256]))
    rank: Counter[str] = Counter()
    turns = []
    for record in order:
        turns.append((rank[record.set], record.set, record))
        rank[record.set] += 1
    most = policy.per_set[1] if policy.per_set else len(accepted)
    taken = [record for turn, _, record in sorted(turns, key=lambda turn: turn[:2]) if turn < most]
    return taken[: policy.accept]


def target(policy: PhysicianPolicy, candidates: Manifest, set_: str) -> tuple[int, int]:
    """Return the fewest and the most images that are wanted of a set."""
    if policy.per_set:
        return policy.per_set[0], policy.per_set[1]
    share = -(-policy.accept // len(set(candidates.column("set"))))
    share = min(share, len(candidates.where(set=set_)))
    return share, share


def _settled(current: Mapping[Key, Event]) -> dict[str, Event]:
    """Return what adjudicators decided, by the image's digest; of several, the latest word holds."""
    last: dict[str, Event] = {}
    for event in sorted(current.values(), key=lambda event: event.at):
        if event.role == "adjudicate":
            last[event.image] = event
    return last


def _accepts(votes: Sequence[Event], judge: Event | None, policy: PhysicianPolicy) -> bool:
    share = sum(vote.verdict == "accept" for vote in votes) / len(votes)
    if policy.rule == "any":
        return share > 0
    if policy.rule == "majority":
        return share > 0.5
    if policy.rule == "adjudicated" and is_disputed(votes, policy):
        return judge is not None and judge.verdict == "accept"
    return share == 1


def _reason(votes: Sequence[Event], judge: Event | None, accepted: bool) -> str:
    """Return why, in the words that most readers chose; notes stay in the store: they may hold anything."""
    if judge:
        return f"{judge.reason or judge.verdict}: adjudicated"
    counted = f"{sum(vote.verdict == 'accept' for vote in votes)} of {len(votes)} accept"
    reasons = Counter(vote.reason for vote in votes if vote.reason)
    why = min(reasons, key=lambda reason: (-reasons[reason], reason)) if reasons else "unsure"
    return f"{'accepted' if accepted else why}: {counted}"
