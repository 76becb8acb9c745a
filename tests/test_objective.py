"""The objective's equations, against diffusers' schedulers and against each other."""

import pytest
import torch
from diffusers import DDPMScheduler

from synthvision.diffusion import objective

SCHEDULES = {
    "epsilon": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "v_prediction": {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
}


@pytest.fixture(params=SCHEDULES)
def scheduler(request):
    scheduler = DDPMScheduler(prediction_type=request.param, **SCHEDULES[request.param])
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 6, 4, 8, 8, generator=generator, dtype=torch.float64)
    return x_0, noise, torch.tensor([0, 1, 250, 500, 998, 999])


def test_noising_equals_the_schedulers_in_float64(scheduler, draw):
    x_0, noise, t = draw
    ours = objective.noised(x_0, noise, t, scheduler.alphas_cumprod, scheduler.config.prediction_type)
    torch.testing.assert_close(ours.x_t, scheduler.add_noise(x_0, noise, t))
    velocity = objective.target_of(x_0, noise, t, scheduler.alphas_cumprod, "v_prediction")
    torch.testing.assert_close(velocity, scheduler.get_velocity(x_0, noise, t))
    assert torch.equal(ours.target, noise if scheduler.config.prediction_type == "epsilon" else velocity)


def test_velocity_and_noise_hold_the_same_knowledge(scheduler, draw):
    x_0, noise, t = draw
    made = objective.noised(x_0, noise, t, scheduler.alphas_cumprod, "v_prediction")
    alpha = scheduler.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    torch.testing.assert_close(alpha * made.x_t - sigma * made.target, x_0)
    torch.testing.assert_close(sigma * made.x_t + alpha * made.target, noise)


def test_noise_arithmetic_of_bf16_latents_stays_in_fp32(draw):
    alphas = DDPMScheduler(**SCHEDULES["epsilon"]).alphas_cumprod
    x_0, _, t = draw
    x_t = objective.add_noise(torch.zeros_like(x_0).bfloat16(), torch.ones_like(x_0).bfloat16(), t, alphas)
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t[0, 0, 0, 0], (1 - alphas[0]).sqrt())


def test_unit_variance_is_kept(scheduler):
    generator = torch.Generator().manual_seed(1)
    x_0, noise = torch.randn(2, 1, 4, 128, 128, generator=generator, dtype=torch.float64)
    for t in (0, 400, 999):
        made = objective.noised(x_0, noise, torch.tensor([t]), scheduler.alphas_cumprod, "v_prediction")
        assert made.x_t.var().item() == pytest.approx(1, abs=0.03)
        assert made.target.var().item() == pytest.approx(1, abs=0.03)


def test_min_snr_weights_say_the_same_of_x_0(scheduler):
    """An error d in x_0 is d * alpha / sigma in epsilon and d / sigma in v: weighted, all give min(snr, gamma)."""
    t = torch.tensor([1, 100, 400, 700, 990])
    alphas, gamma = scheduler.alphas_cumprod, 5.0
    ratio = objective.snr(t, alphas)
    epsilon = objective.min_snr_weight(t, alphas, gamma, "epsilon") * alphas[t] / (1 - alphas[t])
    velocity = objective.min_snr_weight(t, alphas, gamma, "v_prediction") / (1 - alphas[t])
    torch.testing.assert_close(epsilon, ratio.clamp(max=gamma))
    torch.testing.assert_close(velocity, ratio.clamp(max=gamma))


def test_weights_are_finite_at_zero_terminal_snr():
    alphas = DDPMScheduler(**SCHEDULES["v_prediction"]).alphas_cumprod
    assert objective.min_snr_weight(torch.tensor([999]), alphas, 5.0, "v_prediction").tolist() == [0.0]


def test_dreambooth_loss_is_the_instance_plus_the_weighted_prior():
    generator = torch.Generator().manual_seed(2)
    prediction, target = torch.randn(2, 5, 4, 3, 3, generator=generator)
    losses = objective.dreambooth_loss(prediction, target, 2, 0.5)
    torch.testing.assert_close(losses.instance, torch.nn.functional.mse_loss(prediction[:2], target[:2]))
    torch.testing.assert_close(losses.prior, torch.nn.functional.mse_loss(prediction[2:], target[2:]))
    torch.testing.assert_close(losses.total, losses.instance + 0.5 * losses.prior)


def test_weights_belong_to_their_own_sample_in_both_halves():
    prediction = torch.ones(4, 1, 2, 2)
    losses = objective.dreambooth_loss(prediction, torch.zeros_like(prediction), 2, 1.0, torch.tensor([1.0, 2, 3, 4]))
    assert (losses.instance.item(), losses.prior.item()) == (1.5, 3.5)


def test_a_lesion_s_error_is_divided_by_its_area():
    """Trap 6: a lesion of one cell and one of nine, each wrong by 1 inside alone, lose the same."""
    for share in (0.0, 0.3, 1.0):
        lost = []
        for cells in (1, 3):
            mask = torch.zeros(1, 1, 8, 8)
            mask[..., :cells, :cells] = 1
            weights = objective.lesion_weights(mask, share)
            losses = objective.dreambooth_loss(mask.expand(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), 1, 0.0, cells=weights)
            lost.append(losses.instance.item())
            assert lost[-1] == pytest.approx((1 - share) * cells**2 / 64 + share)
        assert share < 1 or lost[0] == pytest.approx(lost[1])


def test_a_picture_without_a_mask_counts_evenly():
    mask = torch.zeros(2, 1, 4, 4)
    mask[1, :, 0, 0] = 0.25  # a quarter of one cell is lesion
    weights = objective.lesion_weights(mask, 0.8)
    assert (weights[0] == 1).all()
    assert weights[1, 0, 0, 0] == pytest.approx(0.2 + 0.8 * 16)
    assert weights.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1])


def test_offset_noise_adds_one_value_per_picture_and_channel():
    generator = torch.Generator().manual_seed(3)
    noise, offset = torch.randn(500, 4, 8, 8, generator=generator), torch.randn(500, 4, generator=generator)
    shifted = objective.offset_noise(noise, offset, 0.5)
    torch.testing.assert_close(shifted - noise, (0.5 * offset)[:, :, None, None].expand_as(noise), atol=1e-6, rtol=0)
    assert shifted.mean(dim=(2, 3)).std().item() == pytest.approx((1 / 64 + 0.25) ** 0.5, rel=0.05)


def test_min_snr_is_computed_after_the_rescale_to_zero_terminal_snr():
    """Trap 3: the weight at the last timestep is that of a ratio of zero, and epsilon cannot be asked there."""
    rescaled = DDPMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    plain = DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod
    t = torch.tensor([999, 500])
    weights = [objective.min_snr_weight(t, alphas, 5.0, "v_prediction") for alphas in (rescaled, plain)]
    assert weights[0][0] == 0
    assert weights[1][0] > 0
    assert weights[0][1] != weights[1][1]


def test_without_class_images_the_prior_is_zero():
    losses = objective.dreambooth_loss(torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 2, 1.0)
    assert (losses.total.item(), losses.prior.item()) == (1.0, 0.0)


def test_schedules_that_cannot_be_trained_are_refused():
    alphas = DDPMScheduler(**SCHEDULES["v_prediction"]).alphas_cumprod
    objective.check_schedule(alphas, "v_prediction")
    with pytest.raises(ValueError, match="zero terminal SNR needs prediction_type v_prediction"):
        objective.check_schedule(alphas, "epsilon")
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        objective.check_schedule(alphas, "sample")
