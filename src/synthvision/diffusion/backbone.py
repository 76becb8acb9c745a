"""One face for every diffusion model: the differences between tiny, SD1.5, SD2 and SDXL live here and nowhere else."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES = ("sd", "sdxl")
DPM = "dpmsolver++"  # 2M, with Karras spacing where the schedule allows it
SCHEDULERS = (DPM, "unipc", "euler", "ddim")
PACKAGE = "package:"
HUB_ID = r"[\w.-]+/[\w.-]+"
PACKAGE_WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class BackboneConfig:
    """Which diffusion model, and where it lies.

    Raises:
        ValueError: a value breaks its rule; the message names key, rule, value and remedy.
    """

    name: str
    source: str  # a diffusers folder, a Hub id, or "package:NAME" for weights shipped with synthvision
    resolution: int  # side of the square images it is trained on and paints, in pixels
    family: str  # one of FAMILIES
    revision: str | None = None  # of a Hub id: pin a commit
    key: ClassVar[str] = "backbone"  # of this group in the configuration

    def __post_init__(self) -> None:
        if not self.name or not self.source:
            raise ValueError("backbone.name and backbone.source must not be empty")
        if self.family not in FAMILIES:
            raise ValueError(f"backbone.family must be one of {FAMILIES}; it is {self.family!r}")
        if self.resolution < 8:
            raise ValueError(f"backbone.resolution must be at least 8 pixels; it is {self.resolution}")


@dataclass(frozen=True)
class Conditioning:
    """What the UNet is told of the prompts: one row per prompt."""

    embeds: Tensor  # float (B, L, D)
    pooled: Tensor | None = None  # SDXL: float (B, P)

    def rows(self, index: Tensor | slice) -> Conditioning:
        """Return the rows that an index, mask or slice selects."""
        return Conditioning(self.embeds[index], None if self.pooled is None else self.pooled[index])

    def join(self, other: Conditioning) -> Conditioning:
        """Return the rows of both, these first."""
        if self.pooled is None or other.pooled is None:
            return Conditioning(torch.cat([self.embeds, other.embeds]))
        return Conditioning(torch.cat([self.embeds, other.embeds]), torch.cat([self.pooled, other.pooled]))


@dataclass(frozen=True)
class Latents:
    """The encoder's Gaussian for each image, in the UNet's scale; float32 (B, C, h, w) each."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Parts(ABC):
    """What all latent diffusion models are made of, and how they are kept."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler_config: dict[str, Any]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All networks."""
        return self.vae, self.unet

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def device(self) -> torch.device:
        """Where the UNet lies."""
        return torch.device(self.unet.device)

    def to(self, device: torch.device | str) -> Self:
        """Move all parts to a device, in place, and return self."""
        for module in self.modules:
            module.to(device)
        return self

    def alphas_cumprod(self) -> Tensor:
        """Return the cumulative alphas of the latents' noise: float32 (timesteps,), on the CPU."""
        return alphas_of(self.scheduler_config)

    @abstractmethod
    def pipeline(self, scheduler: Any = None) -> DiffusionPipeline:
        """Return a diffusers pipeline that shares these parts; without a scheduler, it gets `sampler()`."""

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Order weights in memory, in place: convolutions run faster channels-last, on the CPU and on the GPU."""
        self.unet.to(memory_format=memory_format)
        self.vae.to(memory_format=memory_format)

    def save(self, folder: Path) -> None:
        """Write a diffusers folder of safetensors; whole or not at all. An older folder of that name is replaced."""
        try:
            self.lay_out(torch.contiguous_format)  # safetensors stores no other
            replace_folder(folder, lambda partial: self.pipeline().save_pretrained(partial, safe_serialization=True))
        finally:
            self.lay_out(torch.channels_last)


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's weights, which its input must have."""
    return next(module.parameters()).dtype


def alphas_of(schedule: Mapping[str, Any]) -> Tensor:
    """Return the cumulative alphas of a noise schedule: float32 (timesteps,), on the CPU."""
    alphas: Tensor = DDPMScheduler.from_config(dict(schedule)).alphas_cumprod
    return alphas


