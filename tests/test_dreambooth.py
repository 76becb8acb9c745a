"""DreamBooth trains every kind of backbone, exactly resumably, and stops what it says it stops."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from backbones import SIDE, make
from safetensors.torch import load_file

from synthvision.artifact import sha256_file, tree_digest
from synthvision.data.images import read_rgb, write_png
from synthvision.diffusion.dreambooth import DreamBoothConfig, Subject, train
from synthvision.diffusion.examples import draw_rows
from synthvision.diffusion.module import DreamBooth
from synthvision.manifest import Manifest, Record

SUBJECT = Subject("sks", "skin, sks spots", "skin, spots")
CLASS_PROMPTS = ("skin, moles", "skin, rings")
CONFIG = DreamBoothConfig(
    unet_steps=6,
    unet_lr=1e-3,
    text_steps=3,
    text_lr=1e-3,
    batch_size=2,
    prior_weight=0.5,
    class_images=3,
    checkpoint_every=2,
    sample_every=3,
    warmup_steps=2,
    schedule="cosine",
    min_snr_gamma=None,
    augment=True,
    weight_decay=1e-2,
    precision="32-true",
    guidance=2.0,
    sample_steps=2,
)


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    root = tmp_path_factory.mktemp("guides")
    rng = np.random.default_rng(0)
    records = []
    for index in range(3):
        path = root / f"g{index}.png"
        write_png(path, rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        caption = ("sks spots", "early spots", "many sks spots")[index]
        records.append(
            Record(f"g{index}", path.name, sha256_file(path), "lesion", "real", split="guide", caption=caption)
        )
    return Manifest(tuple(records), root)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def run(backbone, guides, config, folder, seed=1):
    return train(backbone, guides, SUBJECT, CLASS_PROMPTS, config, folder / "out", folder / "work", seed)


@pytest.mark.parametrize("kind", ["tiny", "sd15", "sd21", "sdxl"])
def test_every_kind_trains_samples_and_saves(kind, guides, weights, tmp_path):
    backbone = make(kind, weights / kind)
    before = {name: value.clone() for name, value in backbone.unet.state_dict().items()}
    result = run(backbone, guides, CONFIG, tmp_path)
    saved = load_file(result.weights / "unet" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(saved[name], before[name]) for name in before)
    assert [path.name for path in result.grids] == ["step_00003.png", "step_00006.png"]
    assert read_rgb(result.grids[0]).shape == (2 * SIDE, 4 * SIDE, 3)
    lines = result.losses.read_text().splitlines()
    assert lines[0] == "step,total,instance,prior"
    assert len(lines) == 7
    assert all(np.isfinite([float(value) for line in lines[1:] for value in line.split(",")]))
    total, instance, prior = (result.final[name] for name in ("total", "instance", "prior"))
    assert total == pytest.approx(instance + 0.5 * prior, rel=1e-4)


class KilledError(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_killed_training_resumes_to_the_same_bits(at, guides, weights, tmp_path, monkeypatch):
    run(make("tiny", weights / "tiny"), guides, CONFIG, tmp_path / "whole")
    step = DreamBooth.training_step

    def die(self, batch, batch_idx):
        if self.global_step == at:
            raise KilledError
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DreamBooth, "training_step", die)
    with pytest.raises(KilledError):
        run(make("tiny", weights / "tiny"), guides, CONFIG, tmp_path / "killed")
    monkeypatch.setattr(DreamBooth, "training_step", step)
    run(make("tiny", weights / "tiny"), guides, CONFIG, tmp_path / "killed")
    assert tree_digest(tmp_path / "killed" / "out") == tree_digest(tmp_path / "whole" / "out")


def test_the_order_of_the_guides_does_not_matter(guides, weights, tmp_path):
    config = replace(CONFIG, unet_steps=2, text_steps=0)
    run(make("tiny", weights / "tiny"), guides, config, tmp_path / "a")
    run(make("tiny", weights / "tiny"), Manifest(guides.records[::-1], guides.root), config, tmp_path / "b")
    assert tree_digest(tmp_path / "a" / "out") == tree_digest(tmp_path / "b" / "out")


@pytest.mark.parametrize("kind", ["tiny", "sdxl"])
def test_the_text_encoder_stops_for_good(kind, guides, weights, tmp_path, monkeypatch):
    seen = []
    step = DreamBooth.training_step

    def watch(self, batch, batch_idx):
        seen.append([parameter.detach().clone() for parameter in self.text_encoders.parameters()])
        held = self.optimizers().state
        seen[-1].append(sum(parameter in held for parameter in self.text_encoders.parameters()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DreamBooth, "training_step", watch)
    backbone = make(kind, weights / kind)
    run(backbone, guides, CONFIG, tmp_path)
    pairs = [zip(before[:-1], after[:-1], strict=True) for before, after in pairwise(seen)]
    changed = [any(not torch.equal(a, b) for a, b in pair) for pair in pairs]
    assert changed == [True, True, True, False, False]
    assert [bool(state[-1]) for state in seen] == [False, True, True, False, False, False]
    after = [parameter for encoder in backbone.text_encoders for parameter in encoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(seen[-1][:-1], after, strict=True))
    assert not any(parameter.requires_grad for parameter in after)


def test_each_part_has_its_own_rate_and_its_own_end(guides, weights, tmp_path, monkeypatch):
    rates = []
    step = DreamBooth.training_step

    def watch(self, batch, batch_idx):
        rates.append([group["lr"] for group in self.optimizers().param_groups])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DreamBooth, "training_step", watch)
    run(make("tiny", weights / "tiny"), guides, replace(CONFIG, unet_lr=1e-3, text_lr=4e-4), tmp_path)
    unet, text = zip(*rates, strict=True)
    cosine = [(1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)]  # six steps, two of them warm-up
    np.testing.assert_allclose(unet, [0.5e-3, 1e-3, *(1e-3 * factor for factor in cosine)], rtol=1e-6)
    np.testing.assert_allclose(text, [2e-4, 4e-4, 4e-4, 0, 0, 0], atol=1e-12)  # three steps


def test_sdxls_unused_last_layer_does_not_move(guides, weights, tmp_path):
    backbone = make("sdxl", weights / "sdxl")
    layers = backbone.text_encoders[0].encoder.layers
    last, first = (layers[index].mlp.fc1.weight for index in (-1, 0))
    before = last.detach().clone(), first.detach().clone()
    run(backbone, guides, CONFIG, tmp_path)
    assert torch.equal(before[0], last)
    assert not torch.equal(before[1], first)


def test_a_text_encoder_without_steps_is_left_alone(guides, weights, tmp_path):
    backbone = make("tiny", weights / "tiny")
    before = [parameter.detach().clone() for parameter in backbone.text_encoders[0].parameters()]
    run(backbone, guides, replace(CONFIG, text_steps=0), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.text_encoders[0].parameters(), strict=True))


def test_the_control_is_the_base_itself(guides, weights, tmp_path):
    backbone = make("tiny", weights / "tiny")
    result = run(backbone, guides, replace(CONFIG, unet_steps=0, text_steps=0), tmp_path)
    again = make("tiny", result.weights)
    for name, value in backbone.unet.state_dict().items():
        assert torch.equal(value, again.unet.state_dict()[name])
    assert result.losses is None
    assert not (tmp_path / "work").exists()


def test_without_prior_no_class_image_is_made(guides, weights, tmp_path):
    result = run(make("tiny", weights / "tiny"), guides, replace(CONFIG, prior_weight=0.0), tmp_path)
    assert result.final["prior"] == 0
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["last.ckpt"]


def test_it_learns_the_guides(guides, weights, tmp_path):
    config = replace(CONFIG, unet_steps=40, text_steps=0, prior_weight=0.0, batch_size=4, sample_every=40, unet_lr=3e-3)
    result = run(make("sd21", weights / "sd21"), guides, config, tmp_path)
    instance = [float(line.split(",")[2]) for line in result.losses.read_text().splitlines()[1:]]
    assert np.mean(instance[-10:]) < 0.8 * np.mean(instance[:10])


def test_min_snr_changes_the_weights_of_both_halves(guides, weights, tmp_path):
    plain = run(make("sd15", weights / "sd15"), guides, replace(CONFIG, unet_steps=1, text_steps=0), tmp_path / "a")
    config = replace(CONFIG, unet_steps=1, text_steps=0, min_snr_gamma=0.01)
    weighted = run(make("sd15", weights / "sd15"), guides, config, tmp_path / "b")
    assert weighted.final["instance"] < plain.final["instance"]
    assert weighted.final["prior"] < plain.final["prior"]


def test_mixed_precision_trains_fp32_weights_that_small_steps_move(guides, weights, tmp_path):
    """Trap 2: at the HPV paper's rate the weights move, by less than bf16 could tell."""
    backbone = make("tiny", weights / "tiny")
    before = backbone.unet.conv_in.weight.detach().clone()
    config = replace(CONFIG, precision="bf16-mixed", unet_lr=2e-6, warmup_steps=0, weight_decay=0.0)
    result = run(backbone, guides, config, tmp_path)
    saved = load_file(result.weights / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    after = saved["conv_in.weight"]
    assert (after != before).float().mean() > 0.95
    assert (after.bfloat16() == before.bfloat16()).float().mean() > 0.9


def test_a_lost_number_stops_the_run_and_keeps_the_last_checkpoint(guides, weights, tmp_path, monkeypatch):
    step = DreamBooth.training_step

    def break_at_3(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        if self.global_step == 3:
            self.losses[3] = torch.nan
        return loss

    monkeypatch.setattr(DreamBooth, "training_step", break_at_3)
    with pytest.raises(FloatingPointError, match="step 3 is not finite"):
        run(make("tiny", weights / "tiny"), guides, CONFIG, tmp_path)
    kept = torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2


def test_draws_visit_all_before_any_twice_and_depend_on_the_step_alone():
    rows = torch.cat([draw_rows(7, 3, step, 5, 1) for step in range(14)])
    assert rows.view(6, 7).sort(dim=1).values.tolist() == [list(range(7))] * 6
    assert torch.equal(draw_rows(7, 3, 9, 5, 1), rows[27:30])
    assert not torch.equal(rows[:7], rows[7:14])


def test_a_caption_names_the_subject_once():
    assert SUBJECT.caption("dark skin, sks spots") == "dark skin, sks spots"
    assert SUBJECT.caption("dark skin") == "skin, sks spots, dark skin"
    assert SUBJECT.caption("asksen") == "skin, sks spots, asksen"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("sks", "skin, spots", "skin"), "instance_prompt must contain the identifier"),
        (("sks", "sks spots", "sks spots"), "class prompt must describe the class without"),
        (("sks", "sks spots", " "), "class prompt must describe the class without"),
        (("", "spots", "skin"), "identifier must be a rare word"),
    ],
)
def test_a_bad_subject_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Subject(*values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unet_steps", -1),
        ("unet_lr", 0.0),
        ("text_steps", 7),
        ("batch_size", 0),
        ("class_images", 0),
        ("precision", "16-true"),
        ("schedule", "linear"),
        ("min_snr_gamma", 0.0),
        ("guidance", 0.5),
    ],
)
def test_a_bad_config_names_its_key(key, value):
    with pytest.raises(ValueError, match=rf"dreambooth\.{key} must be .*; it is {value!r}"):
        replace(CONFIG, **{key: value})


def test_bad_guides_are_refused_before_any_work(guides, weights, tmp_path):
    backbone = make("tiny", weights / "tiny")
    with pytest.raises(ValueError, match="no guides to train on"):
        run(backbone, Manifest((), guides.root), CONFIG, tmp_path)
    silent = guides.with_values(lambda record: {"caption": " "} if record.image_id == "g1" else {})
    with pytest.raises(ValueError, match="guide g1 has no caption"):
        run(backbone, silent, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="class prompt must describe the class without"):
        train(backbone, guides, SUBJECT, ["skin, sks spots"], CONFIG, tmp_path / "out", tmp_path / "work", 1)
    assert not list(tmp_path.iterdir())
