"""Convolutions one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each layer", low=1, high=MAX_WIDTH)


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return PlainCNN(shape[0], args.widths, classes)


class PlainCNN(nn.Module):
    """Conv 3x3 -> BatchNorm -> ReLU for each width, halved in size after the second, mean over space, Linear.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
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
