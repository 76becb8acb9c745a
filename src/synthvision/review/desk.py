"""What the review page asks for and tells: queue, pictures, decisions. Knows no HTTP."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from synthvision.data.images import decode, encode_png, read_file
from synthvision.manifest import Record
from synthvision.review.export import target
from synthvision.review.findings import Finding
from synthvision.review.queue import Item, Material, votes_of
from synthvision.review.store import ConflictError, Event, Key, Store, current

NAME_LENGTH = 60
PICTURES = 96  # held ready for the page, which asks for some ahead


@dataclass(frozen=True)
class Sent:
    """A decision or undo as the page sends it."""

    id: str
    reader: str
    role: str
    item: str  # the item's token
    kind: str
    verdict: str
    reason: str
    note: str
    shown_ms: int
    supersedes: str
    page: str


class Desk:
    """One study's review, as readers see it."""

    def __init__(self, material: Material, store: Store, findings: Mapping[str, Finding]) -> None:
        self.material, self.store, self.findings = material, store, findings
        self._guides = list(material.guides)
        self._queues: dict[str, dict[str, Item]] = {}
        self.picture_of = lru_cache(PICTURES)(self._encoded)

    def study(self) -> dict[str, Any]:
        """Return what every reader may know."""
        policy = self.material.policy
        return {
            "title": self.material.title,
            "reasons": list(self.material.reasons),
            "readers": list(policy.readers),
            "adjudicates": policy.rule == "adjudicated",
            "unmarked": policy.salt > 0 or policy.repeats > 0,
        }

    def queue(self, reader: str, role: str) -> dict[str, Any]:
        """Return the reader's items with the own decisions, in order, and the sets with their targets."""
        reader = self.reader(reader)
        events = self.store.events()
        holding = current(events)
        items = self._items(reader, role, holding)
        place = {event.id: number for number, event in enumerate(events)}
        votes = votes_of(holding) if role == "adjudicate" else {}
        names = list(dict.fromkeys(sorted(item.set for item in items)))
        rows = []
        for item in items:
            own = holding.get(item.key(reader))
            row = {"token": item.token, "set": names.index(item.set), "description": self.material.description(item)}
            row |= {"decision": _told(own), "order": place[own.id] if own else -1}
            rows.append(row | ({"votes": _unnamed(votes.get(item.record.sha256, []))} if votes else {}))
        accepted = self._accepted_elsewhere(reader, role, holding)
        sets = [self._set(name, items) | {"before": accepted[name]} for name in names]
        return {"items": rows, "sets": sets if len(sets) > 1 else [{**each, "name": "all images"} for each in sets]}

    def add(self, sent: Sent) -> dict[str, Any]:
        """Keep a decision, and return the one that holds for this item now.

        Raises:
            KeyError: the item is none of this reader's.
            ValueError: the decision breaks a rule; ConflictError: it was taken elsewhere in the meantime.
        """
        event = self.check(sent)
        self.store.add(event)
        return {"current": _told(self.store.holds(event.key))}

    def check(self, sent: Sent) -> Event:
        """Return what will be kept of a decision; see `add` for what is refused."""
        reader = self.reader(sent.reader)
        item = self._item(reader, sent.role, sent.item)
        if sent.reason and sent.reason not in self.material.reasons:
            raise ValueError(f"reason must be one of disease.reject_reasons; it is {sent.reason!r}")
        if sent.reason == self.material.reasons[-1] and not sent.note.strip():
            raise ValueError(f"the reason {sent.reason!r} needs a note")
        record = item.record
        return Event(
            sent.id, reader, sent.role, sent.kind, record.sha256, record.image_id, item.set, item.prompt, item.shown_as,
            sent.verdict, sent.reason, sent.note.strip(), sent.shown_ms, sent.supersedes, sent.page,
        )  # fmt: skip

    def items(self, reader: str) -> list[Item]:
        """Return a reader's items in order."""
        return list(self._known(self.reader(reader)).values())

    def refused(self, conflict: ConflictError) -> dict[str, Any]:
        """Return what the page is told where a decision came too late."""
        return {"error": str(conflict), "current": _told(conflict.current)}

    def picture(self, reader: str, role: str, token: str) -> bytes:
        """Return an item's picture as PNG without metadata.

        Raises:
            KeyError: no such item.
            ValueError: the file is not the one that the manifest names.
        """
        return self.picture_of(self._item(self.reader(reader), role, token).record)

    def guides(self, set_: str) -> list[dict[str, Any]]:
        """Return number and caption of each guide of a set."""
        numbers = {record.image_id: number for number, record in enumerate(self._guides)}
        spared = self.material.identifier
        return [
            {"number": numbers[r.image_id], "caption": " ".join(word for word in r.caption.split() if word != spared)}
            for r in self.material.guides_of(set_)
        ]

    def guide(self, number: int) -> bytes:
        """Return a guide's picture.

        Raises:
            KeyError: no such guide.
        """
        if not 0 <= number < len(self._guides):
            raise KeyError(number)
        return self.picture_of(self._guides[number])

    def finding(self, reader: str, role: str, token: str) -> dict[str, Any]:
        """Return what automatic checks say of an image that the reader has decided on.

        Raises:
            KeyError: no such item.
            PermissionError: the reader has not decided yet.
        """
        reader = self.reader(reader)
        item = self._item(reader, role, token)
        if self.store.holds(item.key(reader)) is None:
            raise PermissionError("automatic checks are shown after the own decision")
        finding = self.findings[item.record.sha256]
        guide = next(number for number, record in enumerate(self._guides) if record.image_id == finding.guide)
        return {"similarity": finding.similarity, "guide": guide, "fault": finding.fault}

    def reader(self, name: str) -> str:
        """Return a reader's name, spaces tidied.

        Raises:
            ValueError: it is empty, too long, or none of review.readers.
        """
        name, allowed = " ".join(name.split()), self.material.policy.readers
        if not name or len(name) > NAME_LENGTH or not name.isprintable():
            raise ValueError(f"a reader's name must have 1 to {NAME_LENGTH} characters")
        if allowed and name not in allowed:
            raise ValueError(f"{name!r} is none of review.readers={list(allowed)}")
        return name

    def _items(self, reader: str, role: str, holding: Mapping[Key, Event]) -> list[Item]:
        if role == "adjudicate":
            found = self.material.disputes(reader, holding)
            self._queues[f"{role} {reader}"] = {item.token: item for item in found}
            return found
        return list(self._known(reader).values())

    def _known(self, reader: str) -> dict[str, Item]:
        if f"read {reader}" not in self._queues:
            self._queues[f"read {reader}"] = {item.token: item for item in self.material.queue(reader)}
        return self._queues[f"read {reader}"]

    def _item(self, reader: str, role: str, token: str) -> Item:
        if role == "read":
            return self._known(reader)[token]
        if token not in self._queues.get(f"{role} {reader}", {}):  # after a restart of the server
            self._items(reader, role, self.store.current())
        return self._queues[f"{role} {reader}"][token]

    def _accepted_elsewhere(self, reader: str, role: str, holding: Mapping[Key, Event]) -> Counter[str]:
        """Count by set what the reader accepted in other rounds; what others accepted there stays hidden here too."""
        keys = [(record.set, (reader, role, record.sha256, "candidate")) for record in self.material.others]
        return Counter(name for name, key in keys if key in holding and holding[key].verdict == "accept")

    def _set(self, name: str, items: Sequence[Item]) -> dict[str, Any]:
        """Return a set's name, size and target. The shown images include unmarked ones: without them in every count,
        a count that stands still would mark one."""
        candidates = self.material.candidates
        least, most = target(self.material.policy, candidates + self.material.others, name)
        return {
            "name": name or "no set",
            "shown": sum(item.set == name for item in items),
            "candidates": len(candidates.where(set=name)),
            "least": least,
            "most": most,
            "guides": self.guides(name),
        }

    def _encoded(self, record: Record) -> bytes:
        data = read_file(self.material.candidates.file(record))  # all manifests of a study have one root
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise ValueError(f"the file of image {record.image_id} is not the one that its manifest names")
        return encode_png(decode(data))


def _told(event: Event | None) -> dict[str, str] | None:
    return {"id": event.id, "verdict": event.verdict, "reason": event.reason, "note": event.note} if event else None


def _unnamed(votes: Sequence[Event]) -> list[dict[str, str]]:
    return [{"verdict": vote.verdict, "reason": vote.reason, "note": vote.note} for vote in votes]
