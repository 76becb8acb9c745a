"""Generation: one image depends on its seed alone, and the loop equals diffusers' own."""

import resource
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from backbones import KINDS, SIDE, make
from PIL import Image

from synthvision.artifact import sha256_file, tree_digest
from synthvision.data.images import load_batch, read_rgb, write_png
from synthvision.data.sheets import contact_sheet
from synthvision.diffusion import sampler
from synthvision.diffusion.backbone import DPM, SCHEDULERS, load
from synthvision.diffusion.generate import generate
from synthvision.diffusion.painting import local, soft_disc
from synthvision.diffusion.plan import GenerationConfig
from synthvision.diffusion.prompts import Prompt, expand, expand_over
from synthvision.manifest import Manifest, Record

CONFIG = GenerationConfig(
    mode="noise",
    candidates=5,
    steps=3,
    guidance=2.0,
    batch_size=4,
    mask_radius=(0.2, 0.4),
    strength=1.0,
)
PROMPTS = [Prompt(text, "blurred", {"skin_tone": text}) for text in ("fair", "dark", "fair", "brown", "fair")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def backbone(weights):
    return make("tiny", weights / "tiny")


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    root = tmp_path_factory.mktemp("normals")
    rng = np.random.default_rng(0)
    records = []
    for index in range(3):
        write_png(root / f"n{index}.png", rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        digest = sha256_file(root / f"n{index}.png")
        tone, part = ("fair", "brown", "dark")[index], ("arm", "leg", "face")[index]
        record = Record(f"n{index}", f"n{index}.png", digest, "normal", "real", split="train", skin_tone=tone)
        records.append(replace(record, body_part=part))
    return Manifest(tuple(records), root)


def draw(backbone, prompts, folder, config=CONFIG, seed=7, **options):
    return generate(backbone, prompts, config, "lesion", "face-dark", seed, folder, folder / "out", **options)


@pytest.mark.parametrize(
    ("kind", "scheduler"), [*((kind, DPM) for kind in KINDS), *product(("tiny", "sd15"), SCHEDULERS[1:])]
)
def test_the_loop_equals_the_pipelines(kind, scheduler, weights):
    backbone = make(kind, weights / kind)
    prompts, negatives = ["a mole", "two rings"], ["blurred", "grey"]
    noise = sampler.draw_noise([1, 2], backbone.latent_size)
    positive, negative = backbone.encode_text(prompts), backbone.encode_negative(negatives)
    ours = sampler.denoise(backbone, noise, positive, negative, 4, 3.0, kind=scheduler)
    pipeline = backbone.pipeline(backbone.sampler(scheduler))
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": SIDE, "width": SIDE, "latents": noise.clone()}
    theirs = pipeline(prompts, negative_prompt=negatives, output_type="latent", **options).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_levels_are_those_that_diffusers_adds_noise_at(scheduler, weights):
    backbone = make("sd15", weights / "sd15")
    solver = backbone.sampler(scheduler)
    solver.set_timesteps(5)
    clean, noise = sampler.draw_noise([1, 2], backbone.latent_size).split(1)
    levels = sampler.levels_of(solver)
    for step, t in enumerate(solver.timesteps):
        torch.testing.assert_close(levels.mix(clean, noise, step), solver.add_noise(clean, noise, t[None]))


def test_without_guidance_the_negative_prompt_has_no_effect(backbone):
    noise = sampler.draw_noise([1], backbone.latent_size)
    positive = backbone.encode_text(["a mole"])
    images = [
        sampler.denoise(backbone, noise, positive, backbone.encode_negative([text]), 3, 1.0) for text in ("", "grey")
    ]
    assert torch.equal(*images)


def test_an_image_depends_on_seed_prompt_and_variant_alone(backbone, tmp_path):
    whole = draw(backbone, PROMPTS, tmp_path / "whole")
    by_id = {record.image_id: record for record in whole}
    other = draw(backbone, [PROMPTS[3], PROMPTS[0], PROMPTS[1], PROMPTS[2]], tmp_path / "other")
    assert len(by_id) == 5
    for record in other:
        assert record.sha256 == by_id[record.image_id].sha256
    assert len({record.sha256 for record in whole}) == 5
    different = draw(backbone, PROMPTS, tmp_path / "seed", seed=8)
    assert not {record.sha256 for record in whole} & {record.sha256 for record in different}


def test_another_batch_size_changes_no_pixel_by_more_than_one_grey_level(backbone, tmp_path):
    images = [
        load_batch(draw(backbone, PROMPTS, tmp_path / str(size), replace(CONFIG, batch_size=size)), SIDE).astype(int)
        for size in (1, 2, 5)
    ]
    assert abs(images[0] - images[1]).max() <= 1
    assert abs(images[0] - images[2]).max() <= 1


@pytest.mark.parametrize("kind", ["tiny", "sd15", "sdxl"])
def test_in_bfloat16_the_pictures_are_nearly_the_same_and_noise_stays_in_float32(kind, weights, normals, tmp_path):
    exact, half = replace(CONFIG, candidates=2), replace(CONFIG, candidates=2, precision="bf16-mixed")
    full = make(kind, weights / kind)
    brief = load(full.config, half.dtype)
    assert {parameter.dtype for parameter in brief.unet.parameters()} == {torch.bfloat16}
    noise = sampler.draw_noise([1], brief.latent_size)
    texts = brief.encode_text(["fair"]), brief.encode_negative([""])
    assert sampler.denoise(brief, noise, *texts, 3, 2.0).dtype == torch.float32
    painted = [Prompt("fair", "", {}, "n0"), Prompt("dark", "", {}, "n1")]
    for mode, prompts, grounds in (("noise", PROMPTS[:2], None), ("paint", painted, normals)):
        made = [
            draw(
                model, prompts, tmp_path / f"{mode}-{config.precision}", replace(config, mode=mode), backgrounds=grounds
            )
            for model, config in ((full, exact), (brief, half))
        ]
        assert [one.records[0].settings.endswith("bfloat16") for one in made] == [False, True]
        near, far = (load_batch(one, SIDE).astype(int) for one in made)
        assert 0 < abs(near - far).mean() < 3  # grey levels


def test_compile_paints_the_same_pictures(backbone, weights, tmp_path, monkeypatch):
    """With the whole of torch.compile but its last part, which would run a C++ compiler for minutes."""
    plain = draw(backbone, PROMPTS, tmp_path / "plain")
    other = make("tiny", weights / "tiny")
    monkeypatch.setattr(other.unet, "compile", partial(other.unet.compile, backend="eager"))
    compiled = draw(other, PROMPTS, tmp_path / "compiled", replace(CONFIG, compile=True))
    assert other.unet._compiled_call_impl is not None
    near, far = (load_batch(one, SIDE).astype(int) for one in (plain, compiled))
    assert abs(near - far).max() <= 1


def test_an_interrupted_generation_ends_with_the_same_files(backbone, tmp_path):
    draw(backbone, PROMPTS, tmp_path / "whole")
    manifest = draw(backbone, PROMPTS, tmp_path / "killed")
    kept = manifest.file(manifest.records[0])
    for record in (manifest.records[1], manifest.records[4]):
        manifest.file(record).unlink()
    (tmp_path / "killed" / "out" / "manifest.csv").unlink()
    before = kept.stat().st_mtime_ns
    draw(backbone, PROMPTS, tmp_path / "killed")
    assert tree_digest(tmp_path / "killed" / "out") == tree_digest(tmp_path / "whole" / "out")
    assert kept.stat().st_mtime_ns == before


def test_every_image_tells_where_it_is_from(backbone, tmp_path):
    manifest = draw(backbone, PROMPTS, tmp_path, parent_run="abc")
    assert Manifest.read(tmp_path / "out" / "manifest.csv", tmp_path) == manifest
    first = manifest.records[0]
    assert (first.label, first.set, first.origin, first.mode) == ("lesion", "face-dark", "synthetic", "noise")
    assert (first.prompt, first.skin_tone, first.parent_run, first.split) == ("fair", "fair", "abc", "")
    assert first.sha256 == sha256_file(manifest.file(first))
    noise = sampler.draw_noise([int(first.seed)], backbone.latent_size).expand(4, -1, -1, -1)
    texts = backbone.encode_text(["fair"] * 4), backbone.encode_negative(["blurred"] * 4)
    again = sampler.to_pixels(backbone.decode(sampler.denoise(backbone, noise, *texts, 3, 2.0)))[0]
    assert abs(again.astype(int) - read_rgb(manifest.file(first))).max() <= 1
    with Image.open(manifest.file(first)) as image:
        assert "trainedAlgorithmicMedia" in image.text["XML:com.adobe.xmp"]
    assert read_rgb(tmp_path / "out" / "contact_sheet.png").shape == (2 * SIDE, 3 * SIDE, 3)


def test_painting_keeps_the_picture_outside_the_mask(backbone, normals, tmp_path):
    prompts = expand_over(("spots on {skin_tone} {body_part}",), {}, normals, 5, 3)
    manifest = draw(backbone, prompts, tmp_path, replace(CONFIG, mode="paint"), backgrounds=normals)
    real = {record.image_id: image for record, image in zip(normals, load_batch(normals, SIDE), strict=True)}
    tones = {record.image_id: record.skin_tone for record in normals}
    for record, image in zip(manifest, load_batch(manifest, SIDE), strict=True):
        mask = soft_disc(SIDE, int(record.seed), CONFIG.mask_radius).numpy()
        changed = (image != real[record.painted_on]).any(axis=2)
        assert not changed[mask == 0].any()
        assert changed[mask == 1].mean() > 0.5
        assert (record.mode, record.skin_tone) == ("paint", tones[record.painted_on])
        assert record.prompt.startswith(f"spots on {record.skin_tone} {record.body_part}")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_painting_nothing_changes_nothing(scheduler, backbone, normals):
    """Where the mask is empty, the latents come back as they went in."""
    latents = backbone.encode_images(sampler.to_tensor(load_batch(normals, SIDE))).mean
    known = sampler.Known(latents, torch.zeros(3, 1, *backbone.latent_size[1:]), 1.0)
    noise = sampler.draw_noise([1, 2, 3], backbone.latent_size)
    texts = backbone.encode_text(["a"] * 3), backbone.encode_negative([""] * 3)
    torch.testing.assert_close(sampler.denoise(backbone, noise, *texts, 3, 2.0, known, scheduler), latents)


def test_img2img_is_noise_at_a_level_and_the_rest_of_the_steps(weights, normals):
    backbone = make("sd15", weights / "sd15")
    pictures = sampler.to_tensor(load_batch(normals, SIDE))
    noise = sampler.draw_noise([1, 2, 3], backbone.latent_size)
    texts = backbone.encode_text(["a mole"] * 3), backbone.encode_negative(["grey"] * 3)
    latents = backbone.encode_images(pictures).mean
    everywhere = torch.ones_like(latents[:, :1])
    ours = sampler.denoise(backbone, noise, *texts, 10, 3.0, sampler.Known(latents, everywhere, 0.6))
    scheduler = backbone.sampler()
    scheduler.set_timesteps(10)
    start = scheduler.add_noise(latents, noise, scheduler.timesteps[4:5])
    scheduler.set_begin_index(4)
    theirs = start
    for t in scheduler.timesteps[4:]:
        away, towards = backbone.predict(torch.cat([theirs] * 2), t, texts[1].join(texts[0])).chunk(2)
        theirs = scheduler.step(away + 3.0 * (towards - away), t, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_less_strength_stays_nearer_to_the_picture(weights, normals):
    backbone = make("sd15", weights / "sd15")
    latents = backbone.encode_images(sampler.to_tensor(load_batch(normals, SIDE))).mean
    noise = sampler.draw_noise([1, 2, 3], backbone.latent_size)
    texts = backbone.encode_text(["a"] * 3), backbone.encode_negative([""] * 3)
    everywhere = torch.ones(3, 1, *backbone.latent_size[1:])
    known = [sampler.Known(latents, everywhere, strength) for strength in (0.1, 0.5, 1.0)]
    distances = [(sampler.denoise(backbone, noise, *texts, 10, 1.0, some) - latents).norm() for some in known]
    assert distances[0] < distances[1] < distances[2]


def test_img2img_starts_from_the_real_picture_and_says_so(backbone, normals, tmp_path):
    prompts = expand_over(("spots on {skin_tone} skin",), {}, normals, 3, 3)
    manifest = draw(backbone, prompts, tmp_path, replace(CONFIG, mode="img2img", strength=0.4), backgrounds=normals)
    assert set(manifest.column("mode")) == {"img2img"}
    assert set(manifest.column("settings")) == {f"dpmsolver++, 3 steps, guidance 2, strength 0.4, {SIDE} px"}
    assert sorted(manifest.column("painted_on")) == sorted(normals.column("image_id"))
    other = draw(backbone, prompts, tmp_path / "more", replace(CONFIG, mode="img2img"), backgrounds=normals)
    assert not set(manifest.column("sha256")) & set(other.column("sha256"))


@pytest.mark.parametrize("mode", ["noise", "paint"])
def test_shards_leave_the_files_of_an_undivided_run(mode, backbone, normals, tmp_path):
    """Three parts in any order, one of them begun before by the whole; then the whole, which makes what is missing."""
    config = replace(CONFIG, mode=mode)
    prompts = PROMPTS if mode == "noise" else expand_over(("spots",), {}, normals, 5, 3)
    options = {} if mode == "noise" else {"backgrounds": normals}
    whole = draw(backbone, prompts, tmp_path / "whole", config, **options)
    parts = [draw(backbone, prompts, tmp_path / "parts", replace(config, shard=f"{k}/3"), **options) for k in (2, 0)]
    assert not (tmp_path / "parts" / "out" / "manifest.csv").exists()
    files = sorted((tmp_path / "parts" / "out" / "images").iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    assert [len(part) for part in parts] == [1, 2]
    merged = draw(backbone, prompts, tmp_path / "parts", config, **options)
    assert merged.records == whole.records
    assert tree_digest(tmp_path / "parts" / "out") == tree_digest(tmp_path / "whole" / "out")
    assert [file.stat().st_mtime_ns for file in files] == stamps


def test_a_disk_that_is_full_loses_nothing(backbone, tmp_path, capsys):
    assert capsys is not None  # else what is printed goes to a file, for which the limit holds too
    draw(backbone, PROMPTS, tmp_path / "whole")
    part = draw(backbone, PROMPTS[:2], tmp_path / "full", replace(CONFIG, batch_size=4))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))  # a picture is larger
    try:
        with pytest.raises(OSError, match=r"cannot be written to .*/images: File too large\. At least 2 images"):
            draw(backbone, PROMPTS, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    images = tmp_path / "full" / "out" / "images"
    assert sorted(file.name for file in images.iterdir()) == sorted(f"{record.image_id}.png" for record in part)
    draw(backbone, PROMPTS, tmp_path / "full")
    assert tree_digest(tmp_path / "full" / "out") == tree_digest(tmp_path / "whole" / "out")


def test_numbers_that_are_none_stop_before_a_black_picture_is_written(weights, tmp_path):
    broken = make("sd15", weights / "sd15")
    with torch.no_grad():
        broken.vae.decoder.conv_out.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"numbers that are none.*fp32 or bf16"):
        draw(broken, PROMPTS, tmp_path)
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "must be a real training image"),
        ({"label": "lesion"}, "must be a real training image of another class"),
        ({"origin": "synthetic"}, "must be a real training image"),
    ],
)
def test_only_real_training_images_of_another_class_are_painted_into(backbone, normals, tmp_path, change, message):
    prompts = expand_over(("spots",), {}, normals, 3, 3)
    wrong = normals.with_values(lambda record: change if record.image_id == "n1" else {})
    with pytest.raises(ValueError, match=message):
        draw(backbone, prompts, tmp_path, replace(CONFIG, mode="paint"), backgrounds=wrong)
    with pytest.raises(ValueError, match="not among those given"):
        draw(backbone, prompts, tmp_path, replace(CONFIG, mode="paint"), backgrounds=normals.where(image_id="n0"))
    with pytest.raises(ValueError, match=r"backgrounds are given in the modes \['paint', 'img2img'\]"):
        draw(backbone, prompts, tmp_path, backgrounds=normals)


