"""Several sets of guides in one study, each fine-tuned by itself: the Mpox paper's body parts and skin tones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from synthvision.data.columns import TELLABLE, told
from synthvision.data.intake import Found, GuideSource, Provenance

SET_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"
RESERVED = ("images", "work", "weights", "samples")  # folders of a stage beside those of its sets


@dataclass(frozen=True)
class GuideSet:
    """A group of guides that are trained on together, and what all of its pictures have in common."""

    name: str
    folder: str
    attributes: Mapping[str, str] = field(default_factory=dict)  # e.g. body_part: face, skin_tone: dark


@dataclass(frozen=True)
class GuideSets(Provenance):
    """Folders of guide images, one fine-tune each.

    Raises:
        ValueError: no set, two of one name or folder, or a name that a folder cannot have.
    """

    label: str
    sets: Sequence[GuideSet]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sets:
            raise ValueError("disease.guides.sets must list at least one set; it is empty")
        for each in self.sets:
            if not re.fullmatch(SET_NAME, each.name) or each.name in RESERVED:
                raise ValueError(
                    f"disease.guides.sets: a name may hold letters, digits, _ and -, begins with a letter or digit and "
                    f"is none of {RESERVED}; it is {each.name!r}"
                )
        for key in ("name", "folder"):
            twice = [value for value, count in Counter(getattr(each, key) for each in self.sets).items() if count > 1]
            if twice:
                raise ValueError(f"disease.guides.sets: each needs a {key} of its own; given twice: {twice}")

    def read(self) -> list[Found]:
        """Return all guides, set by set in the order of the list, each in the order of its names.

        Raises:
            FileNotFoundError: a folder is missing or has no images.
            ValueError: a caption is missing or has no image.
        """
        found = []
        for each in self.sets:
            source = GuideSource(str(Path(each.folder)), self.label, each.name, masks=self.masks, **self.known())
            common = {key: told(key, value) for key, value in each.attributes.items() if key in TELLABLE}
            found += [replace(guide, values={**guide.values, **common}) for guide in source.read()]
        return found


def sets_of(guides: GuideSource | GuideSets) -> Sequence[GuideSet]:
    """Return the sets of guides: of a single folder the one that it is."""
    return guides.sets if isinstance(guides, GuideSets) else [GuideSet(guides.set, guides.folder)]
