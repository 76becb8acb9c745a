"""Skin tone estimated from a picture: a proxy where nobody has stated it."""

from __future__ import annotations

from synthvision.data.decoding import Pixels
from synthvision.data.skin import individual_typology_angle

# The lower end of each group, degrees (Chardon, Cretois, Hourseau 1991).
GROUPS = {"very light": 55.0, "light": 41.0, "intermediate": 28.0, "tan": 10.0, "brown": -30.0}
DARKEST = "dark"


def ita_group(pixels: Pixels) -> str:
    """Return the group of the median colour's typology angle: uint8 (H, W, 3) -> "very light" … "dark".

    It depends on light and camera too, and means something only where most of the picture is skin.
    """
    angle = individual_typology_angle(pixels)
    return next((name for name, least in GROUPS.items() if angle > least), DARKEST)
