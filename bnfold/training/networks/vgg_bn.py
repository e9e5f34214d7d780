"""Stages of convolutions with a pooling behind each, as VGG has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, ORDER, Init, Order, conv
from bnfold.training.networks.norms import NORM, Norm
from bnfold.training.networks.stages import of_each_stage


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each stage", low=1, high=MAX_WIDTH)
    convolutions: tuple[int, ...] = key("convolutions of each stage, or one number for all", (2,), low=1, high=32)
    norm: Norm = NORM
    bias: bool = BIAS
    order: Order = ORDER
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return VGG(shape[0], args, of_each_stage(args.convolutions, args.widths, "convolutions"), classes)


class VGG(nn.Module):
    """Conv 3x3 -> BatchNorm -> ReLU, some times, then halved, for each width (Simonyan and Zisserman 2015, 1409.1556).

    The mean over space and one Linear stand for the paper's three dense layers. x: (N, C, H, W) float32 -> logits (N,
    classes).
    """

    def __init__(self, channels: int, args: Args, counts: tuple[int, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, count in zip(args.widths, counts, strict=True):
            for _ in range(count):
                layers += conv(channels, width, 3, args.norm, order=args.order, activation=nn.ReLU(), bias=args.bias)
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, global mean, head."""
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


KIND = Kind("vgg_bn", Args, build)
