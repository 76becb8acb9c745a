"""Vision transformers of timm: the papers' two, and the tiny one that ships with this package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file, save
from torch import Tensor, nn

from synthvision.artifact import write_bytes

WEIGHTS_FILE = "model.safetensors"
PACKAGE = "package:"
PACKAGE_WEIGHTS = Path(__file__).parents[1] / "weights"
HUB = "timm"
PINNED = "hub:"
PINNED_FORM = re.compile(r"hub:[\w.-]+/[\w.-]+@[0-9a-f]{40}")


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and what it starts from.

    Args:
        architecture: a name that timm knows, e.g. `vit_base_patch16_224`.
        image_size: side of the square input in pixels.
        patch_size, embed_dim, depth, heads: of a ViT; None keeps the architecture's own.
        attention_dropout: share of attention weights dropped in training.
        drop_path: share of residual branches dropped in training, growing linearly with depth.
        hidden: neurons of an extra dense layer with ReLU before the output; None for none.
        weights: None (from scratch), "hub:<owner>/<name>@<commit>" (pretrained, from the Hub, pinned), "timm" (what
            timm has for the architecture, at the Hub's newest revision), "package:tiny_vit" (ships with the package),
            or a safetensors file with timm's parameter names. The output layer always starts anew.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule and value.
    """

    architecture: str
    image_size: int
    patch_size: int | None = None
    embed_dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    hidden: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "embed_dim", "depth", "heads", "hidden"):
            value = getattr(self, name)
            self._require(value is None or value > 0, name, "above 0")
        for name in ("attention_dropout", "drop_path"):
            self._require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        divides = self.patch_size is None or self.image_size % self.patch_size == 0
        self._require(divides, "image_size", f"a multiple of patch_size={self.patch_size}")
        split = self.embed_dim is None or self.heads is None or self.embed_dim % self.heads == 0
        self._require(split, "embed_dim", f"a multiple of heads={self.heads}")
        pinned = not (self.weights or "").startswith(PINNED) or PINNED_FORM.fullmatch(self.weights or "")
        self._require(pinned, "weights", "hub:<owner>/<name>@<commit of 40 hexadecimal digits>")

    def _require(self, holds: object, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"classifier.model.{name} must be {rule}; it is {getattr(self, name)!r}")


def build(config: ModelConfig, classes: int) -> nn.Module:
    """Return the network: float images (B, 3, S, S) as `as_input` gives them in, logits (B, classes) out.

    New weights come from torch's global generator; seed it to get the same ones again.

    Raises:
        ValueError: timm does not know the architecture or an option of it, or the weights do not fit.
        FileNotFoundError: the weights file is not there.
        ConnectionError: the Hub's weights could not be had.
    """
    model = _create(config, classes)
    if config.hidden is not None:
        output = model.get_submodule(_output_name(model))
        assert isinstance(output, nn.Linear)
        dense = nn.Linear(output.in_features, config.hidden)
        # The paper's table gives the layer's size, not its activation; without one it would be no layer at all.
        model.set_submodule(_output_name(model), nn.Sequential(dense, nn.ReLU(), nn.Linear(config.hidden, classes)))
    if config.weights not in (None, HUB):
        _load_body(model, _weights_file(config.weights))
    return model


def check_start(config: ModelConfig) -> None:
    """Refuse, before any image is read, an architecture or a weights file that `build` would not find.

    The Hub is not asked.

    Raises:
        ValueError: timm does not know the architecture.
        FileNotFoundError: the weights file is not there.
    """
    _check_architecture(config.architecture)
    if config.weights not in (None, HUB) and not config.weights.startswith(PINNED):
        _weights_file(config.weights)


def as_input(images: Tensor, network: nn.Module) -> Tensor:
    """Return float images (B, 3, S, S) in [0, 1] with the channels' mean and spread that a network was pretrained with.

    For the papers' ViTs both are 0.5, which gives [-1, 1]; most convolutional networks have ImageNet's.
    """
    made: dict[str, Any] = network.default_cfg  # type: ignore[assignment]  # a plain dict that timm attaches
    mean, spread = (images.new_tensor(made[name])[:, None, None] for name in ("mean", "std"))
    return (images - mean) / spread


