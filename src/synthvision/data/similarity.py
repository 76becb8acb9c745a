"""How alike two images are, whatever was done to hide it: flips, turns, small crops, recolouring, compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from synthvision.data.images import Pixels

GRID = 32  # side of the thumbnails that are compared
LOCAL = 4.0  # Gaussian width, in thumbnail pixels, of what counts as shading and is taken out
CROPS = ((1.0, 0.5, 0.5), *((share, y, x) for share in (0.9, 0.8) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)))
TURNS = tuple((mirrored, quarter) for mirrored in (False, True) for quarter in range(4))
BLANK = 1e-3  # a thumbnail with less contrast than this, in grey levels, resembles nothing

View = tuple[tuple[float, float, float], tuple[bool, int]]  # a crop's share and place, and a turn
VIEWS: tuple[View, ...] = tuple((crop, turn) for crop in CROPS for turn in TURNS)


def views_of(image: Pixels) -> list[Pixels]:
    """Return a picture's flips, quarter turns and crops down to 80%, in the order of VIEWS; the first is itself."""
    return [view_of(image, view) for view in VIEWS]


def view_of(image: Pixels, view: View) -> Pixels:
    """Return one view of a picture: uint8 (S, S, 3) -> uint8 (s, s, 3), s <= S."""
    (share, down, right), (mirrored, quarter) = view
    side = round(image.shape[0] * share)
    top, left = (round((image.shape[0] - side) * place) for place in (down, right))
    part = image[top : top + side, left : left + side]
    return np.rot90(part[:, ::-1] if mirrored else part, quarter)


def name_of(view: View) -> str:
    """Return a view in words: "mirrored, turned 90, 80% crop"."""
    (share, _, _), (mirrored, quarter) = view
    parts = ["mirrored"] * mirrored + [f"turned {90 * quarter}"] * (quarter > 0)
    parts += [f"{share:.0%} crop"] * (share < 1)
    return ", ".join(parts) or "as it is"


def details(images: Sequence[Pixels]) -> NDArray[np.float64]:
    """Return thumbnails' luminance without shading, as unit vectors: float64 (N, GRID * GRID).

    Their products are correlations: two pictures of like skin share their shading, only copies share their details.

    Args:
        images: uint8 (H, W, 3) each, of any size.
    """
    return np.stack([_details(image) for image in images])


@dataclass(frozen=True)
class Nearest:
    """The guide that an image is most like."""

    guide: int  # its row
    similarity: float  # correlation in [-1, 1]; 1 is the same picture up to brightness and contrast
    transform: str  # of the guide: "mirrored, turned 90, 80% crop"; "as it is" where none is needed


def nearest_guides(candidates: Pixels, guides: Pixels) -> list[Nearest]:
    """Return for each candidate the guide whose details correlate most, under all views.

    Args:
        candidates: uint8 (N, S, S, 3).
        guides: uint8 (G, S, S, 3), G > 0.
    """
    if not len(guides):
        raise ValueError("similarity needs at least one guide to compare with; there is none")
    views = details([view for guide in guides for view in views_of(guide)])
    nearest = []
    for image in candidates:
        similarity = views @ _details(image)  # (G * views,)
        best = int(similarity.argmax())
        guide, view = divmod(best, len(VIEWS))
        nearest.append(Nearest(guide, float(similarity[best]), name_of(VIEWS[view])))
    return nearest


def difference(images: Pixels, others: Pixels) -> NDArray[np.float64]:
    """Return the root mean square difference of paired images uint8 (N, S, S, 3): float64 (N,), 1 is black to white."""
    return _root_mean_square(images.astype(np.float64) - others)


def contrast(images: Pixels) -> NDArray[np.float64]:
    """Return the root mean square difference of images uint8 (N, S, S, 3) from their own mean colour: float64 (N,)."""
    values = images.astype(np.float64)
    return _root_mean_square(values - values.mean(axis=(1, 2), keepdims=True))


def _root_mean_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = np.square(values / 255).mean(axis=(1, 2, 3))
    return np.sqrt(means)


def _details(image: Pixels) -> NDArray[np.float64]:
    """Return the thumbnail's luminance without shading, as a unit vector: uint8 (H, W, 3) -> float64 (GRID * GRID,)."""
    picture = Image.fromarray(np.ascontiguousarray(image)).convert("L").convert("F")
    thumbnail = np.asarray(picture.resize((GRID, GRID), Image.Resampling.BOX), dtype=np.float64)
    details = thumbnail - gaussian_filter(thumbnail, LOCAL)
    details = (details - details.mean()).ravel()
    length = float(np.linalg.norm(details))
    return details / length if length > BLANK * GRID else np.zeros_like(details)
