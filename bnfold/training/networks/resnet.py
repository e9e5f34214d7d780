"""Residual networks, of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, STEM, Init, Stem, conv, needs_bias
from bnfold.training.networks.norms import NORM, Norm, make_norm
from bnfold.training.networks.stages import BLOCKS, Blocks, width_and_stride

BlockKind = Literal["basic", "bottleneck"]


BLOCK = key(
    "`basic`: two 3x3 convolutions; `bottleneck`: a 1x1, a 3x3 and a 1x1, which gives 4 times the channels", "basic"
)
WIDENED = 4  # a bottleneck gives so many times the channels of its middle


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key(
        "channels of each stage; of its 3x3 convolutions, in a bottleneck", low=1, high=MAX_WIDTH
    )
    blocks: Blocks = BLOCKS
    block: BlockKind = BLOCK
    version: int = key("1: norms behind the convolutions; 2: norm and ReLU before them", 1, low=1, high=2)
    stem: Stem = STEM
    zero_gamma: bool = key(
        "the last norm of a block begins with gamma 0, and the block as identity; in version 1", False
    )
    norm: Norm = NORM
    bias: bool = BIAS
    init: Init = INIT

    @property
    def widened(self) -> int:
        """How many times the channels of its stage a block gives."""
        return WIDENED if self.block == "bottleneck" else 1


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    if args.zero_gamma and args.version == 2:
        # The ReLU behind the norm would be at zero everywhere, where its gradient is zero: the block would never learn.
        raise ValueError("zero_gamma needs version 1, where no ReLU comes right behind the norm")
    return ResNet(shape[0], args, classes)


class Block(nn.Module):
    """A basic residual block, version 1 (He et al. 2016, arXiv 1512.03385): every norm follows a convolution."""

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        bias = args.bias or needs_bias(args.norm)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=bias)
        self.bn1 = make_norm(args.norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.bn2 = make_norm(args.norm, width)
        self.shortcut = _shortcut(channels, width, stride, args)
        if args.zero_gamma:
            _zero_gamma(self.bn2, args.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(residual + shortcut)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A residual block with a narrow middle, version 1. The 3x3 has the stride, not the 1x1 before it as in the paper:
    so the weights that people exchange as ResNet-50 are trained.
    """

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        bias = args.bias or needs_bias(args.norm)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.bn1 = make_norm(args.norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=bias)
        self.bn2 = make_norm(args.norm, width)
        self.conv3 = nn.Conv2d(width, WIDENED * width, 1, bias=bias)
        self.bn3 = make_norm(args.norm, WIDENED * width)
        self.shortcut = _shortcut(channels, WIDENED * width, stride, args)
        if args.zero_gamma:
            _zero_gamma(self.bn3, args.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(residual + shortcut)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """A basic residual block, version 2 (He et al. 2016, arXiv 1603.05027): norm and ReLU before each convolution."""

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        bias = args.bias or needs_bias(args.norm)
        self.bn1 = make_norm(args.norm, channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=bias)
        self.bn2 = make_norm(args.norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.shortcut = _bare_shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual + shortcut; a shortcut that changes the shape takes what the first norm and ReLU give."""
        active = torch.relu(self.bn1(x))
        y: torch.Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class PreactivationBottleneck(nn.Module):
    """A residual block with a narrow middle, version 2: norm and ReLU before each convolution."""

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        bias = args.bias or needs_bias(args.norm)
        self.bn1 = make_norm(args.norm, channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.bn2 = make_norm(args.norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=bias)
        self.bn3 = make_norm(args.norm, width)
        self.conv3 = nn.Conv2d(width, WIDENED * width, 1, bias=bias)
        self.shortcut = _bare_shortcut(channels, WIDENED * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual + shortcut; a shortcut that changes the shape takes what the first norm and ReLU give."""
        active = torch.relu(self.bn1(x))
        y: torch.Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        y = self.conv3(torch.relu(self.bn3(y)))
        return y + (x if self.shortcut is None else self.shortcut(active))


_BLOCKS = {
    ("basic", 1): Block,
    ("bottleneck", 1): Bottleneck,
    ("basic", 2): PreactivationBlock,
    ("bottleneck", 2): PreactivationBottleneck,
}


def _shortcut(channels: int, width: int, stride: int, args: Args) -> nn.Module:
    """Identity, or a convolution with its norm where the shape changes."""
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(*conv(channels, width, 1, args.norm, stride=stride, bias=args.bias))


def _bare_shortcut(channels: int, width: int, stride: int) -> nn.Module | None:
    """A convolution without a norm where the shape changes."""
    return None if stride == 1 and channels == width else nn.Conv2d(channels, width, 1, stride, bias=False)


def _zero_gamma(norm: nn.Module, name: Norm) -> None:
    gamma = getattr(norm, "weight", None)
    if not isinstance(gamma, nn.Parameter):
        raise ValueError(f"zero_gamma needs a norm whose gamma learns, norm '{name}' has none")
    nn.init.zeros_(gamma)


class ResNet(nn.Module):
    """A stem and a stage of residual blocks for each width, halved in size from the second stage on.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, args: Args, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_stem(channels, args))
        self.stages = nn.Sequential(*_stages(args))
        width = args.widths[-1] * args.widened
        self.last = nn.Sequential(make_norm(args.norm, width), nn.ReLU()) if args.version == 2 else nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Stem, stages, global mean, head."""
        logits: torch.Tensor = self.head(self.last(self.stages(self.stem(x))).mean((2, 3)))
        return logits


def _stem(channels: int, args: Args) -> Iterator[nn.Module]:
    size, stride = (7, 2) if args.stem == "imagenet" else (3, 1)
    if args.version == 1:
        yield from conv(channels, args.widths[0], size, args.norm, stride=stride, activation=nn.ReLU(), bias=args.bias)
    else:  # the first block brings the norm
        yield nn.Conv2d(channels, args.widths[0], size, stride, size // 2, bias=args.bias or needs_bias(args.norm))
    if args.stem == "imagenet":
        yield nn.MaxPool2d(3, 2, padding=1)


def _stages(args: Args) -> Iterator[nn.Module]:
    kind = _BLOCKS[args.block, args.version]
    before = args.widths[0]
    for width, stride in width_and_stride(args.widths, args.blocks):
        yield kind(before, width, stride, args)
        before = width * args.widened


KIND = Kind("resnet", Args, build)
