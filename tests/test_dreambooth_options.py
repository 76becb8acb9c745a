"""Every option of training does what it says, in the real training loop, and resumes to the same bits."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from backbones import config as backbone_config
from backbones import make
from diffusers import StableDiffusionPipeline
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file
from test_dreambooth import CLASS_PROMPTS, CONFIG, SUBJECT, KilledError, run

from synthvision.artifact import tree_digest
from synthvision.diffusion.backbone import Backbone, load
from synthvision.diffusion.dreambooth import DreamBoothResult, train
from synthvision.diffusion.module import Batch, DreamBooth
from synthvision.diffusion.recipe import DreamBoothConfig
from synthvision.manifest import Manifest

STATES = {
    "ema": {"ema_decay": 0.9},
    "lora": {"method": "lora", "lora_rank": 2},
    "adafactor": {"optimizer": "adafactor"},
    "masks": {"lesion_weight": 0.7, "lesion_view": "both"},
    "everything": {
        "method": "lora",
        "lora_rank": 2,
        "ema_decay": 0.9,
        "optimizer": "adafactor",
        "offset_noise": 0.1,
        "zero_terminal_snr": True,
        "min_snr_gamma": 5.0,
        "lesion_weight": 0.5,
        "gradient_checkpointing": True,
        "holdout": 1,
        "export_every": 2,
    },
}


def saved(result: DreamBoothResult, part: str = "unet") -> dict[str, torch.Tensor]:
    name = "diffusion_pytorch_model" if part == "unet" else "model"
    return load_file(result.weights / part / f"{name}.safetensors")


def painted(backbone: Backbone, pipeline: StableDiffusionPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a backbone and a pipeline predict for one latent and prompt."""
    z = torch.randn((1, *backbone.latent_size), generator=torch.Generator().manual_seed(0))
    ids = backbone.tokenize(["skin, sks spots"])
    with torch.no_grad():
        ours = backbone.predict(z, torch.tensor([500]), backbone.encode_tokens(ids))
        theirs = pipeline.unet(z, torch.tensor([500]), pipeline.text_encoder(ids[0])[0]).sample
    return ours, theirs


@pytest.mark.parametrize("state", STATES)
def test_every_state_resumes_to_the_same_bits(
    state: str, guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, **STATES[state])
    run(make("tiny", weights / "tiny"), guides, config, tmp_path / "whole")
    step = DreamBooth.training_step

    def die(self: DreamBooth, batch: object, batch_idx: int) -> torch.Tensor:
        if self.global_step == 5:
            raise KilledError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DreamBooth, "training_step", die)
    with pytest.raises(KilledError):
        run(make("tiny", weights / "tiny"), guides, config, tmp_path / "killed")
    monkeypatch.setattr(DreamBooth, "training_step", step)
    run(make("tiny", weights / "tiny"), guides, config, tmp_path / "killed")
    assert tree_digest(tmp_path / "killed" / "out") == tree_digest(tmp_path / "whole" / "out")


