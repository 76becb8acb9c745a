"""Every kind of backbone loads, conditions, encodes and saves alike."""

import importlib
import shutil
from dataclasses import replace

import pytest
import torch
from backbones import KINDS, SIDE, config, make, save
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionXLPipeline

from synthvision.diffusion import backbone as backbones_module
from synthvision.diffusion.backbone import BackboneConfig, load


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return save(kind, tmp_path_factory.mktemp("weights") / kind)


@pytest.fixture(scope="module")
def backbone(kind, folder):
    return load(config(kind, folder))


def test_conditioning_equals_the_pipelines_own(backbone):
    prompts = ["a mole", "two moles on skin"]
    ours = backbone.encode_text(prompts)
    pipeline = backbone.pipeline()
    if backbone.config.family == "sdxl":
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, device="cpu")
        assert torch.equal(ours.pooled, pooled)
    else:
        embeds, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
        assert ours.pooled is None
    assert torch.equal(ours.embeds, embeds)


def test_sdxls_empty_negative_prompt_is_zero_and_only_that(tmp_path):
    backbone = make("sdxl", tmp_path / "sdxl")
    negative = backbone.encode_negative(["", "blurred"])
    assert not negative.embeds[0].any()
    assert not negative.pooled[0].any()
    assert torch.equal(negative.embeds[1], backbone.encode_text(["blurred"]).embeds[0])


def test_an_empty_negative_prompt_of_sd_is_encoded(tmp_path):
    backbone = make("sd15", tmp_path / "sd15")
    assert torch.equal(backbone.encode_negative([""]).embeds, backbone.encode_text([""]).embeds)


def test_latents_are_the_autoencoders_in_the_unets_scale(backbone):
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    latents = backbone.encode_images(images)
    distribution = backbone.vae.encode(images).latent_dist
    scale = backbone.vae.config.scaling_factor
    assert latents.mean.shape == (2, *backbone.latent_size)
    torch.testing.assert_close(latents.mean, distribution.mean * scale)
    torch.testing.assert_close(latents.std, distribution.std * scale)
    expected = backbone.vae.decode(distribution.mean).sample.clamp(-1, 1)
    torch.testing.assert_close(backbone.decode(latents.mean), expected, atol=1e-4, rtol=1e-4)


def test_sdxls_time_ids_describe_the_whole_image_in_fp32(tmp_path):
    backbone = make("sdxl", tmp_path / "sdxl")
    conditioning = backbone.encode_text(["a", "b"])
    noisy, t = torch.randn(2, *backbone.latent_size), torch.tensor([3, 900])
    whole = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2, dtype=torch.float32)
    with torch.no_grad():
        default = backbone.predict(noisy, t, conditioning)
        assert torch.equal(default, backbone.predict(noisy, t, conditioning, whole))
        assert not torch.equal(default, backbone.predict(noisy, t, conditioning, whole / 2))


def test_the_noise_schedule_is_the_one_saved_with_the_model(kind, backbone, folder):
    expected = DDPMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod
    assert torch.equal(backbone.alphas_cumprod(), expected)
    assert backbone.prediction_type == ("v_prediction" if kind in ("tiny", "sd21") else "epsilon")
    assert backbone.sampler().config.use_karras_sigmas == (kind != "tiny")
    spacing = {"tiny": "trailing", "sd15": "leading", "sd21": "leading", "sdxl": "linspace"}
    assert backbone.sampler().config.timestep_spacing == spacing[kind]


