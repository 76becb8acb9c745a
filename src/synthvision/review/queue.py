"""What a reader is shown, in which order: candidates, real images among them, repeats, and disagreements to settle.

Readers judge blinded. Nothing that reaches them tells a real image from a candidate or a repeat from a first showing:
the name of an item is a hash, a real image borrows set and prompt of a candidate like it, and its picture is sent
without the metadata that marks generated files. Every draw is a hash of the policy's seed, so that the same study
gives each reader the same order again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from synthvision.artifact import digest_of
from synthvision.manifest import Manifest, Record
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.store import Event, Key

GAP = 20  # images that lie at least between a candidate and its repeat, where the queue is long enough


@dataclass(frozen=True)
class Item:
    """One showing of one image to one reader."""

    token: str  # what the page calls it
    record: Record  # of the picture
    shown_as: str  # one of SHOWN_AS
    role: str  # one of ROLES
    set: str
    prompt: str  # what the candidate was asked to show; of a real image, a like candidate's

    def key(self, reader: str) -> Key:
        """What the reader's decision on it is filed under."""
        return reader, self.role, self.record.sha256, self.shown_as


@dataclass(frozen=True)
class Material:
    """What is judged, and by what.

    Raises:
        ValueError: there is nothing to judge, or two candidates are the same picture.
    """

    candidates: Manifest
    guides: Manifest
    real: (
        Manifest  # of the disease, to be put among the candidates; from validation, so that no classifier trains on it
    )
    policy: PhysicianPolicy
    reasons: Sequence[str]  # to reject for; the last asks for words
    identifier: str  # the word that stands for the disease in prompts; readers are spared it
    title: str
    others: Manifest  # candidates of other rounds, decided on already: they count, and are not shown

    def __post_init__(self) -> None:
        if not len(self.candidates):
            raise ValueError("there are no candidates to review; raise generate.candidates")
        digests = self.candidates.column("sha256")
        if len(set(digests)) < len(digests):
            raise ValueError(f"{len(digests) - len(set(digests))} candidates are copies of others, byte for byte")

    def queue(self, reader: str) -> list[Item]:
        """Return the reader's items in the order in which they are shown."""
        seed = self.policy.seed
        shown = [self._item(reader, record, "candidate") for record in self.candidates]
        shown += [self._salt(reader, record) for record in self.salted()]
        shown.sort(key=lambda item: _draw(seed, "order", reader, item.record.sha256))
        for record in self.repeated():
            first = next(place for place, item in enumerate(shown) if item.record == record)
            soonest = min(first + 1 + GAP, len(shown))
            place = soonest + _draw(seed, "repeat", reader, record.sha256) % (len(shown) + 1 - soonest)
            shown.insert(place, self._item(reader, record, "repeat"))
        return shown

    def salted(self) -> list[Record]:
        """Return the real images that every reader is shown among the candidates."""
        return _drawn(self.real, round(self.policy.salt * len(self.candidates)), self.policy.seed, "salt")

    def repeated(self) -> list[Record]:
        """Return the candidates that every reader is shown twice."""
        number = round(self.policy.repeats * len(self.candidates))
        return _drawn(self.candidates, number, self.policy.seed, "repeated")

    def disputes(self, reader: str, current: Mapping[Key, Event]) -> list[Item]:
        """Return what readers disagree on, for `reader` to settle, who is shown their votes.

        Who is a reader too settles only what he or she has judged: nobody sees another's vote before the own.
        """
        votes = votes_of(current)
        judged = {image for name, role, image, _ in current if (name, role) == (reader, "read")}
        reads = bool(judged) or reader in self.policy.readers
        disputed = [r for r in self.candidates if is_disputed(votes.get(r.sha256, []), self.policy)]
        items = [self._item(reader, r, "candidate", "adjudicate") for r in disputed if not reads or r.sha256 in judged]
        return sorted(items, key=lambda item: _draw(self.policy.seed, "order", reader, item.record.sha256))

    def description(self, item: Item) -> str:
        """Return what the image shall show, in clinical words."""
        return " ".join(word for word in item.prompt.split() if word != self.identifier)

    def guides_of(self, set_: str) -> list[Record]:
        """Return the guides of a set, or all where none is of it."""
        return list(self.guides.where(set=set_)) or list(self.guides)

    def _item(self, reader: str, record: Record, shown_as: str, role: str = "read") -> Item:
        token = digest_of([self.policy.seed, "token", reader, role, record.sha256, shown_as])[:32]
        return Item(token, record, shown_as, role, record.set, record.prompt)

    def _salt(self, reader: str, record: Record) -> Item:
        """Return a real image in the clothes of a candidate, of the same tone and place where there is one."""
        like = [c for c in self.candidates if (c.skin_tone, c.body_part) == (record.skin_tone, record.body_part)]
        lenders = like or list(self.candidates)
        lender = lenders[_draw(self.policy.seed, "lender", record.sha256) % len(lenders)]
        return replace(self._item(reader, record, "salt"), set=lender.set, prompt=lender.prompt)


def votes_of(current: Mapping[Key, Event]) -> dict[str, list[Event]]:
    """Return each candidate's votes by its image's digest, one of each reader, in the order of their names."""
    votes: dict[str, list[Event]] = {}
    for (_, role, image, shown_as), event in sorted(current.items()):
        if role == "read" and shown_as == "candidate":
            votes.setdefault(image, []).append(event)
    return votes


def is_disputed(votes: Sequence[Event], policy: PhysicianPolicy) -> bool:
    """Tell whether enough readers have voted and not all of them accept, nor all reject."""
    verdicts = {vote.verdict for vote in votes}
    return len(votes) >= policy.reads and verdicts not in ({"accept"}, {"reject"})


def _drawn(records: Iterable[Record], number: int, seed: int, what: str) -> list[Record]:
    return sorted(records, key=lambda record: _draw(seed, what, record.sha256))[:number]


def _draw(*what: object) -> int:
    return int(digest_of(what)[:16], 16)