def test_adapters_are_small_and_load_with_diffusers(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    backbone = make("sd15", weights / "sd15")
    before = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    text_before = {name: value.clone() for name, value in backbone.text_encoders[0].state_dict().items()}
    result = run(backbone, guides, replace(CONFIG, method="lora", lora_rank=2, unet_lr=1e-2, text_lr=1e-2), tmp_path)
    changed = {name for name, value in saved(result).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".to_" in name for name in changed)
    texts = saved(result, "text_encoder")
    assert any(not torch.equal(texts[name], text_before[name]) for name in texts)
    kept = torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)["state_dict"]
    assert all("lora" in name for name in set(kept) - {"losses", "validation"})

    file = tmp_path / "out" / "lora" / "pytorch_lora_weights.safetensors"
    keys = load_file(file)
    assert {name.rsplit("_", 1)[0].split("_")[1] for name in keys} == {"unet", "te"}
    assert {name.split(".", 1)[1] for name in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(name.startswith("lora_te_text_model_encoder_layers_") for name in keys if name.startswith("lora_te"))
    pipeline = StableDiffusionPipeline.from_pretrained(weights / "sd15", safety_checker=None)
    plain = painted(backbone, pipeline)
    pipeline.load_lora_weights(file.parent)
    ours, theirs = painted(backbone, pipeline)
    assert (plain[0] - plain[1]).abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_sdxl_adapters_of_both_encoders_load_with_diffusers(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    backbone = make("sdxl", weights / "sdxl")
    run(backbone, guides, replace(CONFIG, method="lora", lora_rank=2, unet_lr=1e-2, text_lr=1e-2), tmp_path)
    folder = tmp_path / "out" / "lora"
    keys = load_file(folder / "pytorch_lora_weights.safetensors")
    assert {name.split("_")[1] for name in keys} == {"unet", "te1", "te2"}
    pipeline = StableDiffusionXLPipeline.from_pretrained(weights / "sdxl", add_watermarker=False)
    pipeline.load_lora_weights(folder)
    ids = backbone.tokenize(["skin, sks spots"])
    with torch.no_grad():
        ours = backbone.encode_tokens(ids)
        theirs = [
            encoder(each, output_hidden_states=True)
            for encoder, each in zip((pipeline.text_encoder, pipeline.text_encoder_2), ids, strict=True)
        ]
    torch.testing.assert_close(ours.embeds, torch.cat([each.hidden_states[-2] for each in theirs], -1))
    torch.testing.assert_close(ours.pooled, theirs[1].text_embeds)


def test_the_average_is_what_is_kept(guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: object) -> None:
    """Compared with the average of the weights after each step, computed here."""
    seen: list[torch.Tensor] = []
    step = DreamBooth.optimizer_step

    def watch(self: DreamBooth, *given: object, **named: object) -> None:
        if not seen:
            seen.append(self.unet.conv_in.weight.detach().clone())
        step(self, *given, **named)
        seen.append(self.unet.conv_in.weight.detach().clone())

    assert isinstance(monkeypatch, pytest.MonkeyPatch)
    monkeypatch.setattr(DreamBooth, "optimizer_step", watch)
    decay = 0.6
    result = run(make("tiny", weights / "tiny"), guides, replace(CONFIG, ema_decay=decay), tmp_path)
    average = seen[0]
    for number, value in enumerate(seen[1:], 1):
        rate = min(decay, number / (10 + number - 1)) if number > 1 else 0.0
        average = rate * average + (1 - rate) * value
    kept = saved(result)["conv_in.weight"]
    assert not torch.equal(kept, seen[-1])
    torch.testing.assert_close(kept, average)


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    guides: Manifest, weights: Path, tmp_path: Path
) -> None:
    plain = run(make("sd15", weights / "sd15"), guides, CONFIG, tmp_path / "a")
    backbone = make("sd15", weights / "sd15")
    spared = run(backbone, guides, replace(CONFIG, gradient_checkpointing=True), tmp_path / "b")
    assert backbone.unet.is_gradient_checkpointing
    for name, value in saved(plain).items():
        torch.testing.assert_close(saved(spared)[name], value, rtol=1e-4, atol=1e-6)


def test_adafactor_trains_with_the_given_rate_and_little_state(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="adafactor", weight_decay=0.0)
    backbone = make("tiny", weights / "tiny")
    before = backbone.unet.conv_in.weight.detach().clone()
    run(backbone, guides, config, tmp_path)
    assert not torch.equal(before, backbone.unet.conv_in.weight)
    states = torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    held = sum(value.numel() for state in states.values() for value in state.values() if torch.is_tensor(value))
    assert held < sum(parameter.numel() for parameter in backbone.unet.parameters())  # AdamW: twice as many


def test_eight_bit_adamw_says_what_it_needs(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"adamw8bit needs (the package bitsandbytes: pip install|a GPU)"):
        run(make("tiny", weights / "tiny"), guides, replace(CONFIG, optimizer="adamw8bit"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_loss_of_a_masked_guide_is_its_lesions(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Batch] = []
    draw = DreamBooth.draw

    def watch(self: DreamBooth, step: int) -> Batch:
        drawn.append(draw(self, step))
        return drawn[-1]

    monkeypatch.setattr(DreamBooth, "draw", watch)
    config = replace(CONFIG, lesion_weight=1.0, augment=False, unet_steps=3, text_steps=0)
    run(make("tiny", weights / "tiny"), guides, config, tmp_path)
    for batch in drawn:
        assert batch.cells is not None
        torch.testing.assert_close(batch.cells.mean(dim=(1, 2, 3)), torch.ones(4))
        for image_id, cells in zip(batch.image_ids, batch.cells, strict=True):
            lesion = {"g0": (slice(1, 3), slice(2, 4)), "g1": (slice(1, 3), slice(2, 5))}.get(image_id)
            if lesion is None:  # no mask, or a class image: evenly
                assert (cells == 1).all()
            else:
                assert cells[0][lesion].sum() == pytest.approx(cells.sum())
    seen = {image_id for batch in drawn for image_id in batch.image_ids}
    assert {"g0", "g1", "g2"} <= seen


def test_masks_that_are_asked_for_must_be_there(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    bare = Manifest(tuple(replace(record, mask="") for record in guides), guides.root)
    with pytest.raises(ValueError, match="lesion_view need masks, and no guide has one"):
        run(make("tiny", weights / "tiny"), bare, replace(CONFIG, lesion_view="crop"), tmp_path)


def test_zero_terminal_snr_is_kept_for_sampling(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    result = run(make("sd21", weights / "sd21"), guides, replace(CONFIG, zero_terminal_snr=True), tmp_path)
    again = load(backbone_config("sd21", result.weights))
    assert again.alphas_cumprod()[-1] == 0
    assert again.scheduler_config["timestep_spacing"] == "trailing"
    with pytest.raises(ValueError, match="zero terminal SNR needs prediction_type v_prediction"):
        run(make("sd15", weights / "sd15"), guides, replace(CONFIG, zero_terminal_snr=True), tmp_path / "eps")


def test_offset_noise_moves_whole_channels_and_no_other_draw(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Batch] = []
    draw = DreamBooth.draw

    def watch(self: DreamBooth, step: int) -> Batch:
        drawn.append(draw(self, step))
        return drawn[-1]

    monkeypatch.setattr(DreamBooth, "draw", watch)
    for strength in (0.0, 0.5):
        config = replace(CONFIG, offset_noise=strength, unet_steps=1, text_steps=0)
        run(make("tiny", weights / "tiny"), guides, config, tmp_path / str(strength))
    plain, offset = drawn
    assert torch.equal(plain.x_0, offset.x_0)
    assert torch.equal(plain.t, offset.t)
    added = offset.noise - plain.noise
    assert added.std() > 0.2
    torch.testing.assert_close(added, added.mean(dim=(2, 3), keepdim=True).expand_as(added), atol=1e-5, rtol=0)


def test_held_out_guides_are_judged_and_never_trained_on(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    step = DreamBooth.training_step

    def watch(self: DreamBooth, batch: object, batch_idx: int) -> torch.Tensor:
        seen.update(self.draw(self.global_step).image_ids)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DreamBooth, "training_step", watch)
    result = run(make("tiny", weights / "tiny"), guides, replace(CONFIG, holdout=1), tmp_path)
    assert len({"g0", "g1", "g2"} - seen) == 1
    lines = (tmp_path / "out" / "validation.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "3", "6"]
    losses = [float(line.split(",")[1]) for line in lines[1:]]
    assert all(np.isfinite(losses))
    assert losses[-1] == pytest.approx(result.reached["validation_loss"], rel=1e-5)
    with pytest.raises(ValueError, match="holdout=3 must be below the number of guides, 3"):
        run(make("tiny", weights / "tiny"), guides, replace(CONFIG, holdout=3), tmp_path / "none")


def test_it_says_what_was_chosen_and_what_it_took(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    backbone = make("tiny", weights / "tiny")
    result = run(backbone, guides, replace(CONFIG, precision="bf16-mixed"), tmp_path)
    assert result.reached["peak_memory_gb"] > 0.1
    assert result.reached["samples_per_second"] > 0
    trained = [*backbone.unet.parameters(), *backbone.text_encoders[0].parameters()]
    assert result.chosen["trained_parameters"] == f"{sum(parameter.numel() for parameter in trained):,}"
    assert result.chosen["precision"] == "bfloat16 autocast over float32 weights"


def test_what_is_watched_is_logged_every_tenth_step(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "log", name="", version="")
    config = replace(CONFIG, unet_steps=20, text_steps=20, holdout=1, sample_every=10, checkpoint_every=20)
    backbone, given = make("tiny", weights / "tiny"), (guides, SUBJECT, CLASS_PROMPTS, config)
    result = train(backbone, *given, tmp_path / "out", tmp_path / "work", 1, logger)
    with (tmp_path / "log" / "metrics.csv").open(newline="") as handle:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(handle)]
    logged = {int(row["step"]): row for row in rows if "train/total_loss" in row}
    losses = result.losses.read_text().splitlines()[1:]
    assert list(logged) == [9, 19]
    for step, row in logged.items():
        assert row["train/total_loss"] == pytest.approx(float(losses[step].split(",")[1]), rel=1e-4)
        assert row["train/gradient_norm"] > 0
    names = {name for row in rows for name in row}
    assert {"train/instance_loss", "train/prior_loss", "train/lr_unet", "train/lr_text_encoder"} <= names
    assert {"train/memory_gb", "train/samples_per_second", "val/instance_loss"} <= names


def test_compile_gives_the_same_model(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole of torch.compile but its last part, which would run a C++ compiler for minutes."""
    config = replace(CONFIG, unet_steps=2, text_steps=0, prior_weight=0.0, sample_every=2)
    plain = run(make("tiny", weights / "tiny"), guides, config, tmp_path / "a")
    backbone = make("tiny", weights / "tiny")
    monkeypatch.setattr(backbone.unet, "compile", partial(backbone.unet.compile, backend="eager"))
    compiled = run(backbone, guides, replace(config, compile=True), tmp_path / "b")
    assert backbone.unet._compiled_call_impl is not None
    assert list(saved(compiled)) == list(saved(plain))
    assert compiled.final["total"] == pytest.approx(plain.final["total"], rel=1e-4)


def test_a_caption_that_is_cut_is_a_warning_that_names_the_file(
    guides: Manifest, weights: Path, tmp_path: Path
) -> None:
    long = guides.with_values(lambda record: {"caption": "x" * 40} if record.image_id == "g1" else {})
    config = replace(CONFIG, unet_steps=1, text_steps=0, prior_weight=0.0)
    with pytest.warns(UserWarning, match="never sees") as warned:
        run(make("tiny", weights / "tiny"), long, config, tmp_path)
    said = [str(each.message) for each in warned]
    assert any("caption of g1.png is too long" in text and "never sees" in text for text in said)
    assert not any("g0.png" in text for text in said)


def test_one_guide_is_a_warning(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    one = Manifest(guides.records[:1], guides.root)
    with pytest.warns(UserWarning, match="one guide to train on"):
        run(make("tiny", weights / "tiny"), one, replace(CONFIG, unet_steps=1, text_steps=0), tmp_path)


def test_what_was_lost_is_named(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    """Trap: a NaN stops the run with the step, the batch's pictures and the last good checkpoint."""
    backbone = make("tiny", weights / "tiny")
    config = replace(CONFIG, unet_lr=1e30, weight_decay=0.0, checkpoint_every=1, text_steps=0, unet_steps=20)
    with pytest.raises(FloatingPointError, match=r"loss at step \d+ is not finite; its pictures were (g\d|class)") as e:
        run(backbone, guides, config, tmp_path)
    assert str(tmp_path / "work" / "last.ckpt") in str(e.value)
    assert str(guides.root) not in str(e.value)


def test_too_little_room_is_refused_before_any_work(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synthvision.diffusion import checkpoints

    monkeypatch.setattr(checkpoints, "RESERVE", 1 << 60)  # a disk with less free than is needed
    with pytest.raises(OSError, match=r"training needs .* GB in .* GB are free; make room"):
        run(make("tiny", weights / "tiny"), guides, CONFIG, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_class_prompt_that_is_the_instance_prompt_is_refused(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    backbone, prompts = make("tiny", weights / "tiny"), [*CLASS_PROMPTS, SUBJECT.instance_prompt]
    with pytest.raises(ValueError, match="class prompt must describe the class without the identifier"):
        train(backbone, guides, SUBJECT, prompts, CONFIG, tmp_path / "out", tmp_path / "work", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dora"}, "method must be one of"),
        ({"optimizer": "sgd"}, "optimizer must be one of"),
        ({"lesion_weight": 1.5}, "lesion_weight must be between 0 and 1"),
        ({"lesion_view": "half"}, "lesion_view must be one of"),
        ({"ema_decay": 1.0}, "ema_decay must be null or between 0 and 1"),
        ({"export_every": 0}, "export_every must be null or at least 1"),
        ({"devices": 3}, "batch_size must be a multiple of dreambooth.devices=3"),
        ({"devices": 2, "strategy": "fsdp", "method": "lora"}, "method must be 'full' with strategy 'fsdp'"),
    ],
)
def test_a_bad_option_names_its_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"dreambooth\.{message}"):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_defaults_are_the_plain_method() -> None:
    assert DreamBoothConfig.method == "full"
    assert DreamBoothConfig.ema_decay is None
