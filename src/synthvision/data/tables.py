"""Tables of images: CSV with any usual separator, or Parquet; the bytes decide which."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PARQUET = b"PAR1"
SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class Table:
    """Rows of text; a cell without a value is ""."""

    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]


def read_table(file: Path) -> Table:
    """Read a table.

    Raises:
        ValueError: the text is not UTF-8, or the Parquet file is damaged.
    """
    data = file.read_bytes()
    if data[:4] == PARQUET:
        return _parquet(file, data)
    try:
        text = data.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: the text must be UTF-8; save it so ({error.reason} at byte {error.start})"
        ) from error
    header = text.splitlines()[0] if text else ""
    separator = max(SEPARATORS, key=header.count)  # of none the first: a single column
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    rows = tuple({name: (cell or "").strip() for name, cell in row.items() if name} for row in reader)
    return Table(tuple(reader.fieldnames or ()), rows)


def _parquet(file: Path, data: bytes) -> Table:
    import pyarrow as pa  # slow to import, and few tables are Parquet
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowException as error:
        raise ValueError(f"{file}: damaged Parquet: {error}") from error
    columns = tuple(str(name) for name in table.column_names)
    rows = tuple({str(name): _text(cell) for name, cell in row.items()} for row in table.to_pylist())
    return Table(columns, rows)


def _text(cell: object) -> str:
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))  # a column of whole numbers with a gap becomes floating-point in pandas
    return str(cell).strip()
