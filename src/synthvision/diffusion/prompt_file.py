"""Prompts that a user wrote down: a YAML list or a CSV table of prompt, negative prompt, variants and attributes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from synthvision.diffusion.prompts import FROM_BACKGROUND, Row

COLUMNS = ("prompt", "negative", "variants")  # any other is an attribute


def read_prompts(file: str, attributes: Mapping[str, Sequence[str]], negative: str = "") -> list[Row]:
    """Return a file's rows, checked.

    Args:
        file: YAML: a list of mappings; or CSV: a header and a line per prompt. `prompt` must be there; `negative` and
            `variants` (1) may be; every other key is an attribute.
        attributes: of the disease, with the values that each may have; skin tone and body part are always known.
        negative: where a row gives none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no prompts, or a row breaks a rule; the message names file, row, rule and value.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"generate.prompts: there is no file {file}; write it, or set generate.prompts=null")
    raw = _rows(path)
    if not raw:
        raise ValueError(f"generate.prompts: {file} holds no prompts; write at least one, or set generate.prompts=null")
    rows = [_row(f"{file}, prompt {number}", cells, attributes, negative) for number, cells in enumerate(raw, 1)]
    first: dict[tuple[object, ...], int] = {}
    for number, row in enumerate(rows, 1):
        key = (row.prompt, row.negative, tuple(sorted(row.attributes.items())))
        if key in first:
            raise ValueError(
                f"{file}, prompt {number}: {row.prompt!r} is prompt {first[key]} again; raise its variants instead"
            )
        first[key] = number
    return rows


def _rows(path: Path) -> list[Mapping[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".csv":
        return list(csv.DictReader(text.splitlines()))
    try:
        rows = yaml.safe_load(text) or []
    except yaml.YAMLError as error:
        raise ValueError(f"generate.prompts: {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"generate.prompts: {path} must be a list of '- prompt: ...', or a CSV named *.csv")
    return rows


def _row(where: str, cells: Mapping[str, Any], known: Mapping[str, Sequence[str]], negative: str) -> Row:
    if None in cells:  # csv's key for what is beyond the header
        raise ValueError(f"{where}: more cells than the header has; put quotes around a prompt that holds commas")
    texts = {str(key).strip(): " ".join(str("" if cell is None else cell).split()) for key, cell in cells.items()}
    prompt = texts.get("prompt", "")
    if not prompt:
        raise ValueError(f"{where}: 'prompt' must say what is asked for; it is empty or missing")
    given = texts.get("variants") or "1"
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{where}: 'variants' must be a whole number of at least 1; it is {given!r}")
    attributes = {key: value for key, value in texts.items() if key not in COLUMNS and value}
    for key, value in attributes.items():
        if key not in known and key not in FROM_BACKGROUND:
            names = sorted({*known, *FROM_BACKGROUND})
            raise ValueError(f"{where}: unknown attribute {key!r}; disease.attributes and images know {names}")
        if value not in known.get(key, [value]):
            allowed = f"one of disease.attributes.{key}, {list(known[key])}"
            raise ValueError(f"{where}: {key!r} must be {allowed}; it is {value!r}")
    return Row(prompt, texts.get("negative") or negative, int(given), attributes)
