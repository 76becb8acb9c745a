"""Every kind of upscaler loads, encodes, predicts and saves alike, and what is none is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import backbones
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from upscalers import KINDS, LEVELS, SIDE, config, make, save

from synthvision.diffusion.tiny import new_vae, rescale_latents
from synthvision.diffusion.upscaler import SCALING, Upscaler, UpscalerConfig, load


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(kind, tmp_path_factory.mktemp("upscalers") / kind)


@pytest.fixture(scope="module")
def upscaler(kind: str, folder: Path) -> Upscaler:
    return load(config(kind, folder))


def test_latents_have_the_small_pictures_sides_and_the_unets_scale(upscaler: Upscaler) -> None:
    large = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    latents = upscaler.encode_images(large)
    distribution = upscaler.vae.encode(large).latent_dist
    assert latents.mean.shape == (2, upscaler.channels, SIDE // 4, SIDE // 4)
    torch.testing.assert_close(latents.mean, distribution.mean * SCALING)
    torch.testing.assert_close(latents.std, distribution.std * SCALING)
    expected = upscaler.vae.decode(distribution.mean).sample
    torch.testing.assert_close(upscaler.decode(latents.mean), expected, atol=1e-4, rtol=1e-4)


def test_the_unet_sees_latents_and_small_picture_and_is_told_its_noise(upscaler: Upscaler) -> None:
    noisy, small = torch.randn(2, upscaler.channels, 8, 8), torch.randn(2, 3, 8, 8)
    t, text = torch.tensor([3, 900]), upscaler.encode_text(["a wart", "a mole"])
    with torch.no_grad():
        ours = upscaler.predict(noisy, small, t, torch.tensor([0, 5]), text)
        seen = torch.cat([noisy, small], 1)
        assert torch.equal(ours, upscaler.unet(seen, t, text, class_labels=torch.tensor([0, 5])).sample)
        assert not torch.equal(ours, upscaler.predict(noisy, small, t, torch.tensor([0, 6]), text))
    assert ours.shape == noisy.shape


def test_a_prompts_states_do_not_depend_on_its_neighbours_and_equal_the_pipelines(upscaler: Upscaler) -> None:
    together = upscaler.encode_text(["a wart", "", "a wart"])
    assert torch.equal(together[0], upscaler.encode_text(["a wart"])[0])
    assert torch.equal(together[0], together[2])
    embeds, _ = upscaler.pipeline().encode_prompt("a wart", "cpu", 1, False)
    assert torch.equal(together[:1], embeds)


def test_both_noise_schedules_are_those_saved_with_the_model(upscaler: Upscaler, folder: Path) -> None:
    saved = {
        name: DDPMScheduler.from_pretrained(folder, subfolder=name).alphas_cumprod
        for name in ("scheduler", "low_res_scheduler")
    }
    assert torch.equal(upscaler.alphas_cumprod(), saved["scheduler"])
    assert torch.equal(upscaler.low_res_alphas_cumprod(), saved["low_res_scheduler"][:LEVELS])
    assert upscaler.prediction_type == "v_prediction"


def test_however_few_the_steps_sampling_begins_with_noise_alone(upscaler: Upscaler) -> None:
    sampler = upscaler.sampler()
    for steps in (1, 2, 20):
        sampler.set_timesteps(steps)
        assert sampler.timesteps[0] == 999


def test_a_saved_folder_opens_as_a_pipeline_and_loads_again(kind: str, folder: Path, tmp_path: Path) -> None:
    upscaler = load(config(kind, folder))
    with torch.no_grad():
        next(upscaler.unet.parameters()).add_(0.5)
    upscaler.save(tmp_path / "weights")
    assert not list(tmp_path.rglob("*.bin"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "weights")
    again = load(replace(upscaler.config, source=str(tmp_path / "weights")))
    for name, value in upscaler.unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], value)
        assert torch.equal(again.unet.state_dict()[name], value)
    assert (pipeline.config.max_noise_level, pipeline.watermarker) == (LEVELS, None)
    assert torch.equal(again.low_res_alphas_cumprod(), upscaler.low_res_alphas_cumprod())
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_the_autoencoder_stays_in_fp32(kind: str, folder: Path) -> None:
    upscaler = load(config(kind, folder), torch.bfloat16)
    assert (upscaler.vae.dtype, upscaler.unet.dtype, upscaler.text_encoder.dtype) == (
        torch.float32,
        torch.bfloat16,
        torch.bfloat16,
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert upscaler.decode(torch.randn(1, upscaler.channels, 8, 8)).dtype == torch.float32


def test_an_unset_scaling_factor_is_set_and_a_wrong_one_refused(tmp_path: Path) -> None:
    unset = make("x4", save("x4", tmp_path / "unset", 0.18215))
    assert unset.vae.config.scaling_factor == SCALING
    unset.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "vae" / "config.json").read_text())["scaling_factor"] == SCALING
    with pytest.raises(ValueError, match=r"wrong/vae/config.json must be 0\.08333.*; it is 0\.5"):
        make("x4", save("x4", tmp_path / "wrong", 0.5))


def test_a_backbone_is_no_upscaler(tmp_path: Path) -> None:
    folder = backbones.save("sd15", tmp_path / "sd15")
    with pytest.raises(FileNotFoundError, match=r"has no low_res_scheduler.*set superres\.upscaler\.source=FOLDER"):
        make("x4", folder)
    shutil.copytree(folder / "scheduler", folder / "low_res_scheduler")
    with pytest.raises(ValueError, match=r"is no x4 upscaler: its UNet must take 4 \+ 3 channels .* takes 4 channels"):
        make("x4", folder)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers still passes it to the Hub
def test_a_missing_part_or_an_unreachable_hub_says_what_to_download(tmp_path: Path) -> None:
    folder = save("x4", tmp_path / "x4")
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match="has no unet"):
        make("x4", folder)
    hub = UpscalerConfig("x4", "somebody/x4-upscaler", 512, 350, "0123abc")
    remedy = "hf download somebody/x4-upscaler --revision 0123abc --local-dir FOLDER"
    with pytest.raises(FileNotFoundError, match=f"superres.upscaler 'x4' cannot be loaded.*{remedy}"):
        load(hub)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 30}, r"superres\.upscaler\.resolution must be a multiple of 8 .*; it is 30"),
        ({"max_noise_level": LEVELS + 2}, r"superres\.upscaler\.max_noise_level must be at most 21.*; it is 22"),
    ],
)
def test_what_does_not_fit_the_weights_is_refused(change: dict[str, int], message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(replace(config("x4", folder), **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [("source", ""), ("resolution", 0), ("max_noise_level", 0)])
def test_a_bad_config_names_its_key(key: str, value: object) -> None:
    good = UpscalerConfig("x4", "folder", 512, 350)
    with pytest.raises(ValueError, match=rf"superres\.upscaler\.{key} must"):
        replace(good, **{key: value})  # type: ignore[arg-type]


def test_rescaled_latents_decode_to_the_same_pictures() -> None:
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    torch.manual_seed(0)
    vae = new_vae(images).eval()
    before, large = vae.encode(images).latent_dist, vae.decode(torch.ones(1, 8, 4, 4)).sample
    rescale_latents(vae, 0.08333)
    after = vae.encode(images).latent_dist
    torch.testing.assert_close(0.08333 * after.mean, before.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(0.08333 * after.std, before.std, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.decode(torch.ones(1, 8, 4, 4) / 0.08333).sample, large)
    assert vae.config.scaling_factor == 0.08333
