"""Dense layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bnfold.training.fields import key
from bnfold.training.networks.kind import MAX_WIDTH, Kind
from bnfold.training.networks.layers import BIAS, INIT, ORDER, Init, Order, dense
from bnfold.training.networks.norms import FEATURE_NORM, FeatureNorm


@dataclass(frozen=True)
class Args:
    """What a recipe may say of it."""

    widths: tuple[int, ...] = key("units of each layer", low=1, high=MAX_WIDTH)
    norm: FeatureNorm = FEATURE_NORM
    bias: bool = BIAS
    order: Order = ORDER
    init: Init = INIT


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return MLP(int(torch.Size(shape).numel()), args, classes)


class MLP(nn.Module):
    """Linear -> BatchNorm -> ReLU for each width, then a Linear. x: (N, ...) float32 -> logits (N, classes)."""

    def __init__(self, in_features: int, args: Args, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in args.widths:
            layers += dense(in_features, width, args.norm, args.order, bias=args.bias)
            in_features = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(in_features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Flatten, features, head."""
        logits: torch.Tensor = self.head(self.features(x.flatten(1)))
        return logits


KIND = Kind("mlp", Args, build)
