"""A reading session: the page for physicians, their decisions as a spreadsheet, and the proof that none was altered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthvision.data.images import decode, read_file
from synthvision.manifest import Manifest
from synthvision.review.desk import Desk
from synthvision.review.export import undecided
from synthvision.review.findings import findings
from synthvision.review.policy import PhysicianPolicy
from synthvision.review.queue import Material
from synthvision.review.server import Address, serve
from synthvision.review.sheet import SHEET, read_sheet, write_sheet
from synthvision.review.store import Store
from synthvision.stages.context import MANIFEST
from synthvision.stages.review import heads, store_file
from synthvision.stages.rounds import other_rounds
from synthvision.study import Study

ACTIONS = ("page", "export", "import", "verify")


@dataclass(frozen=True)
class Session:
    """What `stage=review` shall do: `conf/stage/review.yaml`.

    Raises:
        ValueError: a value breaks its rule; the message names the key.
    """

    action: str = "page"  # one of ACTIONS
    host: str = "127.0.0.1"
    port: int = 8765
    names: Sequence[str] = field(default_factory=list)
    reader: str = ""  # export and import: whose decisions
    folder: str = ""  # export and import: of the spreadsheet and its images

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"stage.action must be one of {ACTIONS}; it is {self.action!r}")
        if self.action in ("export", "import"):
            for key in ("reader", "folder"):
                if not getattr(self, key):
                    raise ValueError(f"stage.action={self.action} needs stage.{key}; it is empty")
        Address(self.host, self.port, self.names)


def read(session: Session, study: Study, before: Mapping[str, Path], say: Callable[[str], None]) -> None:
    """Do what the session asks for; the page is served until Ctrl-C.

    Args:
        session: what to do.
        study: its review policy is a physician's.
        before: folders of `prepare` and `generate`.
        say: told where the page is, and what was done.

    Raises:
        ChainError: a decision was altered; other ValueErrors name what they are about.
    """
    with Store(store_file(study)) as store:
        head = store.verify(heads(study))
        if session.action == "verify":
            say(f"{head.count} decisions and undos, chain unbroken, last hash {head.hash}")
            return
        candidates = Manifest.read(before["generate"] / MANIFEST, study.folder)
        copies = len(candidates) - len(undecided(candidates))
        if copies:
            say(f"{copies} candidates are copies of guides and not shown; see nearest_pairs.png beside them")
        others = other_rounds(study.folder, before["generate"], store.current(), _policy(study))
        if len(others):
            say(f"{len(others)} images that were decided on in other rounds of generation count too and are not shown")
        desk = _desk(study, undecided(candidates), others, before, store)
        _tell_if_sizes_tell(desk.material, say)
        folder = Path(session.folder)
        if session.action == "export":
            number = write_sheet(folder, desk, session.reader)
            say(f"{number} images and {folder / SHEET}: fill in decision, reason and note, then stage.action=import")
        elif session.action == "import":
            say(f"{read_sheet(folder, desk, session.reader)} new decisions of {session.reader} from {folder / SHEET}")
        else:
            serve(desk, Address(session.host, session.port, session.names), say)


def _desk(study: Study, candidates: Manifest, others: Manifest, before: Mapping[str, Path], store: Store) -> Desk:
    policy, disease = _policy(study), study.disease
    real = Manifest.read(before["prepare"] / MANIFEST, study.folder)
    guides = real.where(split="guide")
    material = Material(
        candidates=candidates,
        guides=guides,
        real=real.where(split="val", label=disease.positive),
        policy=policy,
        reasons=disease.reject_reasons,
        identifier=disease.subject.identifier,
        title=f"{disease.name}: {disease.positive}",
        others=others,
    )
    shown = material.candidates + Manifest(tuple(material.salted()), study.folder)
    checks = findings(shown, guides, real, policy, study.dataset.size, store_file(study).parent)
    return Desk(material, store, checks)


def _tell_if_sizes_tell(material: Material, say: Callable[[str], None]) -> None:
    """Say so where the real images among the candidates have another size: readers may see which are which."""
    shown = [material.candidates.records[0], *material.salted()[:1]]
    widths = [decode(read_file(material.candidates.file(record))).shape[1] for record in shown]
    if len(set(widths)) > 1:
        say(
            f"candidates are {widths[0]} pixels wide and the real images among them {widths[1]}: readers may tell them "
            "by that; use one size (dataset.size, generate.resolution), or set review.salt=0"
        )


def _policy(study: Study) -> PhysicianPolicy:
    assert isinstance(study.review, PhysicianPolicy)  # pipeline.py reads under no other policy
    return study.review
