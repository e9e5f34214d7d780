"""Residual networks, of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind, check_blocks
from bnfold.training.networks.layers import BIAS, INIT, STEM, Init, Stem, conv, needs_bias
from bnfold.training.networks.norms import NORM, Norm, make_norm


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each stage", low=1, high=MAX_WIDTH)
    blocks: int = key("residual blocks of each stage", 1, low=1, high=32)
    version: int = key("1: norms behind the convolutions; 2: norm and ReLU before them", 1, low=1, high=2)
    stem: Stem = STEM
    zero_gamma: bool = key(
        "the last norm of a block begins with gamma 0, and the block as identity; in version 1", False
    )
    norm: Norm = NORM
    bias: bool = BIAS
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    if args.zero_gamma and args.version == 2:
        # The ReLU behind the norm would be at zero everywhere, where its gradient is zero: the block would never learn.
        raise ValueError("zero_gamma needs version 1, where no ReLU comes right behind the norm")
    check_blocks(len(args.widths) * args.blocks)
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
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == width
            else nn.Sequential(*conv(channels, width, 1, args.norm, stride=stride, bias=args.bias))
        )
        if args.zero_gamma:
            _zero_gamma(self.bn2, args.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(residual + shortcut)."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class PreactivationBlock(nn.Module):
    """A basic residual block, version 2 (He et al. 2016, arXiv 1603.05027): norm and ReLU before each convolution."""

    def __init__(self, channels: int, width: int, stride: int, args: Args) -> None:
        super().__init__()
        bias = args.bias or needs_bias(args.norm)
        self.bn1 = make_norm(args.norm, channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=bias)
        self.bn2 = make_norm(args.norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        same = stride == 1 and channels == width
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Residual + shortcut; a shortcut that changes the shape takes what the first norm and ReLU give."""
        active = torch.relu(self.bn1(x))
        y: torch.Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


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
        width = args.widths[-1]
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
    kind = Block if args.version == 1 else PreactivationBlock
    before = args.widths[0]
    for stage, width in enumerate(args.widths):
        for block in range(args.blocks):
            yield kind(before, width, 2 if stage > 0 and block == 0 else 1, args)
            before = width


KIND = Kind("resnet", Args, build)