@dataclass(frozen=True)
class Backbone(Parts):
    """The parts of a latent diffusion model. The dataclass is frozen; its modules are trained in place."""

    config: BackboneConfig
    text_encoders: tuple[nn.Module, ...]  # one; SDXL: two
    tokenizers: tuple[CLIPTokenizer, ...]

    def __post_init__(self) -> None:
        self.vae.requires_grad_(False).eval()
        self.lay_out(torch.channels_last)
        self.check_side(self.config.resolution, "backbone.resolution")

    def check_side(self, side: int, key: str) -> None:
        """Refuse a side of images, in pixels, that autoencoder and UNet cannot halve as often as they do.

        Raises:
            ValueError: the message names `key`.
        """
        multiple = self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        if side % multiple:
            raise ValueError(f"{key} must be a multiple of {multiple} for {self.config.source}; it is {side}")

    @property
    def vae_factor(self) -> int:
        """How many pixels of a side one latent cell covers."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of one image's latents at the configured resolution."""
        side = self.config.resolution // self.vae_factor
        return int(self.vae.config.latent_channels), side, side

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All networks."""
        return self.vae, self.unet, *self.text_encoders

    def sampler(self, kind: str = DPM) -> Any:
        """Return a fresh scheduler for this model's noise schedule: one of SCHEDULERS."""
        # Karras spacing starts from the schedule's last sigma, which is infinite at zero terminal SNR.
        karras = not self.scheduler_config.get("rescale_betas_zero_snr", False)
        if kind == "ddim":  # its default clips what only pixels, and no latents, keep to
            return DDIMScheduler.from_config(self.scheduler_config, clip_sample=False)
        if kind == "euler":
            return EulerDiscreteScheduler.from_config(self.scheduler_config, use_karras_sigmas=karras)
        if kind == "unipc":
            return UniPCMultistepScheduler.from_config(self.scheduler_config, use_karras_sigmas=karras)
        return DPMSolverMultistepScheduler.from_config(
            self.scheduler_config, algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=karras
        )

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Return each tokenizer's ids, int64 (B, L), padded to its full length; warn with the text that is cut off."""
        return tuple(tokens_of(tokenizer, list(prompts)) for tokenizer in self.tokenizers)

    def encode_tokens(self, tokens: Sequence[Tensor]) -> Conditioning:
        """Run the text encoders on the ids of `tokenize`; gradients flow where the encoders' parameters want them."""
        if self.config.family == "sd":
            return Conditioning(self.text_encoders[0](tokens[0].to(self.device))[0])
        states = [
            encoder(ids.to(self.device), output_hidden_states=True)
            for encoder, ids in zip(self.text_encoders, tokens, strict=True)
        ]
        embeds = torch.cat([state.hidden_states[-2] for state in states], dim=-1)  # (B, L, D1 + D2)
        return Conditioning(embeds, states[-1].text_embeds)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of prompts, one row each, without gradients."""
        return self.encode_tokens(self.tokenize(prompts))

    def encode_negative(self, prompts: Sequence[str]) -> Conditioning:
        """Return the conditioning of negative prompts. SDXL: an empty one is all zeros, as it was trained."""
        conditioning = self.encode_text(prompts)
        if conditioning.pooled is None:
            return conditioning
        said = [float(bool(prompt)) for prompt in prompts]
        keep = torch.tensor(said, device=self.device, dtype=conditioning.embeds.dtype)  # (B,)
        return Conditioning(conditioning.embeds * keep[:, None, None], conditioning.pooled * keep[:, None])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Latents:
        """Return the latents' mean and deviation for float images (B, 3, H, W) in [-1, 1]."""
        distribution = self.vae.encode(images.to(self.device, dtype_of(self.vae))).latent_dist
        scale = self.vae.config.scaling_factor
        return Latents(distribution.mean.float() * scale, distribution.std.float() * scale)  # (B, C, H/f, W/f)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return float images (B, 3, H, W) in [-1, 1] from latents (B, C, h, w)."""
        scaled = (latents / self.vae.config.scaling_factor).to(dtype_of(self.vae))
        decoded: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return decoded.float().clamp(-1, 1)

    def predict(
        self, noisy: Tensor, timestep: Tensor, conditioning: Conditioning, time_ids: Tensor | None = None
    ) -> Tensor:
        """Return what the UNet predicts for noisy latents (B, C, h, w) at timesteps (B,) or (), same shape.

        Args:
            time_ids: SDXL's float32 (B, 6): original (h, w), crop (top, left), target (h, w). None: the whole image at
                the configured resolution.
        """
        added = None
        if conditioning.pooled is not None:
            ids = self._time_ids(len(noisy)) if time_ids is None else time_ids
            added = {"text_embeds": conditioning.pooled, "time_ids": ids}
        prediction: Tensor = self.unet(
            noisy.to(dtype_of(self.unet)), timestep, conditioning.embeds, added_cond_kwargs=added, return_dict=False
        )[0]
        return prediction

    def _time_ids(self, count: int) -> Tensor:
        side = float(self.config.resolution)
        # fp32: bf16 would round 1023 to 1024.
        row = torch.tensor([side, side, 0.0, 0.0, side, side], device=self.device)
        return row.expand(count, -1)

    def pipeline(self, scheduler: Any = None) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
        """Return a diffusers pipeline that shares these parts; without a scheduler, it gets `sampler()`."""
        scheduler = scheduler or self.sampler()
        if self.config.family == "sd":
            return StableDiffusionPipeline(
                vae=self.vae,
                text_encoder=self.text_encoders[0],
                tokenizer=self.tokenizers[0],
                unet=self.unet,
                scheduler=scheduler,
                # It flags clinical anatomy and would put black images into a data set.
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        return StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoders[0],
            text_encoder_2=self.text_encoders[1],
            tokenizer=self.tokenizers[0],
            tokenizer_2=self.tokenizers[1],
            unet=self.unet,
            scheduler=scheduler,
            # An invisible watermark on synthetic images alone would be a shortcut for the classifier.
            add_watermarker=False,
        )


