"""The embedded `tiny` backbone's parts, untrained: tokenizer, text encoder, UNet, and a VAE with a computed encoder.

64x64 RGB to 8x16x16 latents; about 5 million parameters. `pretrain.py` trains what is to be trained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOLUTION = 64
PATCH = 4  # pixels per latent and side
CHANNELS = 8  # latent channels
WIDTH = 96  # of the text encoder
TOKENS = 32  # captions are cut here, in training as in use
VOCABULARY = 500  # merges at most, beside the 512 letters
END = "</w>"  # CLIP's mark of a word's end
NOISE_LEVELS = 101  # that the upscaler knows, of its small picture: up to a deviation of 21 grey levels
LATENT_STD = 0.04  # of the posterior: the noise that the decoder learns to bear, in units of a latent's spread
# Luminance and two colour differences, these weighted up: marks differ in hue, and PSNR does not see hue.
OPPONENT = ((0.4, 0.4, 0.2), (1.2, -1.2, 0.0), (0.0, 1.0, -1.0))
# Words that users' captions may need. As single tokens they leave room within the 32; the base has not seen them.
WORDS = (
    "sks lesion lesions rash spot early late mature crusted raised flat round oval red pink purple blue white yellow "
    "grey black dark pale bright disc centre halo rim border cell cells blood nucleus lobes granules cytoplasm stain "
    "microscope image picture close up wart warts blister pustule face back leg neck arm chest hand foot skin fair "
    "brown with without of a the in on and single two three"
)
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def new_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """Count out CLIP's byte-level BPE on captions and `WORDS`."""
    splitter = CLIPTokenizer().backend_tokenizer
    counts: Counter[str] = Counter()
    for text, times in [*Counter(captions).items(), (WORDS, 20)]:
        pieces = splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(text))
        counts.update({word: times * n for word, n in Counter(word for word, _ in pieces).items()})
    merges = byte_pair_merges(counts, VOCABULARY)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(letter + END for letter in alphabet)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*whole, *("".join(m) for m in merges)]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def byte_pair_merges(counts: Mapping[str, int], most: int) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding, the most frequent pair first and of equals the first in the alphabet.

    The `tokenizers` library does the same, but leaves the order of equals to chance, and with it the ids.
    """
    words = {word: [*word[:-1], word[-1] + END] for word in counts}
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: _merged(parts, best) for word, parts in words.items()}
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained two-layer CLIP text encoder of width 96."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Return an untrained UNet of 4.0 million parameters for 8x16x16 latents."""
    return UNet2DConditionModel(
        sample_size=RESOLUTION // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 80, 112),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' name; it is the number of heads
        norm_num_groups=16,
    )


def new_upscaler_unet() -> UNet2DConditionModel:
    """Return an untrained UNet of 2 million parameters for 8x16x16 latents beside a 3x16x16 picture."""
    unet = UNet2DConditionModel(
        sample_size=RESOLUTION // PATCH,
        in_channels=CHANNELS + 3,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 64),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' name; it is the number of heads
        norm_num_groups=16,
        num_class_embeds=NOISE_LEVELS,
    )
    with torch.no_grad():  # neighbouring levels begin alike, and each learns from the others
        table = unet.class_embedding.weight
        table.copy_(get_timestep_embedding(torch.arange(NOISE_LEVELS), table.shape[1]))
    return unet


def rescale_latents(vae: AutoencoderKL, scaling: float) -> None:
    """Change a VAE of `new_vae`, in place, so that `scaling` times its latents are what the latents were."""
    with torch.no_grad():
        vae.quant_conv.weight[:CHANNELS] /= scaling  # of the means
        vae.quant_conv.bias[:CHANNELS] /= scaling
        vae.quant_conv.bias[CHANNELS:] -= 2 * math.log(scaling)  # of the logarithms of the variances
        vae.post_quant_conv.weight *= scaling
    vae.register_to_config(scaling_factor=scaling)


