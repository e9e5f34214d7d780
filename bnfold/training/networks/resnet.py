"""Residual networks."""

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

    widths: tuple[int, ...] = key("channels of each stage", low=1, high=MAX_WIDTH)
    blocks: int = key("residual blocks of each stage", 1, low=1, high=32)


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return ResNet(shape[0], args.widths, args.blocks, classes)


class Block(nn.Module):
    """A basic residual block, version 1 (He et al. 2016, arXiv 1512.03385): every norm follows a convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(residual + shortcut)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and a stage of residual blocks for each width, halved in size from the second stage on.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(before, width, stride=2 if stage > 0 and block == 0 else 1))
                before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, stages, global mean, head."""
        logits: torch.Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


KIND = Kind("resnet", Args, build)