class Weights(Protocol):
    """What is said of weights in the configuration: BackboneConfig, or a group like it."""

    @property
    def key(self) -> str:
        """The group's name in the configuration."""

    @property
    def name(self) -> str:
        """What the user calls them."""

    @property
    def source(self) -> str:
        """A folder, a Hub id or "package:NAME"."""

    @property
    def revision(self) -> str | None:
        """Of a Hub id."""


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder; whole or not at all. An older folder of that name is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for interrupted in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(interrupted)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        write(partial)
        partial.chmod(0o755)  # mkdtemp's 0700 would hide results from a team's shared group
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(config: BackboneConfig, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a backbone from a folder, the package or the Hub.

    Raises:
        FileNotFoundError: a part is missing, or the Hub cannot be reached; the message says what to put where.
        ValueError: the weights are of another family, or the resolution does not fit the model.
    """
    parts = _parts(config.family)
    folder = _local_folder(config)
    if folder and (folder / "unet" / "config.json").is_file():  # a missing second text encoder may be the wrong family
        _require_family(config, str(folder), _unet_config(str(folder), None))
    source = find_source(config, (*parts, "scheduler"))
    try:
        _check_family(config, source, parts)
        scheduler_config = DDPMScheduler.load_config(source, subfolder="scheduler", revision=config.revision)
        loaded = {name: load_part(kind, source, name, config.revision, dtype) for name, kind in parts.items()}
    except OSError as error:
        raise FileNotFoundError(remedy(config, (*parts, "scheduler"), str(error).splitlines()[0])) from error
    return Backbone(
        config=config,
        vae=loaded["vae"],
        unet=loaded["unet"],
        text_encoders=tuple(loaded[name] for name in parts if name.startswith("text_encoder")),
        tokenizers=tuple(loaded[name] for name in parts if name.startswith("tokenizer")),
        scheduler_config=dict(scheduler_config),
    )


def _check_family(config: BackboneConfig, source: str, parts: Iterable[str]) -> None:
    """Compare what the parts say of themselves, before gigabytes of weights are read."""
    unet = _unet_config(source, config.revision)
    _require_family(config, source, unet)
    texts = [name for name in parts if name.startswith("text_encoder")]
    told = [CLIPTextConfig.from_pretrained(source, subfolder=name, revision=config.revision) for name in texts]
    width = sum(each.hidden_size for each in told)
    if width != unet["cross_attention_dim"]:
        raise ValueError(
            f"the parts in {source} are of different models: the UNet reads texts of width "
            f"{unet['cross_attention_dim']}, but that of {' and '.join(texts)} is {width}: take all of one model"
        )


def _require_family(config: BackboneConfig, source: str, unet: Mapping[str, Any]) -> None:
    family = "sdxl" if unet.get("addition_embed_type") == "text_time" else "sd"
    if family != config.family:
        raise ValueError(
            f"backbone.family is {config.family!r}, but the UNet in {source} is of family {family!r}: it reads texts "
            f"of width {unet['cross_attention_dim']} (SD1.5: 768, SD2: 1024, SDXL: 2048). Set backbone.family={family}"
        )


def _unet_config(source: str, revision: str | None) -> dict[str, Any]:
    return dict(UNet2DConditionModel.load_config(source, subfolder="unet", revision=revision))


def _parts(family: str) -> dict[str, type]:
    parts: dict[str, type] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    parts |= {"text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    if family == "sdxl":
        parts |= {"text_encoder_2": CLIPTextModelWithProjection, "tokenizer_2": CLIPTokenizer}
    return parts


def find_source(config: Weights, parts: Iterable[str]) -> str:
    """Return the folder or Hub id to load from.

    Raises:
        FileNotFoundError: a folder lacks one of the parts; the message says what to put where.
    """
    folder = _local_folder(config)
    if folder is None:
        return config.source
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(remedy(config, parts, f"{folder} has no {', '.join(missing)}"))
    return str(folder)


def _local_folder(config: Weights) -> Path | None:
    """Return the folder that a source names; None where it is a Hub id."""
    if config.source.startswith(PACKAGE):
        return PACKAGE_WEIGHTS / config.source.removeprefix(PACKAGE)
    folder = Path(config.source)
    return None if not folder.is_dir() and re.fullmatch(HUB_ID, config.source) else folder


def load_part(kind: Any, source: str, name: str, revision: str | None, dtype: torch.dtype) -> Any:
    """Load one part of a pipeline folder with safetensors, in a dtype of ours."""
    if kind is CLIPTokenizer:
        return kind.from_pretrained(source, subfolder=name, revision=revision)
    # The dtype is always given: transformers loads in the checkpoint's own unless told.
    dtype_key = "torch_dtype" if kind in (UNet2DConditionModel, AutoencoderKL) else "dtype"
    return kind.from_pretrained(source, subfolder=name, revision=revision, use_safetensors=True, **{dtype_key: dtype})


def remedy(config: Weights, parts: Iterable[str], cause: str) -> str:
    """Return the message for weights that cannot be loaded: why, and what to download to where."""
    hub_id = config.source if re.fullmatch(HUB_ID, config.source) else "HUB_ID"
    revision = f" --revision {config.revision}" if config.revision else ""
    return (
        f"{config.key} {config.name!r} cannot be loaded from {config.source!r}: {cause.rstrip('.')}. It needs a "
        f"diffusers folder with {', '.join(parts)}. Where the Hub can be reached: `hf download "
        f"{hub_id}{revision} --local-dir FOLDER`; then copy FOLDER here and set {config.key}.source=FOLDER"
    )


def tokens_of(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Return ids, int64 (B, L), padded to the tokenizer's full length; warn with the text that is cut off."""
    limit = tokenizer.model_max_length
    ids = tokenizer(prompts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids
    for prompt, length in zip(prompts, (ids != tokenizer.pad_token_id).sum(1), strict=True):
        if length >= limit - 1:
            _warn_of_cut(tokenizer, prompt)
    return torch.as_tensor(ids)


def _warn_of_cut(tokenizer: CLIPTokenizer, prompt: str) -> None:
    words = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    room = tokenizer.model_max_length - 2  # beside the start and the end token
    if len(words) > room:
        cut = tokenizer.decode(words[room:])
        warnings.warn(f"the text encoder reads {room} tokens; of {prompt!r} it never sees {cut!r}", stacklevel=4)
