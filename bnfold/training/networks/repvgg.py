"""Plain stages whose layers are sums of branches while they train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, STEM, Init, Stem, conv
from bnfold.training.networks.norms import NORM, Norm, make_norm
from bnfold.training.networks.stages import BLOCKS, Blocks, width_and_stride


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each stage", low=1, high=MAX_WIDTH)
    blocks: Blocks = BLOCKS
    stem: Stem = STEM
    norm: Norm = NORM
    bias: bool = BIAS
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return RepVGG(shape[0], args, classes)


class Block(nn.Module):
    """relu of the sum of a 3x3 and a 1x1 convolution, each with its norm, and of the input's norm where it fits.

    Ding et al. 2021, arXiv 2101.03697: the three are one 3x3 convolution when they are folded.
    """

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        self.dense = nn.Sequential(*conv(channels, width, 3, args.norm, stride=stride, bias=args.bias))
        self.pointwise = nn.Sequential(*conv(channels, width, 1, args.norm, stride=stride, bias=args.bias))
        self.identity = make_norm(args.norm, width) if stride == 1 and channels == width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(sum of the branches)."""
        y = self.dense(x) + self.pointwise(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))


class RepVGG(nn.Module):
    """A stem and a stage of blocks for each width, halved in size from the second stage on.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, args: Args, classes: int) -> None:
        super().__init__()
        self.stem = Block(channels, args.widths[0], 2 if args.stem == "imagenet" else 1, args)
        self.stages = nn.Sequential(*_stages(args))
        self.head = nn.Linear(args.widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, stages, global mean, head."""
        logits: torch.Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def _stages(args: Args) -> Iterator[Block]:
    before = args.widths[0]
    for width, stride in width_and_stride(args.widths, args.blocks):
        yield Block(before, width, stride, args)
        before = width


KIND = Kind("repvgg", Args, build)
