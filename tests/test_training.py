"""The schedule of learning rates. Steps and checkpoints are tested where they are used."""

import math

import pytest
import torch

from synthvision.training import lr_factor, warn_if_emulated


def test_the_rate_rises_linearly_then_follows_its_schedule():
    assert [lr_factor(step, 4, 12, "constant") for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = [lr_factor(step, 4, 12, "cosine") for step in range(4, 13)]
    assert cosine == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)])
    assert cosine[0] == 1
    assert cosine[-1] == 0


def test_a_schedule_that_is_all_warm_up_ends_at_zero():
    assert lr_factor(4, 4, 4, "cosine") == 1
    assert lr_factor(5, 4, 4, "cosine") == 0


@pytest.mark.parametrize(
    ("has", "precision", "device", "warned"),
    [
        ({"avx2": True, "avx512_bf16": False}, "bf16-mixed", "cpu", True),
        ({"avx2": True, "avx512_bf16": True}, "bf16-mixed", "cpu", False),
        ({"neon": True, "bf16": True}, "bf16-mixed", "cpu", False),
        ({"avx2": True, "avx512_bf16": False}, "32-true", "cpu", False),
        ({"avx2": True, "avx512_bf16": False}, "bf16-mixed", "cuda", False),
    ],
)
def test_bfloat16_on_a_processor_that_lacks_it_is_warned_of(monkeypatch, caplog, has, precision, device, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    warn_if_emulated(precision, torch.device(device))
    assert ("Set trainer.precision" in caplog.text) == warned
