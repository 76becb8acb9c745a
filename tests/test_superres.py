"""The upscaler learns from pairs, exactly resumably, and refuses what it cannot learn from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeManifest
from safetensors.torch import load_file
from upscalers import KINDS, LEVELS, SIDE, make

from synthvision.artifact import tree_digest
from synthvision.data.images import Pixels, read_rgb
from synthvision.diffusion.backbone import Latents
from synthvision.diffusion.degradation import degrade, enlarge, shrink, small_of
from synthvision.diffusion.superres import SuperRes, SuperResConfig, SuperResResult, train
from synthvision.diffusion.upscaler import Upscaler
from synthvision.manifest import Manifest

CONFIG = SuperResConfig(
    steps=5,
    lr=1e-3,
    batch_size=2,
    warmup_steps=1,
    schedule="cosine",
    weight_decay=1e-2,
    degraded=0.5,
    empty_captions=0.2,
    augment=False,
    checkpoint_every=2,
    precision="32-true",
)


@pytest.fixture
def guides(make_manifest: MakeManifest) -> Manifest:
    return make_manifest(("lesion",), n=2, size=SIDE, split="guide", caption="sks warts")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upscalers")


def run(upscaler: Upscaler, guides: Manifest, config: SuperResConfig, folder: Path) -> SuperResResult:
    return train(upscaler, guides, config, folder / "out", folder / "work", seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_unet_learns(kind: str, guides: Manifest, weights: Path, tmp_path: Path) -> None:
    upscaler = make(kind, weights / kind)
    before = {
        name: {key: value.clone() for key, value in getattr(upscaler, name).state_dict().items()}
        for name in ("unet", "vae", "text_encoder")
    }
    result = run(upscaler, guides, replace(CONFIG, augment=True), tmp_path)
    after = {name: getattr(upscaler, name).state_dict() for name in before}
    same = {name: all(torch.equal(before[name][key], after[name][key]) for key in before[name]) for name in before}
    assert same == {"unet": False, "vae": True, "text_encoder": True}
    saved = load_file(result.weights / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in after["unet"].items())
    lines = result.losses.read_text().splitlines()
    assert (lines[0], len(lines)) == ("step,loss", CONFIG.steps + 1)
    assert result.final == pytest.approx(float(lines[-1].split(",")[1]), rel=1e-4)


def test_a_step_asks_for_the_schedulers_target_of_noised_pairs(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """v, the noise on the small picture, its level as class label: recomputed here from what the UNet was asked."""
    asked = []
    predict = Upscaler.predict

    def watch(
        self: Upscaler,
        noisy: torch.Tensor,
        small: torch.Tensor,
        t: torch.Tensor,
        level: torch.Tensor,
        text: torch.Tensor,
    ) -> torch.Tensor:
        said = predict(self, noisy, small, t, level, text)
        asked.append((noisy, small, t, level, said.detach()))
        return said

    monkeypatch.setattr(Upscaler, "predict", watch)
    encode = Upscaler.encode_images

    def without_spread(self: Upscaler, large: torch.Tensor) -> Latents:
        mean = encode(self, large).mean
        return Latents(mean, torch.zeros_like(mean))

    monkeypatch.setattr(Upscaler, "encode_images", without_spread)
    upscaler = make("x4", weights / "x4")
    one = Manifest(guides.records[:1], guides.root)
    result = run(upscaler, one, replace(CONFIG, steps=1, batch_size=8, degraded=0.0), tmp_path)
    ((noisy, small, t, level, said),) = asked
    assert level.min() >= 0
    assert level.max() < LEVELS
    assert (t // 125).tolist() == list(range(8))  # one timestep in each eighth
    image = read_rgb(one.file(one.records[0]))
    clean = torch.from_numpy(shrink(image)).permute(2, 0, 1).float() / 127.5 - 1
    kept = upscaler.low_res_alphas_cumprod()[level].view(-1, 1, 1, 1)
    residual = (small - kept.sqrt() * clean) / (1 - kept).sqrt()
    assert residual.mean().abs() < 0.1
    assert residual.std() == pytest.approx(1, abs=0.1)
    latents = upscaler.encode_images(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    alpha = upscaler.alphas_cumprod()[t].view(-1, 1, 1, 1).double()
    noise = (noisy - alpha.sqrt() * latents.mean) / (1 - alpha).sqrt()
    v = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents.mean
    assert result.final == pytest.approx(float((said - v).square().mean()), rel=1e-3)


class KilledError(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("at", [1, 4])
def test_a_killed_training_resumes_to_the_same_bits(
    at: int, guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make("x4", weights / "x4"), guides, CONFIG, tmp_path / "whole")
    step: Callable[..., torch.Tensor] = SuperRes.training_step

    def die(self: SuperRes, batch: object, batch_idx: int) -> torch.Tensor:
        if self.global_step == at:
            raise KilledError
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SuperRes, "training_step", die)
        with pytest.raises(KilledError):
            run(make("x4", weights / "x4"), guides, CONFIG, tmp_path / "killed")
    backwards = Manifest(guides.records[::-1], guides.root)  # the order of the guides does not matter either
    run(make("x4", weights / "x4"), backwards, CONFIG, tmp_path / "killed")
    assert tree_digest(tmp_path / "killed" / "out") == tree_digest(tmp_path / "whole" / "out")


def test_it_learns_its_pairs(guides: Manifest, weights: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, batch_size=4, lr=3e-3, checkpoint_every=60, empty_captions=0.0)
    result = run(make("tiny", weights / "tiny"), guides, config, tmp_path)
    losses = [float(line.split(",")[1]) for line in result.losses.read_text().splitlines()[1:]]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_large_guides_are_cut_into_squares_that_cover_them(
    make_manifest: MakeManifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = Upscaler.encode_images
    monkeypatch.setattr(Upscaler, "encode_images", lambda self, large: (seen.append(large), encode(self, large))[1])
    large = make_manifest(("lesion",), n=1, size=2 * SIDE + 8, split="guide", caption="sks warts")
    run(make("x4", weights / "x4"), large, replace(CONFIG, steps=1), tmp_path)
    (squares,) = seen
    assert squares.shape == (9, 3, SIDE, SIDE)
    image = read_rgb(large.file(large.records[0])).astype(np.float32) / 127.5 - 1
    corner = image[-SIDE:, -SIDE:].transpose(2, 0, 1)
    np.testing.assert_allclose(squares[-1].numpy(), corner, atol=1e-6)


def test_bad_guides_are_refused_before_any_work(
    make_manifest: MakeManifest, guides: Manifest, weights: Path, tmp_path: Path
) -> None:
    upscaler = make("x4", weights / "x4")
    with pytest.raises(ValueError, match="no guides to train on"):
        run(upscaler, Manifest((), guides.root), CONFIG, tmp_path / "run")
    silent = guides.with_values(lambda _: {"caption": " "})
    with pytest.raises(ValueError, match="guide lesion-0 has no caption"):
        run(upscaler, silent, CONFIG, tmp_path / "run")
    small = make_manifest(("lesion",), n=1, size=SIDE - 4, caption="sks warts")
    message = rf"guide lesion-0 is 28 x 28 pixels; .* superres\.upscaler\.resolution={SIDE}\. Set dataset\.size"
    with pytest.raises(ValueError, match=message):
        run(upscaler, small, CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lost_number_stops_the_run_and_keeps_the_last_checkpoint(
    guides: Manifest, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step: Callable[..., torch.Tensor] = SuperRes.training_step

    def break_at_3(self: SuperRes, batch: object, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        if self.global_step == 3:
            self.losses[3] = torch.nan
        return loss

    monkeypatch.setattr(SuperRes, "training_step", break_at_3)
    with pytest.raises(FloatingPointError, match="step 3 is not finite"):
        run(make("x4", weights / "x4"), guides, CONFIG, tmp_path)
    kept = torch.load(tmp_path / "work" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 0), ("lr", 0.0), ("degraded", 1.5), ("empty_captions", -0.1), ("schedule", "x"), ("precision", "16")],
)
def test_a_bad_config_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"superres\.training\.{key} must be .*; it is {value!r}"):
        replace(CONFIG, **{key: value})  # type: ignore[arg-type]


@pytest.fixture
def picture() -> Pixels:
    y, x = np.mgrid[:64, :48]
    waves = 128 + 60 * np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    return waves.astype(np.uint8)


def test_small_pictures_have_a_quarter_of_the_sides_and_the_same_colours(picture: Pixels) -> None:
    small = shrink(picture)
    assert small.shape == (16, 12, 3)
    assert enlarge(small).shape == picture.shape
    assert np.abs(small.mean((0, 1)) - picture.mean((0, 1))).max() < 1
    assert np.abs(enlarge(small).astype(float) - picture).mean() < 4
    for seed in range(4):
        assert np.abs(degrade(picture, np.random.default_rng(seed)).mean((0, 1)) - small.mean((0, 1))).max() < 4


def test_degradation_follows_its_generator_and_its_share(picture: Pixels) -> None:
    draws = [small_of(picture, 0.3, np.random.default_rng(seed)) for seed in range(200)]
    plain = sum(np.array_equal(each, shrink(picture)) for each in draws)
    assert 120 <= plain <= 160
    again = [small_of(picture, 0.3, np.random.default_rng(seed)) for seed in range(5)]
    assert all(np.array_equal(a, b) for a, b in zip(draws, again, strict=False))
