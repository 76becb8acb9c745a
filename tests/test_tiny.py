"""The tiny backbone's parts: the computed encoder is the linear map it claims to be, the tokenizer CLIP's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from transformers import CLIPTokenizer

from synthvision.data.phantom import draw_pool
from synthvision.diffusion import tiny
from synthvision.diffusion.sampler import to_tensor


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_tensor(draw_pool(120, seed=0).images)


def test_encoder_computes_the_principal_components(images: Tensor) -> None:
    vae = tiny.new_vae(images)
    kernel, bias = tiny.principal_components(images)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    linear = conv2d(images, kernel, bias, stride=tiny.PATCH)
    assert posterior.mean.shape == (120, tiny.CHANNELS, 16, 16)
    assert (posterior.mean - linear).abs().mean() < 0.05  # the forced normalisation shifts a picture a little
    for channel in range(tiny.CHANNELS):
        assert (
            torch.corrcoef(torch.stack([posterior.mean[:, channel].flatten(), linear[:, channel].flatten()]))[0, 1]
            > 0.999
        )
    assert torch.allclose(posterior.std, torch.tensor(tiny.LATENT_STD), rtol=1e-4)


def test_components_are_white_and_uncorrelated(images: Tensor) -> None:
    kernel, bias = tiny.principal_components(images)
    rows = conv2d(images, kernel, bias, stride=tiny.PATCH).transpose(0, 1).flatten(1).double()
    assert torch.allclose(rows.mean(1), torch.zeros(tiny.CHANNELS, dtype=torch.double), atol=1e-4)
    assert torch.allclose(rows @ rows.T / rows.shape[1], torch.eye(tiny.CHANNELS, dtype=torch.double), atol=1e-3)


def test_components_equal_numpys(images: Tensor) -> None:
    """The leading subspace is the one that an SVD of the centred patches gives."""
    pixels = np.einsum("kc,nchw->nkhw", np.array(tiny.OPPONENT), images.double().numpy())
    patches = pixels.reshape(120, 3, 16, 4, 16, 4).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 48)
    _, _, directions = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    kernel, _ = tiny.principal_components(images)
    rgb = np.einsum("lkhw,kc->lchw", directions[:8].reshape(8, 3, 4, 4), np.array(tiny.OPPONENT)).reshape(8, -1)
    ours = kernel.double().numpy().reshape(8, -1)
    cosine = np.abs((ours * rgb).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(rgb, axis=1))
    assert cosine.min() > 0.999


def test_tokenizer_survives_saving_and_knows_its_words(tmp_path: Path) -> None:
    made = tiny.new_tokenizer(["photo of dark skin on the arm, many small clustered moles"] * 30)
    made.save_pretrained(tmp_path)
    read = CLIPTokenizer.from_pretrained(tmp_path)
    text = "photo of dark skin on the arm, many Zébra sks moles 42!"
    assert read(text).input_ids == made(text).input_ids
    assert read.model_max_length == tiny.TOKENS
    assert read.decode(read(text).input_ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")
    assert len(read("sks").input_ids) == 3  # start, one token, end


def test_merges_join_the_most_frequent_pair_first_and_equals_in_order() -> None:
    # worked by hand: "lo" stands in 5 + 2 words, then "low</w>" in 5, "lowe" in 2, "lower</w>" in 2
    merges = tiny.byte_pair_merges({"low": 5, "lower": 2}, 10)
    assert merges == [("l", "o"), ("lo", "w</w>"), ("e", "r</w>"), ("lo", "w"), ("low", "er</w>")]


def test_sizes_are_as_documented() -> None:
    tokenizer = tiny.new_tokenizer(["photo of skin"])
    parts = (tiny.new_unet(), tiny.new_text_encoder(tokenizer))
    assert sum(p.numel() for part in parts for p in part.parameters()) < 5e6
