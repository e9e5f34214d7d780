"""Networks with batch norm, each norm right behind the linear layer that can absorb it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bnfold.errors import DataError


class MLP(nn.Module):
    """Linear -> BatchNorm -> ReLU for each width, then a Linear. x: (N, ...) float32 -> logits (N, classes)."""

    def __init__(self, in_features: int, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(in_features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            in_features = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(in_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flatten, features, head."""
        logits: torch.Tensor = self.head(self.features(x.flatten(1)))
        return logits


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


def _mlp(shape: tuple[int, ...], classes: int, *, widths: Sequence[int], blocks: int) -> nn.Module:  # noqa: ARG001
    return MLP(int(torch.Size(shape).numel()), widths, classes)


def _plain_cnn(shape: tuple[int, ...], classes: int, *, widths: Sequence[int], blocks: int) -> nn.Module:  # noqa: ARG001
    return PlainCNN(shape[0], widths, classes)


def _resnet(shape: tuple[int, ...], classes: int, *, widths: Sequence[int], blocks: int) -> nn.Module:
    return ResNet(shape[0], widths, blocks, classes)


_KINDS: dict[str, Callable[..., nn.Module]] = {"mlp": _mlp, "plain_cnn": _plain_cnn, "resnet": _resnet}


def build_network(kind: str, shape: tuple[int, ...], classes: int, args: dict[str, Any]) -> nn.Module:
    """A network by its kind. shape: of one input, without the batch; args: `widths` and `blocks`.

    Raises DataError for a kind that is not known or arguments that it cannot take.
    """
    if kind not in _KINDS:
        raise DataError(f"network '{kind}' is not known; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](shape, classes, **args)
    except (TypeError, ValueError, RuntimeError, IndexError) as problem:
        raise DataError(f"network '{kind}' cannot be built from {args}: {problem}") from None
