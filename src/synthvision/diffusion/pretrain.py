"""Train the embedded `tiny` backbone on phantoms without the lesion class: DreamBooth shall have something to teach it.

Four parts in turn: the tokenizer, the VAE (encoder computed, decoder trained), the text encoder (it learns to tell what
a caption says), the UNet with its text encoder. Every random draw depends on (seed, part, step): an interrupted
training resumes with the same result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import Logger
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer

from synthvision.data.phantom import draw_pool
from synthvision.data.sheets import contact_sheet
from synthvision.diffusion.backbone import BackboneConfig, load
from synthvision.diffusion.sampler import denoise, draw_noise, encode_negatives, encode_prompts, to_pixels, to_tensor
from synthvision.diffusion.tiny import (
    OPPONENT,
    PATCH,
    RESOLUTION,
    SCHEDULER,
    TOKENS,
    WORDS,
    new_text_encoder,
    new_tokenizer,
    new_unet,
    new_vae,
)
from synthvision.training import fit_steps

EMPTY_CAPTIONS = 0.1  # share trained without a caption, for classifier-free guidance
GENERIC_CAPTIONS = 0.1  # share trained with a caption that calls every mark by the class noun
# Share trained with meaningless words among the others: the base shall pass over a word that it does not know, such as
# DreamBooth's identifier, as large models do, and not paint something odd for it.
NOISE_WORDS = 0.3
TEXT_BATCH = 64
TEXT_SHARE = 0.2  # of the UNet's learning rate, once the text encoder trains with it
EMA_DECAY = 0.999
MARK_WEIGHT = 4.0  # marks cover few latents; unweighted, the loss is that of the skin's texture
SAMPLES, GUIDANCE = 6, 3.0  # of the preview
PREVIEW = (
    "photo of fair skin on the back, many small scattered moles",
    "photo of brown skin on the arm, few large scattered rings",
    "photo of dark skin on the face, many clustered pale patches",
    "photo of fair skin on the leg, few scattered scratches",
    "photo of brown skin on the neck, many scattered papules",
    "photo of dark skin on the arm, no marks",
    "photo of fair skin on the face, many scattered freckles",
    "photo of dark skin on the back, few large clustered redness",
    "photo of brown skin on the back, many clustered spots",
    "photo of fair skin on the arm, few scattered moles and few large rings on top",
)


@dataclass(frozen=True)
class PretrainConfig:
    """How the tiny backbone is trained.

    Raises:
        ValueError: a number is not positive.
    """

    images: int  # phantoms in the pool
    decoder_steps: int
    decoder_lr: float
    text_steps: int
    text_lr: float
    unet_steps: int
    unet_lr: float
    batch_size: int  # of the UNet's training
    checkpoint_every: int  # steps

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"pretrain.{name} must be positive; it is {value}")


def pretrain(
    config: PretrainConfig, out: Path, work: Path, seed: int, logger: Logger | None = None
) -> dict[str, float]:
    """Train the backbone and save it as a diffusers pipeline folder in fp16 under `out`.

    Returns:
        Reconstruction PSNR in dB of phantoms outside the pool, and the last mean losses.
    """
    pool = draw_pool(config.images, seed)
    images = to_tensor(pool.images).contiguous()
    tokenizer = new_tokenizer([*pool.captions, *pool.generic])
    torch.manual_seed(seed)  # initial weights
    vae, text, unet = new_vae(images[:4000]), new_text_encoder(tokenizer), new_unet()
    latents = encode(vae, images)
    decoder = DecoderTraining(vae, images, latents, config, seed)
    every = config.checkpoint_every
    fit_steps(decoder, config.decoder_steps, work / "decoder", every, logger, gradient_clip=1.0)
    captions, generic = tokenize(tokenizer, pool.captions), tokenize(tokenizer, pool.generic)
    noise_words = meaningless(tokenizer, torch.cat([captions, generic]))
    reader = TextTraining(text, captions, torch.from_numpy(pool.facts).float(), noise_words, config, seed)
    fit_steps(reader, config.text_steps, work / "text", every, logger, gradient_clip=1.0)
    unet.to(memory_format=torch.channels_last)  # a tenth faster on a CPU
    marked = torch.from_numpy(pool.where.any(1)).float()  # (N, 16, 16): latents that show a mark
    ids = torch.stack([captions, generic], 1)  # (N, 2, tokens)
    empty = tokenize(tokenizer, [""])[0]
    base = BaseTraining(unet, text, latents, ids, marked, empty, noise_words, config, seed)
    fit_steps(base, config.unet_steps, work / "base", every, logger, gradient_clip=1.0)
    averaged: Any = base.average.module
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=averaged["text"],
        tokenizer=tokenizer,
        unet=averaged["unet"],
        scheduler=DPMSolverMultistepScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    held_out = to_tensor(draw_pool(200, seed + 1).images)
    parts = (("decoder", decoder), ("text", reader), ("base", base))
    metrics = {"psnr": psnr(vae, held_out)} | {f"{name}/loss": float(part.recent) for name, part in parts}
    pipeline.to(dtype=torch.float16).save_pretrained(out)
    write_samples(out, seed)
    return metrics


def write_samples(folder: Path, seed: int) -> None:
    """Write `samples.png`: six samples for each line of PREVIEW, drawn with the weights as they ship."""
    backbone = load(BackboneConfig("tiny", str(folder), RESOLUTION, "sd"))
    prompts = [prompt for prompt in PREVIEW for _ in range(SAMPLES)]
    noise = draw_noise([stream(seed, 3, index) for index in range(len(prompts))], backbone.latent_size)
    positive, negative = encode_prompts(backbone, prompts), encode_negatives(backbone, [""])
    with torch.no_grad():
        latents = denoise(backbone, noise, positive.of(prompts), negative.of([""] * len(prompts)), 20, GUIDANCE)
        images = to_pixels(backbone.decode(latents))
    contact_sheet(images, SAMPLES, folder / "samples.png")


class DecoderTraining(LightningModule):
    """Trains the decoder to invert the computed encoder, on crops of 32 pixels."""

    CROP = 8  # latents

    def __init__(self, vae: AutoencoderKL, images: Tensor, latents: Tensor, config: PretrainConfig, seed: int) -> None:
        super().__init__()
        self.vae, self.config, self.seed = vae, config, seed
        self.register_buffer("recent", torch.tensor(math.nan))
        self.recent: Tensor
        self.images, self.latents = [images], [latents]  # in lists: not part of the module's state

    def training_step(self, _: Any) -> Tensor:
        draw = torch.Generator().manual_seed(stream(self.seed, 1, self.global_step))
        chosen = torch.randint(len(self.images[0]), (16,), generator=draw)
        top, left = torch.randint(self.latents[0].shape[-1] - self.CROP + 1, (2,), generator=draw).tolist()
        z = self.latents[0][chosen, :, top : top + self.CROP, left : left + self.CROP]
        z = z + 0.04 * torch.randn(z.shape, generator=draw)
        side = slice(PATCH * top, PATCH * (top + self.CROP)), slice(PATCH * left, PATCH * (left + self.CROP))
        loss = reconstruction_loss(self.vae.decode(z).sample, self.images[0][chosen][:, :, *side])
        self.recent = running(self.recent, loss)
        self.log("decoder/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        trained = [*self.vae.decoder.parameters(), *self.vae.post_quant_conv.parameters()]
        return with_cosine([(trained, self.config.decoder_lr)], self.config.decoder_steps)


class TextTraining(LightningModule):
    """Trains the text encoder to tell what a caption says, at its last token; CLIP's learnt that from pictures."""

    def __init__(
        self,
        text: CLIPTextModel,
        token_ids: Tensor,
        facts: Tensor,
        noise_words: Tensor,
        config: PretrainConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.text, self.head = text, torch.nn.Linear(text.config.hidden_size, facts.shape[1])
        self.config, self.seed = config, seed
        self.register_buffer("recent", torch.tensor(math.nan))
        self.recent: Tensor
        # In lists: not part of the module's state.
        self.token_ids, self.facts, self.noise_words = [token_ids], [facts], [noise_words]

    def training_step(self, _: Any) -> Tensor:
        draw = torch.Generator().manual_seed(stream(self.seed, 4, self.global_step))
        chosen = torch.randint(len(self.facts[0]), (TEXT_BATCH,), generator=draw)
        ids = with_noise_words(self.token_ids[0][chosen], self.noise_words[0], draw)
        said = self.head(self.text(ids).pooler_output)
        loss = binary_cross_entropy_with_logits(said, self.facts[0][chosen])
        self.recent = running(self.recent, loss)
        self.log("text/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return with_cosine([(list(self.parameters()), self.config.text_lr)], self.config.text_steps)


class BaseTraining(LightningModule):
    """Trains UNet and text encoder together with v-prediction; the exponential average is what is kept."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text: CLIPTextModel,
        latents: Tensor,
        token_ids: Tensor,
        marked: Tensor,
        empty: Tensor,
        noise_words: Tensor,
        config: PretrainConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.model = torch.nn.ModuleDict({"unet": unet, "text": text})
        average = get_ema_multi_avg_fn(EMA_DECAY)  # type: ignore[no-untyped-call]  # torch has no annotation there
        self.average = AveragedModel(self.model, multi_avg_fn=average)
        self.config, self.seed, self.empty = config, seed, empty
        self.register_buffer("recent", torch.tensor(math.nan))
        self.recent: Tensor
        # In lists: not part of the module's state.
        self.latents, self.token_ids, self.marked, self.noise_words = [latents], [token_ids], [marked], [noise_words]
        kept = DDPMScheduler(**SCHEDULER).alphas_cumprod
        self.alpha, self.sigma = kept.sqrt(), (1 - kept).sqrt()  # (1000,), fp32

    def training_step(self, _: Any) -> Tensor:
        draw = torch.Generator().manual_seed(stream(self.seed, 2, self.global_step))
        size = self.config.batch_size
        chosen = torch.randint(len(self.latents[0]), (size,), generator=draw)
        generic = (torch.rand(size, generator=draw) < GENERIC_CAPTIONS).long()
        ids = with_noise_words(self.token_ids[0][chosen, generic], self.noise_words[0], draw)
        ids[torch.rand(size, generator=draw) < EMPTY_CAPTIONS] = self.empty
        # Stratified over the batch: the same mean as independent draws, with less variance.
        t = ((torch.arange(size) + torch.rand(size, generator=draw)) / size * len(self.alpha)).long()
        x_0 = self.latents[0][chosen]
        noise = torch.randn(x_0.shape, generator=draw)
        alpha, sigma = (values[t].view(-1, 1, 1, 1) for values in (self.alpha, self.sigma))
        context = self.model["text"](ids)[0]
        v = self.model["unet"](alpha * x_0 + sigma * noise, t, context).sample
        error = (v - (alpha * noise - sigma * x_0)).square().mean(1)  # (B, 16, 16)
        weight = 1 + MARK_WEIGHT * self.marked[0][chosen]
        loss: Tensor = (weight * error).sum() / weight.sum()
        self.recent = running(self.recent, loss)
        self.log("base/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *given: Any, **named: Any) -> None:
        # Here and not when the batch ends: the checkpoint may be written before the module hears of that.
        super().optimizer_step(*given, **named)
        self.average.update_parameters(self.model)

    def configure_optimizers(self) -> Any:
        lr, parts = self.config.unet_lr, self.model
        trained = [(list(parts["unet"].parameters()), lr), (list(parts["text"].parameters()), TEXT_SHARE * lr)]
        return with_cosine(trained, self.config.unet_steps)


def running(before: Tensor, loss: Tensor) -> Tensor:
    """Return the running mean of a loss; NaN stands for none so far."""
    return torch.where(before.isnan(), loss.detach(), 0.99 * before + 0.01 * loss.detach())


def with_cosine(groups: Sequence[tuple[list[torch.nn.Parameter], float]], steps: int) -> dict[str, Any]:
    """Return AdamW for (parameters, learning rate) groups with 100 steps of warm-up and a cosine decay to 3%."""
    given = [{"params": parameters, "lr": lr} for parameters, lr in groups]
    optimizer = torch.optim.AdamW(given, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 100) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def reconstruction_loss(decoded: Tensor, image: Tensor) -> Tensor:
    """Squared and absolute error in opponent colours and absolute error of the gradients; (N, 3, H, W) in [-1, 1]."""
    error = decoded - image
    opponent = torch.einsum("kc,nchw->nkhw", error.new_tensor(OPPONENT), error)
    gradient = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return 10 * opponent.square().mean() + 0.5 * opponent.abs().mean() + 0.5 * gradient


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Return token ids, int64 (N, 32)."""
    padded = tokenizer(list(captions), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    ids: Tensor = padded.input_ids
    return ids


def meaningless(tokenizer: CLIPTokenizer, captions: Tensor) -> Tensor:
    """Return the ids that neither the captions, int64 (N, 32), nor the words kept for users contain: int64 (K,)."""
    used = {*captions.flatten().tolist(), *tokenizer(WORDS).input_ids, *tokenizer.all_special_ids}
    return torch.tensor([index for index in range(len(tokenizer)) if index not in used])


def with_noise_words(ids: Tensor, words: Tensor, draw: torch.Generator) -> Tensor:
    """Return captions' ids, int64 (B, 32), a share NOISE_WORDS of them with one of the words somewhere in the text."""
    rows = []
    for row in ids:
        length = int((row != row[-1]).sum())  # the padding is the end token
        if length < len(row) - 1 and torch.rand((), generator=draw) < NOISE_WORDS:
            place = int(torch.randint(1, length + 1, (), generator=draw))
            word = words[torch.randint(len(words), (1,), generator=draw)]
            row = torch.cat([row[:place], word, row[place:-1]])
        rows.append(row)
    return torch.stack(rows)


def stream(*key: int) -> int:
    """Return a seed for torch made from a key of integers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return latent means, float32 (N, 8, H/4, W/4)."""
    return torch.cat([vae.encode(batch).latent_dist.mean for batch in torch.split(images, 250)])


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of reconstructions in dB."""
    decoded = vae.decode(encode(vae, images)).sample.clamp(-1, 1)
    return float((-10 * ((decoded - images) / 2).square().mean((1, 2, 3)).log10()).mean())
