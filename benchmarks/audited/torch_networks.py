"""PyTorch modules with norms, and PyTorch's own ways to fold them."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval  # noqa: TID251 - the peer itself


class Network(nn.Module):
    """Convolutions of all kinds and a dense layer, a norm behind each; statistics are random."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, groups=width, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width, eps=1e-3)
        self.fc, self.bn4 = nn.Linear(width, 10), nn.BatchNorm1d(10)
        for norm in (self.bn1, self.bn2, self.bn3, self.bn4):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean = 2 * torch.randn_like(norm.weight).detach()
            norm.running_var = torch.exp(torch.randn_like(norm.weight)).detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        out: torch.Tensor = self.bn4(self.fc(x.mean((2, 3))))
        return out


def by_fusion(module: Network) -> Network:
    """torch.nn.utils.fusion on each pair."""
    folded = copy.deepcopy(module)
    for at in (1, 2, 3):
        pair = getattr(folded, f"conv{at}"), getattr(folded, f"bn{at}")
        setattr(folded, f"conv{at}", fuse_conv_bn_eval(*pair))
        setattr(folded, f"bn{at}", nn.Identity())
    folded.fc, folded.bn4 = fuse_linear_bn_eval(folded.fc, folded.bn4), nn.Identity()  # type: ignore[assignment]
    return folded


def by_export(module: nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    """torch.onnx.export with its defaults, which fold."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, example, dynamo=True, verbose=False)
    return program.model_proto


def folds(tool: str, count: int) -> Iterator[tuple[Any, Any, Any]]:
    """(folded, original, example inputs), a random network each."""
    for seed in range(count):
        module = Network(seed).eval()
        example = (torch.randn(2, 3, 8, 8),)
        match tool:
            case "torch_fusion":
                yield by_fusion(module), module, example
            case "torch_fx":
                yield fuse(module), module, example
            case _:
                yield by_export(module, example), module, example
