"""Networks of depthwise convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, STEM, Init, Stem, conv
from bnfold.training.networks.norms import NORM, Norm
from bnfold.training.networks.stages import BLOCKS, Blocks, width_and_stride


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each stage", low=1, high=MAX_WIDTH)
    blocks: Blocks = BLOCKS
    expansion: int = key(
        "how many times wider the middle of an inverted block is than its input, as in version 2; 0: the separable "
        "blocks of version 1",
        6, low=0, high=16,
    )  # fmt: skip
    stem: Stem = STEM
    norm: Norm = NORM
    bias: bool = BIAS
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return MobileNet(shape[0], args, classes)


def _separable(channels: int, width: int, stride: int, args: Args) -> nn.Module:
    """Depthwise 3x3 and pointwise, each with norm and ReLU6 (Howard et al. 2017, arXiv 1704.04861)."""
    norm, bias = args.norm, args.bias
    depthwise = conv(channels, channels, 3, norm, stride=stride, groups=channels, activation=nn.ReLU6(), bias=bias)
    return nn.Sequential(*depthwise, *conv(channels, width, 1, norm, activation=nn.ReLU6(), bias=bias))


class InvertedBlock(nn.Module):
    """Wider, depthwise, narrow again without an activation (Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        middle = channels * args.expansion
        self.layers = nn.Sequential(
            *conv(channels, middle, 1, args.norm, activation=nn.ReLU6(), bias=args.bias),
            *conv(middle, middle, 3, args.norm, stride=stride, groups=middle, activation=nn.ReLU6(), bias=args.bias),
            *conv(middle, width, 1, args.norm, bias=args.bias),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Layers, with the input added where the shape is the same."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """A stem and a stage of depthwise blocks for each width, halved in size from the second stage on.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, args: Args, classes: int) -> None:
        super().__init__()
        stride = 2 if args.stem == "imagenet" else 1
        stem = conv(channels, args.widths[0], 3, args.norm, stride=stride, activation=nn.ReLU6(), bias=args.bias)
        self.stem = nn.Sequential(*stem)
        width = args.widths[-1]
        last: list[nn.Module] = []
        if args.expansion:  # an inverted block ends without an activation; the paper widens 320 channels to 1280
            last = conv(width, 4 * width, 1, args.norm, activation=nn.ReLU6(), bias=args.bias)
            width *= 4
        self.stages = nn.Sequential(*_stages(args), *last)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, stages, global mean, head."""
        logits: torch.Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def _stages(args: Args) -> Iterator[nn.Module]:
    before = args.widths[0]
    for width, stride in width_and_stride(args.widths, args.blocks):
        yield (InvertedBlock if args.expansion else _separable)(before, width, stride, args)
        before = width


KIND = Kind("mobilenet", Args, build)
