"""Random generators that depend on a key alone, so that a resumed run draws what an undisturbed one draws."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Draw(IntEnum):
    """What a generator is for; the second part of its key."""

    INITIAL = 0  # weights
    AUGMENT = 1
    DROPOUT = 2
    MIX = 3  # which images of a batch are mixed, and how much


def key(seed: int, what: Draw, *index: int) -> int:
    """Return 64 well-mixed bits of (seed, what, index...); all must be non-negative."""
    return int(np.random.SeedSequence([seed, what, *index]).generate_state(1, np.uint64)[0])


def generator(seed: int, what: Draw, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device` seeded by `key`."""
    return torch.Generator(device).manual_seed(key(seed, what, *index))
