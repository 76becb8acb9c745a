"""Intake: where images lie and what is known of them. Sources list files and values; nothing is decoded here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthvision.data.columns import SPLITS, TELLABLE, told
from synthvision.data.masks import is_mask, mask_of
from synthvision.data.tables import read_table
from synthvision.manifest import EXTERNAL, IDENTIFIER

CAPTION = ".txt"
MASKS = ("{stem}.mask.png", "{stem}_mask.png")  # the names of a mask beside an image, {stem} being the image's
MASK_COLUMN = "mask"


@dataclass(frozen=True)
class Found:
    """A file a source names, and the values of its Record that are known so far."""

    file: Path
    values: dict[str, str]
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """On what terms a source's images may be used, and how their diagnosis was established. Empty: unknown.

    Raises:
        ValueError: the reference standard is none of the known ones.
    """

    licence: str = ""
    consent: str = ""
    reference_standard: str = ""
    site: str = ""
    device: str = ""
    masks: Sequence[str] = MASKS

    def __post_init__(self) -> None:
        told("reference_standard", self.reference_standard)
        for pattern in self.masks:
            if "{stem}" not in pattern:
                raise ValueError(
                    f"masks: a pattern must hold {{stem}}, the image's name without its end; it is {pattern!r}"
                )

    def known(self) -> dict[str, str]:
        """Return the values by column name."""
        columns = ("licence", "consent", "reference_standard", "site", "device")
        return {column: told(column, getattr(self, column)) for column in columns}


@dataclass(frozen=True)
class FolderSource(Provenance):
    """A folder whose images all have one label.

    `pattern` chooses files as `pathlib.Path.glob` does: "*.bmp", or "**/*" with subfolders. Hidden files are left out,
    and masks are no images: see `masks`. `split` puts all of them on one side; `external` makes them, or a part, of the
    external test set of that name: all are used, none is ever trained on or drawn for another split.
    """

    label: str
    folder: str
    pattern: str = "*"
    split: str = ""
    external: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.split, self.external)

    def read(self) -> list[Found]:
        """Return the folder's files in the order of their names.

        Raises:
            FileNotFoundError: the folder is missing or no file matches.
        """
        files = list(_visible_files(_existing_folder(self.folder, "folder"), self.pattern))
        masks = _masks_of(files, self.masks)
        known = {**self.known(), "label": self.label, **_side(self.split, self.external)}
        images = [file for file in files if file not in set(masks.values())]
        if not images:
            raise FileNotFoundError(
                f"no files match {self.pattern!r} in {self.folder}; put images there or change 'pattern'"
            )
        return [Found(file, dict(known), masks.get(file)) for file in images]


@dataclass(frozen=True)
class TableSource(Provenance):
    """A CSV or Parquet table with a row per image.

    `labels` maps the cells of `label_column` to labels; rows with other cells are left out. A cell of `image_column`
    becomes a file name through `image_template` ("{:0>3}.bmp" turns 7 into 007.bmp), relative to `folder`, or to the
    table's own folder. `columns` maps columns of Record (and "mask") to columns of the table; a cell that is not empty
    goes before what the source says of all. `values` maps the table's words to those of a column, e.g.
    {reference_standard: {histology: biopsy}}. `split` and `external`: see FolderSource.

    Raises:
        ValueError: `columns` names something that a table cannot tell, `labels` is empty, or a split is given twice.
    """

    file: str
    image_column: str
    label_column: str
    labels: Mapping[str, str]
    image_template: str = "{}"
    folder: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    split: str = ""
    external: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_side(self.split, self.external)
        if self.external and "split" in self.columns:
            raise ValueError(f"external={self.external!r} is a split of its own; remove 'split' from columns")
        allowed = (*TELLABLE, MASK_COLUMN)
        for key, given in (("columns", self.columns), ("values", self.values)):
            unknown = sorted(set(given) - set(allowed))
            if unknown:
                raise ValueError(f"{key}: keys must be among {allowed}; these are not: {unknown}")
        if not self.labels:
            raise ValueError("labels: map at least one value of the label column to a label, e.g. {'2': 'lymphocyte'}")
        # YAML reads an unquoted 2 as a number, the table gives text
        object.__setattr__(self, "labels", {str(cell): str(label) for cell, label in self.labels.items()})

    def read(self) -> list[Found]:
        """Return a file per row that has one of the labels, in the order of the rows.

        Raises:
            FileNotFoundError: the table or its folder is missing.
            ValueError: a column is missing, a cell is not in its column's words, or no row has one of the labels.
        """
        file = Path(self.file).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no table at {self.file}; put it there or change 'file'")
        folder = _existing_folder(self.folder, "folder") if self.folder else file.parent
        table = read_table(file)
        wanted = (self.image_column, self.label_column, *self.columns.values())
        missing = [name for name in wanted if name not in table.columns]
        if missing:
            raise ValueError(f"{self.file}: no column {missing}; its columns are {list(table.columns)}")
        found = [
            self._found(row, folder, number)
            for number, row in enumerate(table.rows, 2)
            if row[self.label_column] in self.labels
        ]
        if not found:
            raise ValueError(f"{self.file}: no {self.label_column!r} is one of {sorted(self.labels)}; change 'labels'")
        return found

    def _found(self, row: Mapping[str, str], folder: Path, number: int) -> Found:
        file = folder / self.image_template.format(row[self.image_column])
        known = {**self.known(), **_side(self.split, self.external)}
        try:
            for column, name in self.columns.items():
                cell = told(column, self.values.get(column, {}).get(row[name], row[name]))
                known |= {column: cell} if cell else {}
        except ValueError as error:
            raise ValueError(f"{self.file}, row {number}: {error}") from error
        named = known.pop(MASK_COLUMN, "")
        mask = folder / named if named else _beside(file, self.masks)
        return Found(file, {**known, "label": self.labels[row[self.label_column]]}, mask)


@dataclass(frozen=True)
class GuideSource(Provenance):
    """A folder of guide images, each with its caption in a `.txt` file of the same stem.

    A mask (see `masks`; white where the lesion is) or box (`NAME.box.txt`: left top right bottom) is optional.
    """

    folder: str
    label: str
    set: str = "guides"

    def read(self) -> list[Found]:
        """Return the guides in the order of their names.

        Raises:
            FileNotFoundError: the folder is missing or has no images.
            ValueError: an image has no caption, an empty one or two, or a caption, mask or box has no image.
        """
        every = list(_visible_files(_existing_folder(self.folder, "guides.folder"), "*"))
        pictures = [file for file in every if file.suffix.lower() != CAPTION]
        named = _masks_of(pictures, self.masks)
        files = [file for file in every if not is_mask(file) and file not in set(named.values())]
        images = [file for file in files if file.suffix.lower() != CAPTION]
        if not images:
            raise FileNotFoundError(f"no guide images in {self.folder}; put them there or change guides.folder")
        lonely = {file.stem for file in files if file.suffix.lower() == CAPTION} - {file.stem for file in images}
        if lonely:
            raise ValueError(f"{self.folder}: captions without an image of the same stem: {sorted(lonely)}")
        _require_pairs(self.folder, files, images)
        masks = {file: mask_of(file) or named.get(file) for file in images}
        unused = {file.name for file in every if is_mask(file)} - {mask.name for mask in masks.values() if mask}
        if unused:
            raise ValueError(f"{self.folder}: masks or boxes without an image of the same name: {sorted(unused)}")
        shared = {**self.known(), "label": self.label, "set": self.set}
        return [Found(file, {**shared, "caption": _caption(file)}, masks[file]) for file in images]


def _require_pairs(folder: str, files: Sequence[Path], images: Sequence[Path]) -> None:
    """Refuse two images, or two captions, of one stem: which belongs to which cannot be told."""
    for what, group in (("images", images), ("captions", [file for file in files if file not in images])):
        twice = sorted(stem for stem, count in Counter(file.stem for file in group).items() if count > 1)
        if twice:
            raise ValueError(f"{folder}: two {what} of one name: {twice}; rename or remove one of each")


def _caption(image: Path) -> str:
    file = image.with_suffix(CAPTION)
    text = " ".join(file.read_text(encoding="utf-8-sig").split()) if file.is_file() else ""
    if not text:
        raise ValueError(f"guide {image} needs a caption: write what is seen, in clinical words, into {file.name}")
    return text


def _check_side(split: str, external: str) -> None:
    if external and split:
        raise ValueError(f"external={external!r} is a split of its own; remove split={split!r}")
    if split and split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS} or empty; it is {split!r}")
    if external and not IDENTIFIER.fullmatch(external):
        raise ValueError(f"external must be a name of letters, digits, '_', '.' and '-'; it is {external!r}")


def _side(split: str, external: str) -> dict[str, str]:
    return {"split": EXTERNAL, "set": external} if external else {"split": split} if split else {}


def _masks_of(files: Sequence[Path], patterns: Sequence[str]) -> dict[Path, Path]:
    """Return image -> mask for the files that are another file's mask, or whose mask lies where the pattern says."""
    masks = {}
    for file in files:
        mask = _beside(file, patterns)
        if mask is not None:
            masks[file] = mask
    return {image: mask for image, mask in masks.items() if image not in set(masks.values())}


def _beside(image: Path, patterns: Sequence[str]) -> Path | None:
    for pattern in patterns:
        mask = image.parent / pattern.format(stem=image.stem)
        if mask != image and os.path.lexists(mask):
            return mask
    return None


def _existing_folder(name: str, key: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}: there is no folder {name}; create it or change {key!r}")
    return folder


def _visible_files(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield files in the order of their names. Linked folders are not entered: they may lead back to themselves."""
    for file in sorted(folder.glob(pattern)):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        # A dangling link, and a subfolder that may not be entered: they must end up in the quarantine list, not vanish.
        closed = "**" in pattern and not os.access(file, os.R_OK | os.X_OK)
        if not hidden and (closed or not _is_folder(file)):
            yield file


def _is_folder(file: Path) -> bool:
    try:
        return file.is_dir()
    except OSError:  # a link that leads to itself
        return False