@pytest.mark.parametrize("n", [1, 7, 12, 24, 61])
def test_prompts_are_balanced_and_complete(n):
    attributes = {"tone": ["fair", "brown", "dark"], "part": ["arm", "leg"], "count": ["few", "many"]}
    prompts = expand(("{tone} {part} {count}", "{part} {tone} {count}"), attributes, n, 5)
    assert len(prompts) == n
    for name, values in attributes.items():
        counts = Counter(prompt.attributes[name] for prompt in prompts)
        assert max(counts.values()) - min(counts[value] for value in values) <= 1
    combinations = Counter(prompt.text for prompt in prompts)
    assert max(combinations.values()) == -(-n // 24)
    assert prompts == expand(("{tone} {part} {count}", "{part} {tone} {count}"), attributes, n, 5)
    assert prompts[: n // 2] == expand(("{tone} {part} {count}", "{part} {tone} {count}"), attributes, n // 2, 5)


def test_a_prompt_claims_only_what_it_says():
    prompts = expand(("{tone} skin", "skin"), {"tone": ["fair", "dark"]}, 4, 1, "grey")
    assert [sorted(prompt.attributes) for prompt in prompts if prompt.text == "skin"] == [[], []]
    assert {prompt.negative for prompt in prompts} == {"grey"}


def test_a_template_with_an_unknown_field_is_refused(normals):
    with pytest.raises(ValueError, match=r"needs \['site'\].*disease\.attributes"):
        expand(("spots on the {site}",), {"tone": ["fair"]}, 1, 0)
    with pytest.raises(ValueError, match=r"attributes\.tone must list at least one"):
        expand(("{tone}",), {"tone": []}, 1, 0)
    unknown = normals.with_values(lambda _: {"body_part": ""})
    with pytest.raises(ValueError, match=r"needs \['body_part'\] for background"):
        expand_over(("{body_part}",), {}, unknown, 1, 0)
    with pytest.raises(ValueError, match="needs real images to paint into"):
        expand_over(("spots",), {}, Manifest((), normals.root), 1, 0)


def test_every_background_is_used_before_one_is_used_twice(normals):
    prompts = expand_over(("spots",), {}, normals, 7, 3)
    counts = Counter(prompt.background for prompt in prompts)
    assert sorted(counts.values()) == [2, 2, 3]


def test_a_soft_disc_is_a_disc_of_the_asked_size():
    for seed in range(20):
        mask = soft_disc(64, seed, (0.2, 0.3))
        assert mask.min() == 0
        assert mask.max() == 1
        inside = mask.sum().item()
        assert inside <= np.pi * (0.3 * 64 + 1) ** 2
        assert inside >= np.pi * (0.2 * 64 - 1) ** 2 * 0.8  # a little may lie outside the picture


def test_a_contact_sheet_holds_the_images_in_reading_order(tmp_path):
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (10, 20, 30)])
    contact_sheet(images, 2, tmp_path / "sheet.png")
    sheet = read_rgb(tmp_path / "sheet.png")
    assert sheet[::4, ::4, 0].tolist() == [[10, 20], [30, 255]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mode", "inpaint"),
        ("scheduler", "pndm"),
        ("resolution", 100),
        ("shard", "4/4"),
        ("shard", "1"),
        ("shard", "-1/4"),
        ("mask_centre", (0.5, 1.2)),
        ("mask_centre", (-0.1, 0.5)),
        ("steps", 0),
        ("candidates", 0),
        ("guidance", 0.5),
        ("strength", 0.0),
        ("mask_radius", (0.4, 0.2)),
        ("mask_radius", (0.4,)),
    ],
)
def test_a_bad_config_names_its_key(key, value):
    with pytest.raises(ValueError, match=rf"generate\.{key} must be"):
        replace(CONFIG, **{key: value})


