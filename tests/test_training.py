"""The schedule of learning rates. Steps and checkpoints are tested where they are used."""

import math

import pytest

from synthvision.training import lr_factor


def test_the_rate_rises_linearly_then_follows_its_schedule():
    assert [lr_factor(step, 4, 12, "constant") for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = [lr_factor(step, 4, 12, "cosine") for step in range(4, 13)]
    assert cosine == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)])
    assert cosine[0] == 1
    assert cosine[-1] == 0


def test_a_schedule_that_is_all_warm_up_ends_at_zero():
    assert lr_factor(4, 4, 4, "cosine") == 1
    assert lr_factor(5, 4, 4, "cosine") == 0
