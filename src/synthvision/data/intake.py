"""Intake: where images lie and what is known of them. Sources list files and values; nothing is decoded here."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synthvision.data.masks import is_mask, mask_of

CAPTION = ".txt"
DESCRIPTIVE = ("patient", "skin_tone", "body_part", "caption", "licence", "consent", "reference_standard")


@dataclass(frozen=True)
class Found:
    """A file a source names, and the values of its Record that are known so far."""

    file: Path
    values: dict[str, str]
    mask: Path | None = None  # guides: where the lesion is; see `masks`


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """On what terms a source's images may be used, and how their diagnosis was established. Empty: unknown."""

    licence: str = ""
    consent: str = ""
    reference_standard: str = ""

    def known(self) -> dict[str, str]:
        """Return the three values by column name."""
        return {"licence": self.licence, "consent": self.consent, "reference_standard": self.reference_standard}


@dataclass(frozen=True)
class FolderSource(Provenance):
    """A folder whose images all have one label.

    `pattern` chooses files as `pathlib.Path.glob` does: "*.bmp", or "**/*" with subfolders. Hidden files are left out.
    """

    label: str
    folder: str
    pattern: str = "*"

    def read(self) -> list[Found]:
        """Return the folder's files in the order of their names.

        Raises:
            FileNotFoundError: the folder is missing or no file matches.
        """
        files = list(_visible_files(_existing_folder(self.folder, "folder"), self.pattern))
        if not files:
            raise FileNotFoundError(
                f"no files match {self.pattern!r} in {self.folder}; put images there or change 'pattern'"
            )
        return [Found(file, {**self.known(), "label": self.label}) for file in files]


@dataclass(frozen=True)
class TableSource(Provenance):
    """A CSV with a row per image.

    `labels` maps the cells of `label_column` to labels; rows with other cells are left out. A cell of `image_column`
    becomes a file name through `image_template` ("{:0>3}.bmp" turns 7 into 007.bmp), relative to `folder`, or to the
    CSV's own folder. `columns` maps columns of Record to columns of the CSV; a cell that is not empty goes before the
    source's own licence, consent and reference standard.

    Raises:
        ValueError: `columns` names something that a table cannot tell, or `labels` is empty.
    """

    file: str
    image_column: str
    label_column: str
    labels: Mapping[str, str]
    image_template: str = "{}"
    folder: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(DESCRIPTIVE))
        if unknown:
            raise ValueError(f"columns: keys must be among {DESCRIPTIVE}; these are not: {unknown}")
        if not self.labels:
            raise ValueError("labels: map at least one value of the label column to a label, e.g. {'2': 'lymphocyte'}")
        # YAML reads an unquoted 2 as a number, the CSV gives text
        object.__setattr__(self, "labels", {str(cell): str(label) for cell, label in self.labels.items()})

    def read(self) -> list[Found]:
        """Return a file per row that has one of the labels, in the order of the rows.

        Raises:
            FileNotFoundError: the CSV or its folder is missing.
            ValueError: a column is missing, or no row has one of the labels.
        """
        table = Path(self.file).expanduser()
        if not table.is_file():
            raise FileNotFoundError(f"no table at {self.file}; put it there or change 'file'")
        folder = _existing_folder(self.folder, "folder") if self.folder else table.parent
        with table.open(newline="", encoding="utf-8-sig") as handle:  # spreadsheets write a byte order mark
            reader = csv.DictReader(handle)
            self._require_columns(reader.fieldnames or ())
            found = [self._found(row, folder) for row in reader if _cell(row, self.label_column) in self.labels]
        if not found:
            raise ValueError(f"{self.file}: no {self.label_column!r} is one of {sorted(self.labels)}; change 'labels'")
        return found

    def _require_columns(self, present: object) -> None:
        names = [str(name) for name in present] if isinstance(present, list | tuple) else []
        missing = [name for name in (self.image_column, self.label_column, *self.columns.values()) if name not in names]
        if missing:
            raise ValueError(f"{self.file}: no column {missing}; its columns are {names}")

    def _found(self, row: Mapping[str, str | None], folder: Path) -> Found:
        file = folder / self.image_template.format(_cell(row, self.image_column))
        cells = {column: _cell(row, name) for column, name in self.columns.items()}
        told = {column: cell for column, cell in cells.items() if cell}
        return Found(file, {**self.known(), **told, "label": self.labels[_cell(row, self.label_column)]})


@dataclass(frozen=True)
class GuideSource(Provenance):
    """A folder of guide images, each with its caption in a `.txt` file of the same stem.

    A mask (`NAME.mask.png`, white where the lesion is) or box (`NAME.box.txt`: left top right bottom) is optional.
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
        files = [file for file in every if not is_mask(file)]
        images = [file for file in files if file.suffix.lower() != CAPTION]
        if not images:
            raise FileNotFoundError(f"no guide images in {self.folder}; put them there or change guides.folder")
        lonely = {file.stem for file in files} - {file.stem for file in images}
        if lonely:
            raise ValueError(f"{self.folder}: captions without an image of the same stem: {sorted(lonely)}")
        _require_pairs(self.folder, files, images)
        unused = {file.name for file in every if is_mask(file)} - {mask.name for mask in map(mask_of, images) if mask}
        if unused:
            raise ValueError(f"{self.folder}: masks or boxes without an image of the same name: {sorted(unused)}")
        shared = {**self.known(), "label": self.label, "set": self.set}
        return [Found(file, {**shared, "caption": _caption(file)}, mask_of(file)) for file in images]


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


def _existing_folder(name: str, key: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{key}: there is no folder {name}; create it or change {key!r}")
    return folder


def _visible_files(folder: Path, pattern: str) -> Iterator[Path]:
    for file in sorted(folder.glob(pattern)):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        # a dangling link is listed too: it must end up in the quarantine list, not vanish
        if not hidden and not file.is_dir():
            yield file


def _cell(row: Mapping[str, str | None], column: str) -> str:
    return (row[column] or "").strip()
