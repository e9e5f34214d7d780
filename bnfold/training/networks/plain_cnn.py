"""Convolutions one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, ORDER, Init, Order, conv
from bnfold.training.networks.norms import NORM, Norm


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each layer", low=1, high=MAX_WIDTH)
    norm: Norm = NORM
    bias: bool = BIAS
    order: Order = ORDER
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    if args.norm == "instance" and args.order == "activation_first" and len(args.widths) != 2:
        # The mean over space of what an instance norm gives is its beta.
        raise ValueError("norm 'instance' right before the mean over space gives the same for every input")
    return PlainCNN(shape[0], args, classes)


class PlainCNN(nn.Module):
    """Conv 3x3 -> BatchNorm -> ReLU for each width, halved in size after the second, mean over space, Linear.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, args: Args, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, width in enumerate(args.widths):
            layers += conv(channels, width, 3, args.norm, order=args.order, activation=nn.ReLU(), bias=args.bias)
            if index == 1:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, global mean, head."""
        logits: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


KIND = Kind("plain_cnn", Args, build)