def save_weights(model: nn.Module, folder: Path, half: bool) -> Path:
    """Write all of a network's weights to `folder/model.safetensors`, atomically, and return that file.

    Args:
        model: any network that `build` made; its output layer is written too and skipped when read as a start.
        folder: made if it is not there.
        half: store floats as fp16, for weights that ship; fp32 otherwise.
    """
    file = folder / WEIGHTS_FILE
    dtype = torch.float16 if half else torch.float32
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_bytes(file, save({k: (v.to(dtype) if v.is_floating_point() else v).contiguous() for k, v in state.items()}))
    return file


def load_weights(model: nn.Module, file: Path) -> None:
    """Read all of a network's weights, output layer included, as `save_weights` wrote them.

    Raises:
        ValueError: a parameter is missing, unknown, or of another shape.
    """
    _load(model, load_file(file), file, skip=None)


def _check_architecture(name: str) -> None:
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"classifier.model.architecture must be a model of timm; it is {name!r} (near: {near})")


def _create(config: ModelConfig, classes: int) -> nn.Module:
    name = config.architecture
    _check_architecture(name)
    pretrained = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.heads,
        "attn_drop_rate": config.attention_dropout or None,
        "drop_path_rate": config.drop_path or None,
        # Convolutional networks take any size and know no such option.
        "img_size": config.image_size if pretrained and pretrained.fixed_input_size else None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return timm.create_model(name, pretrained=config.weights == HUB, num_classes=classes, **given)
    except TypeError as error:
        raise ValueError(f"classifier.model: {name} does not take all of {sorted(given)}: {error}") from error
    except (OSError, RuntimeError) as error:
        if config.weights != HUB:
            raise
        raise ConnectionError(
            f"classifier.model.weights=timm: the weights of {name} could not be had from the Hub ({error}); download "
            "their model.safetensors where there is a network and set classifier.model.weights=/path/to/file"
        ) from error


def _output_name(model: nn.Module) -> str:
    name = model.default_cfg["classifier"]  # type: ignore[index]  # a plain dict that timm attaches
    assert isinstance(name, str)
    return name


def _weights_file(weights: str) -> Path:
    if weights.startswith(PINNED):
        return _from_hub(*weights.removeprefix(PINNED).split("@"))
    file = Path(weights)
    if weights.startswith(PACKAGE):
        file = PACKAGE_WEIGHTS / weights.removeprefix(PACKAGE) / WEIGHTS_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"classifier.model.weights={weights}: no file {file}; put a safetensors file with timm's names there, "
            "or set classifier.model.weights=null to train from scratch"
        )
    return file


def _from_hub(name: str, revision: str) -> Path:
    try:
        return Path(hf_hub_download(name, WEIGHTS_FILE, revision=revision))
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"classifier.model.weights: {name} at {revision} could not be had from the Hub ({error}); "
            f"download its {WEIGHTS_FILE} where there is a network and set classifier.model.weights=/path/to/file"
        ) from error


def _load_body(model: nn.Module, file: Path) -> None:
    head = _output_name(model) + "."
    _load(model, {k: v for k, v in load_file(file).items() if not k.startswith(head)}, file, skip=head)


def _load(model: nn.Module, state: dict[str, Tensor], file: Path, skip: str | None) -> None:
    expected = {k: v for k, v in model.state_dict().items() if skip is None or not k.startswith(skip)}
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if missing or unknown or shapes:
        raise ValueError(
            f"{file} does not fit this architecture: missing {missing[:3]}, unknown {unknown[:3]}, "
            f"of another shape {shapes[:3]}; check classifier.model's architecture, sizes and weights"
        )
    model.load_state_dict(state, strict=False)  # casts fp16 to fp32