def test_a_saved_folder_opens_as_a_pipeline_and_loads_again(kind, folder, tmp_path):
    backbone = load(config(kind, folder))
    with torch.no_grad():
        next(backbone.unet.parameters()).add_(0.5)
    backbone.save(tmp_path / "weights")
    assert not list(tmp_path.rglob("*.bin"))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "weights")
    again = load(replace(backbone.config, source=str(tmp_path / "weights")))
    for name, value in backbone.unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], value)
        assert torch.equal(again.unet.state_dict()[name], value)
    assert torch.equal(again.alphas_cumprod(), backbone.alphas_cumprod())
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_no_watermark_is_put_in_though_its_package_is_there(backbone, monkeypatch):
    """Trap 11: diffusers marks SDXL's images unasked, and so synthetic ones alone: a perfect shortcut."""
    stock = importlib.import_module("diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl")
    monkeypatch.setattr(stock, "is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(stock, "StableDiffusionXLWatermarker", lambda: "a watermark", raising=False)
    assert getattr(backbone.pipeline(), "watermark", None) is None
    if backbone.config.family == "sdxl":  # the trap is real: without being told, it would be there
        assert StableDiffusionXLPipeline(**backbone.pipeline().components).watermark == "a watermark"


def test_no_pipeline_replaces_images_by_black_ones(backbone, tmp_path):
    """Trap 12: Stable Diffusion's safety checker flags clinical anatomy, and its pipeline then paints it black."""
    backbone.save(tmp_path / "weights")
    for pipeline in (backbone.pipeline(), DiffusionPipeline.from_pretrained(tmp_path / "weights")):
        assert getattr(pipeline, "safety_checker", None) is None
        assert not pipeline.config.get("requires_safety_checker", False)


def test_saving_replaces_what_was_there(backbone, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "stale").touch()
    backbone.save(tmp_path / "weights")
    assert not (tmp_path / "weights" / "stale").exists()


def test_half_precision_weights_load_in_fp32(kind, folder, tmp_path):
    backbone = load(config(kind, folder))
    backbone.pipeline().to(dtype=torch.float16).save_pretrained(tmp_path / "half")
    again = load(replace(backbone.config, source=str(tmp_path / "half")))
    modules = (again.unet, again.vae, *again.text_encoders)
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}


def test_a_folder_that_lacks_a_part_says_which_and_what_to_do(kind, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "vae")
    with pytest.raises(FileNotFoundError, match=r"has no vae.*backbone\.source"):
        load(config(kind, tmp_path / "broken"))


def test_a_part_without_weights_is_an_error_with_the_remedy(kind, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "broken")
    next((tmp_path / "broken" / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"cannot be loaded from.*backbone\.source"):
        load(config(kind, tmp_path / "broken"))


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers still passes it to the Hub
def test_an_unreachable_hub_says_what_to_download(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wanted = BackboneConfig("sd15", "nobody/no-such-model", 512, "sd", "abc123")
    with pytest.raises(FileNotFoundError, match="hf download nobody/no-such-model --revision abc123"):
        load(wanted)


@pytest.mark.parametrize(("kind", "family"), [("sdxl", "sd"), ("sd21", "sdxl")])
def test_weights_of_the_other_family_are_refused_before_they_are_read(kind, family, tmp_path, monkeypatch):
    save(kind, tmp_path / kind)
    monkeypatch.setattr(backbones_module, "load_part", None)  # reading weights would fail otherwise
    with pytest.raises(ValueError, match=rf"backbone\.family is '{family}'.* reads texts of width \d+"):
        load(replace(config(kind, tmp_path / kind), family=family))


def test_parts_of_different_models_are_refused(tmp_path):
    save("sd15", tmp_path / "mixed")
    file = tmp_path / "mixed" / "text_encoder" / "config.json"
    file.write_text(file.read_text().replace('"hidden_size": 16', '"hidden_size": 24'))
    with pytest.raises(ValueError, match="the UNet reads texts of width 16, but that of text_encoder is 24"):
        load(config("sd15", tmp_path / "mixed"))


def test_a_resolution_that_does_not_fit_the_model_is_refused(kind, folder):
    with pytest.raises(ValueError, match=r"backbone\.resolution must be a multiple of 4 .* it is 18"):
        load(replace(config(kind, folder), resolution=18))
    with pytest.raises(ValueError, match=r"generate\.resolution must be a multiple of 4 .* it is 18"):
        load(config(kind, folder)).check_side(18, "generate.resolution")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"family": "flux"}, "family"), ({"resolution": 0}, "resolution"), ({"source": ""}, "source")],
)
def test_a_bad_config_names_its_key(change, message):
    with pytest.raises(ValueError, match=message):
        replace(BackboneConfig("tiny", "package:tiny", 64, "sd"), **change)


def test_a_prompt_that_is_cut_warns_with_the_lost_text(backbone):
    room = backbone.tokenizers[0].model_max_length - 2
    backbone.tokenize(["x" * room])
    with pytest.warns(UserWarning, match="never sees 'yz'"):
        backbone.tokenize(["x" * room + "yz"])