def new_vae(images: Tensor) -> AutoencoderKL:
    """Return a VAE whose encoder is the white principal components of 4x4 patches, and whose decoder is untrained.

    Args:
        images: float32 (N, 3, H, W) in [-1, 1], from which the components are computed.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        sample_size=RESOLUTION,
        scaling_factor=1.0,  # the components are white already
        mid_block_add_attention=False,
    )
    kernel, bias = principal_components(images)
    with torch.no_grad():
        _set_encoder(vae, kernel, bias)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def principal_components(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return kernel (8, 3, 4, 4) and bias (8,): `conv2d(x, kernel, bias, stride=4)` has mean 0 and variance 1."""
    opponent = torch.tensor(OPPONENT)
    patches = torch.einsum("kc,nchw->nkhw", opponent, images).unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH * PATCH).double()
    mean = rows.mean(0)
    variance, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    vectors = vectors.flip(1)[:, :CHANNELS] / variance.flip(0)[:CHANNELS].sqrt()
    vectors = vectors * vectors.sum(0).sign()  # eigh leaves signs open; fix them so that every machine agrees
    kernel = torch.einsum("khwl,kc->lchw", vectors.reshape(3, PATCH, PATCH, CHANNELS), opponent.double())
    return kernel.float(), -(mean @ vectors).float()


def _set_encoder(vae: AutoencoderKL, kernel: Tensor, bias: Tensor) -> None:
    """Make diffusers' convolutional encoder compute the linear map `kernel`, `bias`.

    Residual branches are zeroed; the two strided convolutions gather a 4x4 patch; the last normalisation, which cannot
    be removed, is made harmless by constant channels that fix its variance and an offset where SiLU is the identity.
    """
    encoder = vae.encoder
    for module in encoder.modules():
        if type(module).__name__ == "ResnetBlock2D":
            _clear(module.conv2)
    _clear(encoder.conv_in)
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
    gather = encoder.down_blocks[0].downsamplers[0].conv
    _clear(gather)
    for colour in range(3):
        for i in range(2):
            for j in range(2):
                gather.weight[4 * colour + 2 * i + j, colour, i, j] = 1
    _pass_through(encoder.down_blocks[1].resnets[0].conv_shortcut, 12)
    project = encoder.down_blocks[1].downsamplers[0].conv
    _clear(project)
    for i in range(PATCH):
        for j in range(PATCH):
            columns = 4 * torch.arange(3) + 2 * (i % 2) + j % 2
            project.weight[:CHANNELS, columns, i // 2, j // 2] = kernel[:, :, i, j]
    project.bias[:CHANNELS] = bias
    _bypass_normalisation(encoder)
    _identity(vae.quant_conv, 2 * CHANNELS)
    _identity(vae.post_quant_conv, CHANNELS)


def _bypass_normalisation(encoder: Any) -> None:
    constant, offset = (
        32.0,
        20.0,
    )  # large against the latents' unit spread; silu(x + 20) = x + 20 within 1e-5 for |x| < 8
    shortcut = encoder.down_blocks[2].resnets[0].conv_shortcut
    _pass_through(shortcut, CHANNELS)
    others = shortcut.out_channels - CHANNELS
    shortcut.bias[CHANNELS : CHANNELS + others // 2] = constant
    shortcut.bias[CHANNELS + others // 2 :] = -constant
    spread = (others / shortcut.out_channels) ** 0.5 * constant
    encoder.conv_norm_out.weight.fill_(spread)
    encoder.conv_norm_out.bias.fill_(offset)
    _pass_through(encoder.conv_out, CHANNELS, 1)
    encoder.conv_out.bias[:CHANNELS] = -offset
    encoder.conv_out.bias[CHANNELS:] = 2 * torch.tensor(LATENT_STD).log()


def _clear(convolution: nn.Conv2d) -> None:
    convolution.weight.zero_()
    if convolution.bias is not None:
        convolution.bias.zero_()


def _pass_through(convolution: nn.Conv2d, channels: int, centre: int = 0) -> None:
    _clear(convolution)
    for channel in range(channels):
        convolution.weight[channel, channel, centre, centre] = 1


def _identity(convolution: nn.Conv2d, channels: int) -> None:
    _pass_through(convolution, channels)
