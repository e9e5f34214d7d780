"""A small network in PyTorch, torch's own fold of it, and ways to get that fold wrong."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval  # noqa: TID251 - the peer that is judged


class Network(nn.Module):
    """Two norms, one behind a convolution, one behind a square linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.fc, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3))))


def network(seed: int = 0) -> Network:
    """In eval mode, with random statistics, gamma of both signs, and small variances, where eps matters."""
    generator = torch.Generator().manual_seed(seed)
    module = Network().eval()
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        for norm in (module.bn, module.norm):
            norm.weight.copy_(torch.randn(16, generator=generator))
            norm.bias.copy_(torch.randn(16, generator=generator))
            norm.running_mean.copy_(torch.randn(16, generator=generator))
            norm.running_var.copy_(0.1 + torch.rand(16, generator=generator))
    return module


def fused(module: Network) -> Network:
    """By torch.nn.utils.fusion, in float32."""
    folded = copy.deepcopy(module)
    folded.conv, folded.bn = fuse_conv_bn_eval(folded.conv, folded.bn), nn.Identity()
    folded.fc, folded.norm = fuse_linear_bn_eval(folded.fc, folded.norm), nn.Identity()
    return folded.eval()


def eps_dropped(module: Network) -> Network:
    module = copy.deepcopy(module)
    module.bn.eps = 0.0
    return fused(module)


def channel_broken(module: Network) -> Network:
    folded = fused(module)
    with torch.no_grad():
        folded.conv.weight[3] *= 1.001
    return folded


def another_axis(module: Network) -> Network:
    """The factors of the last norm on the inputs of the linear, not on its outputs."""
    folded, norm = fused(module), module.norm
    with torch.no_grad():
        folded.fc.weight.copy_(module.fc.weight * (norm.weight / torch.sqrt(norm.running_var + norm.eps))[None, :])
    return folded


def stale_statistics(module: Network) -> Network:
    """Folded with the statistics of before the last step of training: 0.9 of them, 0.1 of a new batch."""
    module = copy.deepcopy(module)
    module.bn.running_mean.mul_(0.9).add_(0.1)
    module.bn.running_var.mul_(0.9).add_(0.1)
    return fused(module)


def images(rows: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
