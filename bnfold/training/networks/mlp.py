"""Dense layers."""

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

    widths: tuple[int, ...] = key("units of each layer", low=1, high=MAX_WIDTH)


def build(shape: tuple[int, ...], classes: int, args: Args) -> nn.Module:
    """The network for inputs of a shape."""
    return MLP(int(torch.Size(shape).numel()), args.widths, classes)


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


KIND = Kind("mlp", Args, build)
