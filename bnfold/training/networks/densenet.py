"""Densely connected networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import Kind, check_blocks
from bnfold.training.networks.layers import BIAS, INIT, STEM, Init, Stem, conv, needs_bias
from bnfold.training.networks.norms import NORM, Norm, make_norm

_BOTTLENECK = 4  # the paper's: a 1x1 convolution to 4 * growth channels comes before each 3x3


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    layers: tuple[int, ...] = key("dense layers of each stage", low=1, high=64)
    growth: int = key("channels that each dense layer adds", 12, low=1, high=1024)
    compression: float = key(
        "the share of the channels that is kept between two stages", 0.5, low=0, high=1, above=True
    )
    stem: Stem = STEM
    norm: Norm = NORM
    bias: bool = BIAS
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    check_blocks(sum(args.layers))
    return DenseNet(shape[0], args, classes)


def _preactivated(channels: int, width: int, size: int, norm: Norm, *, bias: bool) -> list[nn.Module]:
    return [make_norm(norm, channels), nn.ReLU(), nn.Conv2d(channels, width, size, padding=size // 2, bias=bias)]


class DenseLayer(nn.Module):
    """Norm -> ReLU -> Conv 1x1 -> Norm -> ReLU -> Conv 3x3, joined to the input as further channels."""

    def __init__(self, channels: int, args: Args) -> None:
        super().__init__()
        middle, bias = _BOTTLENECK * args.growth, args.bias or needs_bias(args.norm)
        self.layers = nn.Sequential(
            *_preactivated(channels, middle, 1, args.norm, bias=bias),
            *_preactivated(middle, args.growth, 3, args.norm, bias=bias),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C + growth, H, W)."""
        return torch.cat((x, self.layers(x)), 1)


class DenseNet(nn.Module):
    """Stages of dense layers (Huang et al. 2017, arXiv 1608.06993), halved in size and narrowed between them.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, args: Args, classes: int) -> None:
        super().__init__()
        width, norm, large = 2 * args.growth, args.norm, args.stem == "imagenet"
        bias, size, stride = args.bias, 7 if large else 3, 2 if large else 1
        stem = conv(channels, width, size, norm, stride=stride, activation=nn.ReLU(), bias=bias)
        self.stem = nn.Sequential(*stem, *([nn.MaxPool2d(3, 2, padding=1)] if large else []))
        stages: list[nn.Module] = []
        for stage, count in enumerate(args.layers):
            if stage > 0:
                kept = max(1, int(width * args.compression))
                stages += [*_preactivated(width, kept, 1, norm, bias=bias or needs_bias(norm)), nn.AvgPool2d(2)]
                width = kept
            stages += [DenseLayer(width + index * args.growth, args) for index in range(count)]
            width += count * args.growth
        self.stages = nn.Sequential(*stages, make_norm(norm, width), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, stages, global mean, head."""
        logits: torch.Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


KIND = Kind("densenet", Args, build)
