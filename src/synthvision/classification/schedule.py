"""What changes while a classifier trains: learning rates, the mean of its weights, mixed images, the early end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # it is in timm's documentation
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms import v2

from synthvision.classification.recipe import BALANCED, OPTIMIZERS, ClassifierConfig


def optimizer_of(network: nn.Module, config: ClassifierConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a network's parameters, with a rate of its own per layer where the recipe says so."""
    parameters: Any = network.parameters()
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(network, config.weight_decay, layer_decay=config.layer_decay)
        parameters = [{**group, "lr": config.lr * group["lr_scale"]} for group in groups]
    made = OPTIMIZERS[config.optimizer]
    return made(parameters, lr=config.lr, weight_decay=config.weight_decay)  # type: ignore[call-arg]  # all take it


def freeze(network: nn.Module, layers: int) -> None:
    """Stop the first layers from training, in the order in which timm groups them: a ViT's embedding, then its blocks.

    Raises:
        ValueError: no layer would be left to train but the output.
    """
    groups = group_parameters(network, network.group_matcher(coarse=False))  # type: ignore[operator]  # timm's
    if layers >= len(groups):
        raise ValueError(f"classifier.frozen_layers must be below the network's {len(groups)} layers; it is {layers}")
    for layer in range(layers):
        for name in groups[layer]:
            network.get_parameter(name).requires_grad_(False)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of a network whose weights follow it, as a module so that checkpoints hold it."""
    follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch's
    return AveragedModel(network, multi_avg_fn=follow, use_buffers=True)


def plateau_factor(losses: Sequence[float], config: ClassifierConfig) -> float:
    """Return what the learning rate is multiplied by after epochs with these validation losses.

    It follows from the losses alone, so that a resumed run has the rate of an undisturbed one.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = ReduceLROnPlateau(optimizer, factor=config.plateau_factor, patience=config.plateau_patience)
    for loss in losses:
        schedule.step(loss)
    return float(optimizer.param_groups[0]["lr"])


def mixer(config: ClassifierConfig, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return what mixes the images (B, 3, S, S) and targets (B,) of a batch, giving targets (B, C); None for nothing.

    It draws from torch's global generator.
    """
    kinds = (v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(chosen) if chosen else None


def class_weights(config: ClassifierConfig, counts: Sequence[int]) -> Tensor | None:
    """Return the loss's weight of each class (C,), of mean 1 over the training images where balanced; None for equal.

    Raises:
        ValueError: there is not one weight per class.
    """
    if config.class_weights is None:
        return None
    if config.class_weights == BALANCED:
        total = sum(counts)
        return torch.tensor([total / (len(counts) * count) for count in counts])
    if len(config.class_weights) != len(counts):
        raise ValueError(
            f"classifier.class_weights must hold {len(counts)} numbers, one per class; it is {config.class_weights!r}"
        )
    return torch.tensor([float(weight) for weight in config.class_weights])