def test_a_painted_mark_stays_and_leaves_no_halo_while_the_slow_change_goes() -> None:
    side = 48
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    slow = 12 + 20 * x - 9 * y + 15 * x * y - 6 * y * y
    mark = -80.0 * (torch.hypot(x - 0.2, y + 0.1) < 0.3)
    mask = (torch.hypot(x, y) < 0.9).float()[None]
    change = (slow + mark)[None, ..., None].expand(1, side, side, 3)
    kept = local(change, mask)[0, ..., 0]
    assert kept.dtype == torch.float32
    assert ((kept - mark).abs() * mask[0]).max() < 1  # grey level; least squares would be 10 off


def test_images_pass_through_what_enlarges_them(backbone, tmp_path):
    plain = draw(backbone, PROMPTS, tmp_path / "plain")
    asked = []

    def enlarge(images, texts, seeds):
        asked.extend(zip(texts, seeds, strict=True))
        return images.repeat(4, 1).repeat(4, 2)

    large = draw(backbone, PROMPTS, tmp_path / "large", enlarge=enlarge)
    assert large.column("image_id") == plain.column("image_id")
    assert [text for text, _ in asked] == [prompt.text for prompt in PROMPTS]
    assert len({seed for _, seed in asked}) == len(PROMPTS)
    assert not {seed for _, seed in asked} & {int(seed) for seed in large.column("seed")}
    for small, big in zip(plain, large, strict=True):
        assert np.array_equal(read_rgb(large.file(big)), read_rgb(plain.file(small)).repeat(4, 0).repeat(4, 1))
