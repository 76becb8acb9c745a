"""bfloat16 on a CPU: another way of computing, the same results but for rounding."""

import copy
import pickle
import statistics

import pytest
import torch
from torch import Tensor, nn

from synthvision.diffusion.backbone import Backbone, BackboneConfig, load
from synthvision.diffusion.half import quicken


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load(BackboneConfig("tiny", "package:tiny", 64, "sd"))


def gradients(unet: nn.Module, dtype: torch.dtype | None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a seeded prediction and all gradients of its square, float32."""
    generator = torch.Generator().manual_seed(seed)
    x_t, prompt = torch.randn((2, 8, 16, 16), generator=generator), torch.randn((2, 32, 96), generator=generator)
    unet.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        predicted = unet(x_t, torch.tensor([10, 900]), prompt).sample.float()
    predicted.square().mean().backward()
    return predicted.detach(), torch.cat([p.grad.flatten() for p in unet.parameters() if p.grad is not None])


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_is_about_as_close_to_float32_as_torchs_own_way(tiny: Backbone) -> None:
    unet = copy.deepcopy(tiny.unet).float().requires_grad_(True)
    exact = [gradients(unet, None, seed) for seed in range(4)]

    def off() -> list[float]:
        """Return the median distances of prediction and gradients from the exact ones."""
        pairs = [zip(gradients(unet, torch.bfloat16, seed), exact[seed], strict=True) for seed in range(4)]
        return [statistics.median(each) for each in zip(*([distance(*p) for p in pair] for pair in pairs), strict=True)]

    usual = off()
    quicken(unet)
    quick = off()
    assert quick[0] != usual[0]
    assert 0 < quick[0] < 1.1 * usual[0] < 0.02
    assert 0 < quick[1] < 1.1 * usual[1] < 0.02


def test_changes_float32_by_rounding_alone(tiny: Backbone) -> None:
    unet = copy.deepcopy(tiny.unet).float().requires_grad_(True)
    before = gradients(unet, None)
    quicken(unet)
    assert all(distance(*pair) < 1e-4 for pair in zip(gradients(unet, None), before, strict=True))


def test_once_is_enough_and_what_was_quickened_can_be_sent(tiny: Backbone) -> None:
    unet = copy.deepcopy(tiny.unet).float().requires_grad_(True)
    quicken(unet)
    once = gradients(unet, torch.bfloat16)
    quicken(unet)
    sent = pickle.loads(pickle.dumps(unet))
    assert all(len(part._forward_pre_hooks) == 1 for part in sent.modules() if isinstance(part, nn.GroupNorm))
    assert torch.equal(gradients(sent, torch.bfloat16)[1], once[1])
    assert sent.state_dict().keys() == tiny.unet.state_dict().keys()


def test_a_trained_text_encoder_answers_as_before(tiny: Backbone) -> None:
    encoder = copy.deepcopy(tiny.text_encoders[0]).float()
    tokens = tiny.tokenize(["photo of sks papules"])[0]
    with torch.no_grad():
        before = encoder(tokens)[0]
        quicken(copy.deepcopy(tiny.unet), [encoder])
        torch.testing.assert_close(encoder(tokens)[0], before, rtol=1e-4, atol=1e-4)
