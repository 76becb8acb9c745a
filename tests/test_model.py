"""The papers' networks layer by layer, the tiny one, and where weights come from."""

from functools import partial

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save_file

from synthvision.classification.model import ModelConfig, as_input, build, load_weights, save_weights

TINY = {
    "architecture": "vit_tiny_patch16_224",
    "image_size": 64,
    "patch_size": 8,
    "embed_dim": 128,
    "depth": 6,
    "heads": 4,
}
SMALL = {
    "architecture": "vit_tiny_patch16_224",
    "image_size": 16,
    "patch_size": 8,
    "embed_dim": 8,
    "depth": 2,
    "heads": 2,
}


def count(module) -> int:
    tensors = [module] if isinstance(module, torch.nn.Parameter) else module.parameters()
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize(("classes", "output"), [(2, 258), (3, 387)])
def test_the_mpox_network_has_the_layers_of_the_papers_table(classes, output):
    with torch.device("meta"):
        model = build(ModelConfig("vit_base_patch16_384", 384, attention_dropout=0.1, hidden=128), classes)
    assert count(model.patch_embed) == 590_592
    assert count(model.cls_token) == 768
    assert count(model.pos_embed) == 443_136
    assert [count(block) for block in model.blocks] == [7_087_872] * 12
    assert count(model.norm) == 1_536
    assert [count(layer) for layer in model.head] == [98_432, 0, output]
    assert count(model) - count(model.head) == 86_090_496  # the table's total leaves its two dense layers out
    assert {block.attn.attn_drop.p for block in model.blocks} == {0.1}


def test_the_hpv_network_is_vit_base_with_attention_dropout():
    with torch.device("meta"):
        model = build(ModelConfig("vit_base_patch16_224", 224, attention_dropout=0.1), 2)
    assert count(model.pos_embed) == 197 * 768
    assert count(model.head) == 2 * 768 + 2
    assert {block.attn.attn_drop.p for block in model.blocks} == {0.1}


def test_the_tiny_network_is_small_enough_to_ship(tmp_path):
    model = build(ModelConfig(**TINY), 2)
    assert model(torch.zeros(3, 3, 64, 64)).shape == (3, 2)
    assert save_weights(model, tmp_path, half=True).stat().st_size < 4e6


def test_a_convolutional_network_can_have_the_dense_layer_too():
    model = build(ModelConfig("resnet10t", 64, hidden=5, drop_path=0.1), 3).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert model.fc[0].out_features == 5


@pytest.mark.parametrize("hidden", [None, 4])
def test_a_start_gives_all_but_the_output_layer(tmp_path, hidden):
    torch.manual_seed(0)
    start = build(ModelConfig(**SMALL), 5)
    file = save_weights(start, tmp_path, half=False)
    model = build(ModelConfig(**SMALL, hidden=hidden, weights=str(file)), 2)
    for name, value in start.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_a_start_may_lack_an_output_layer_and_be_in_half_precision(tmp_path):
    start = build(ModelConfig(**SMALL), 2)
    state = load_file(save_weights(start, tmp_path, half=True))
    assert {value.dtype for value in state.values()} == {torch.float16}
    save_file({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "body.safetensors")
    model = build(ModelConfig(**SMALL, weights=str(tmp_path / "body.safetensors")), 2)
    assert model.cls_token.dtype == torch.float32
    torch.testing.assert_close(model.cls_token, start.cls_token, rtol=1e-3, atol=1e-6)


def test_all_weights_survive_saving_and_bytes_are_the_same_each_time(tmp_path):
    first, second = build(ModelConfig(**SMALL), 2), build(ModelConfig(**SMALL), 2)
    load_weights(second, save_weights(first, tmp_path / "a", half=False))
    save_weights(second, tmp_path / "b", half=False)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"), [({"embed_dim": 16}, "another shape"), ({"depth": 3}, "missing"), ({"depth": 1}, "unknown")]
)
def test_weights_of_another_network_are_refused(tmp_path, change, message):
    file = save_weights(build(ModelConfig(**SMALL), 2), tmp_path, half=False)
    with pytest.raises(ValueError, match=rf"does not fit.*{message} \['"):
        build(ModelConfig(**(SMALL | change), weights=str(file)), 2)


@pytest.mark.parametrize("weights", ["nowhere/model.safetensors", "package:no_such_network"])
def test_a_missing_file_is_named_with_its_remedy(weights):
    with pytest.raises(FileNotFoundError, match=r"weights=.*model\.safetensors.*null"):
        build(ModelConfig(**SMALL, weights=weights), 2)


def test_without_a_network_the_hub_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"set classifier\.model\.weights=/path/to/file"):
        build(ModelConfig("resnet10t", 64, weights="timm"), 2)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"near: .*vit_base_patch16_224"):
        build(ModelConfig("vit_base_patch16_223", 224), 2)
    with pytest.raises(ValueError, match=r"resnet10t does not take all of .*patch_size"):
        build(ModelConfig("resnet10t", 64, patch_size=8), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size must be above 0; it is 0"),
        ({"image_size": 60}, "multiple of patch_size=8; it is 60"),
        ({"heads": 3}, "embed_dim must be a multiple of heads=3"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\); it is 1.0"),
        ({"drop_path": -0.1}, "drop_path"),
        ({"hidden": 0}, "hidden"),
    ],
)
def test_broken_rules_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**(TINY | change))


def test_a_vits_input_runs_from_minus_one_to_one_and_others_have_what_they_were_pretrained_with():
    grey = torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)
    assert as_input(grey, build(ModelConfig(**SMALL), 2))[0, 1, 0].tolist() == [-1, 0, 1]
    other = as_input(grey, build(ModelConfig("resnet10t", 64), 2))[0, :, 0, 0]
    torch.testing.assert_close(other, -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225]))


def test_weights_of_the_hub_are_pinned_and_their_error_says_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"weights must be hub:.*commit"):
        ModelConfig(**SMALL, weights="hub:timm/some_model@main")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"some_model at a{40}.*set classifier\.model\.weights=/path/to/file"):
        build(ModelConfig(**SMALL, weights="hub:timm/some_model@" + "a" * 40), 2)


def test_pinned_weights_in_the_cache_are_read_from_it(monkeypatch, tmp_path):
    revision, start = "b" * 40, build(ModelConfig(**SMALL), 5)
    save_weights(start, tmp_path / "models--timm--mine" / "snapshots" / revision, half=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "synthvision.classification.model.hf_hub_download", partial(hf_hub_download, cache_dir=tmp_path)
    )
    model = build(ModelConfig(**SMALL, weights=f"hub:timm/mine@{revision}"), 2)
    torch.testing.assert_close(model.cls_token, start.cls_token, rtol=0, atol=0)
