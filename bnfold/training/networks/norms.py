"""Norms by name, for features (N, C) and for pictures (N, C, H, W)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from bnfold.training.fields import key
from bnfold.training.networks.batch_renorm import BatchRenorm
from bnfold.training.networks.handwritten import HandwrittenBatchNorm

Norm = Literal["batch", "frozen_batch", "layer", "group", "instance", "batch_renorm", "handwritten", "none"]
# An instance norm of features would see one value and give zero.
FeatureNorm = Literal["batch", "frozen_batch", "layer", "group", "batch_renorm", "handwritten", "none"]

GROUPS = 8
_MEANING = (
    "`batch`; `frozen_batch`: fixed statistics, scale and shift, as in fine-tuning; `layer`: over channels and space; "
    "`group`: of 8 groups, or the next fewer that divide the channels into 2 or more each; `batch_renorm`: Ioffe 2017 "
    "(arXiv 1702.03275); `handwritten`: batch norm in plain tensor operations; `none`"
)
# The key `norm` of networks of dense layers, and of those of convolutions.
FEATURE_NORM = key(_MEANING, "batch")
NORM = key(f"{_MEANING}; `instance`: of each channel of each picture", "batch")


def make_norm(name: Norm, channels: int) -> nn.Module:
    """A norm of pictures (N, C, H, W)."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.InstanceNorm2d(channels, affine=True) if name == "instance" else _of_any_rank(name, channels)


def make_feature_norm(name: FeatureNorm, channels: int) -> nn.Module:
    """A norm of features (N, C)."""
    return nn.BatchNorm1d(channels) if name == "batch" else _of_any_rank(name, channels)


def _of_any_rank(name: str, channels: int) -> nn.Module:
    if name == "none":
        return nn.Identity()
    if name == "layer":
        return nn.GroupNorm(1, channels)  # Wu and He 2018, arXiv 1803.08494: one group is layer norm
    if name == "group":
        return nn.GroupNorm(_groups(channels), channels)
    if name == "frozen_batch":
        return FrozenBatchNorm(channels)
    return BatchRenorm(channels) if name == "batch_renorm" else HandwrittenBatchNorm(channels)


def _groups(channels: int) -> int:
    # A group of one channel at one position would see one value and give zero.
    return max(count for count in range(1, GROUPS + 1) if count == 1 or (channels % count == 0 and channels > count))


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics, scale and shift are buffers: training and eval are the same, and nothing learns.

    Names and shapes are those of torch's batch norm, so that trained ones can be loaded. x: (N, C) or (N, C, *space).
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The fixed affine map."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
