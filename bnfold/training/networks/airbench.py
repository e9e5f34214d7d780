"""The network of a CIFAR-10 speed run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, Init, needs_bias
from bnfold.training.networks.norms import NORM, Norm, make_norm


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("channels of each stage", (64, 256, 256), low=1, high=MAX_WIDTH)
    whiten: bool = key(
        "the first layer is computed from the training data and stays: it makes the values of each patch of 2x2 "
        "uncorrelated and of variance 1",
        False,
    )
    logit_scale: float = key("the logits are multiplied by it", 1 / 9, low=0, high=1e3, above=True)
    norm: Norm = NORM
    bias: bool = BIAS
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return Airbench(shape[0], args, classes)


class Airbench(nn.Module):
    """The order and the scales of airbench94 (Jordan 2024, arXiv 2404.00498).

    Conv 2x2 -> GELU, then for each width Conv 3x3 -> MaxPool -> BatchNorm -> GELU -> Conv 3x3 -> BatchNorm -> GELU; the
    largest value over space, and a Linear without a bias. Gamma is 1 and does not learn. The 3x3 convolutions begin as
    identity in as many channels as they take. Where the first layer is to whiten, nothing of it learns but its bias.

    x: (N, C, H, W) float32 -> logits (N, classes).
    """

    def __init__(self, channels: int, args: Args, classes: int) -> None:
        super().__init__()
        width = 2 * channels * 2**2  # each sign of each patch of 2x2
        first = nn.Conv2d(channels, width, 2)
        first.weight.requires_grad_(not args.whiten)
        layers: list[nn.Module] = [first, nn.GELU()]
        for stage in args.widths:
            layers += [_begun_as_identity(width, stage, args), nn.MaxPool2d(2), _norm(stage, args.norm), nn.GELU()]
            layers += [_begun_as_identity(stage, stage, args), _norm(stage, args.norm), nn.GELU()]
            width = stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes, bias=False)
        self.logit_scale = args.logit_scale
        self._whitens = args.whiten

    @property
    def whitening(self) -> nn.Conv2d | None:
        """The layer that waits for kernels from the data; None where all learn."""
        first = self.features[0]
        return first if self._whitens and isinstance(first, nn.Conv2d) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features, global maximum, head, scale."""
        logits: torch.Tensor = self.head(self.features(x).amax((2, 3)))
        return logits * self.logit_scale


def _norm(channels: int, name: Norm) -> nn.Module:
    norm = make_norm(name, channels)
    if isinstance(gamma := getattr(norm, "weight", None), nn.Parameter):
        gamma.requires_grad_(False)
    return norm


def _begun_as_identity(channels: int, width: int, args: Args) -> nn.Conv2d:
    layer = nn.Conv2d(channels, width, 3, padding=1, bias=args.bias or needs_bias(args.norm))
    same = min(channels, width)
    with torch.no_grad():
        layer.weight[:same] = 0
        layer.weight[:same, :same, 1, 1] = torch.eye(same)
    return layer


KIND = Kind("airbench", Args, build)
