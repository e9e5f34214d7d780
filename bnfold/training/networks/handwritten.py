"""Batch norm written out in plain tensor operations, as people write it in their own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

Convention = Literal["torch", "keras"]
# Mean and biased variance (C,) of a batch in a dtype, and how many values of a channel they are of.
Statistics = Callable[[torch.Tensor, torch.dtype], tuple[torch.Tensor, torch.Tensor, int]]


class HandwrittenBatchNorm(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015, arXiv 1502.03167) in terms of mean, variance, gamma and beta.

    x: (N, C) or (N, C, *space); each channel is normalised over all the rest. Parameters and buffers have the names
    and shapes of torch's, so that a state dict of `nn.BatchNorm2d` fits. Training normalises by the biased variance of
    the batch and keeps a moving average of the unbiased one, as torch does.

    convention: what `momentum` weighs. "torch": new = (1 - momentum) * old + momentum * batch, 0.1 by custom; "keras":
    new = momentum * old + (1 - momentum) * batch, 0.99 by custom.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(
        self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, convention: Convention = "torch"
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.convention = convention
        self.statistics: Statistics = batch_statistics
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """gamma * (x - mean) / sqrt(variance + eps) + beta: of the batch in training, of the averages in eval."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance = self._of_the_batch(x) if self.training else (self.running_mean, self.running_var)
        gamma, beta = self.weight, self.bias
        centred = x - mean.reshape(shape)
        normalised = centred / torch.sqrt(variance.reshape(shape) + self.eps)
        return gamma.reshape(shape) * normalised + beta.reshape(shape)

    def _of_the_batch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and biased variance (C,) of a batch, which enter the running averages on the way."""
        mean, variance, count = self.statistics(x, self.running_mean.dtype)
        share = self.momentum if self.convention == "torch" else 1 - self.momentum
        with torch.no_grad():
            self.running_mean.copy_((1 - share) * self.running_mean + share * mean)
            self.running_var.copy_((1 - share) * self.running_var + share * variance * (count / (count - 1)))
            self.num_batches_tracked.add_(1)
        return mean, variance


def batch_statistics(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and biased variance (C,) in `dtype`, and how many values of a channel they are of.

    Raises ValueError for one value a channel, whose variance is zero whatever the network does.
    """
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"batch norm in training needs 2 or more values a channel, found inputs {tuple(x.shape)}")
    axes = [axis for axis in range(x.ndim) if axis != 1]
    if x.dtype != dtype:
        x = x.to(dtype)  # under autocast a sum of half precision would lose the statistics
    return x.mean(axes), x.var(axes, unbiased=False), count
