"""Contact sheets: many pictures in one, to be looked at."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from synthvision.data.images import Pixels, write_png


def contact_sheet(images: Pixels, columns: int, path: Path) -> None:
    """Write images uint8 (N, S, S, 3) as one PNG, row by row, `columns` in each; white fills the last row."""
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    side = images.shape[1]
    cells = np.full((rows * columns, side, side, 3), 255, np.uint8)
    cells[: len(images)] = images
    grid = cells.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    write_png(path, np.ascontiguousarray(grid.reshape(rows * side, columns * side, 3)))
