"""Batch renormalisation: batch norm for small batches."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bnfold.training.networks.handwritten import Statistics, batch_statistics

# The limits that the paper ends with. It trains on plain batch norm first and takes tens of thousands of steps to
# relax; ours relax from the first step on, over a count that suits small data sets.
R_MAX = 3.0
D_MAX = 5.0
WARM_UP = 1000


class BatchRenorm(nn.Module):
    """Ioffe 2017 (arXiv 1702.03275): normalised by the batch, then corrected towards the running statistics.

    In training y = gamma * ((x - mean_B) / sigma_B * r + d) + beta, where r = sigma_B / sigma is held within
    [1 / r_max, r_max], d = (mean_B - mean) / sigma within [-d_max, d_max], and both are constants for the gradient. The
    limits grow linearly from 1 and 0, which is batch norm, over `warm_up` batches. Eval is batch norm, and so are the
    names and shapes of the state dict. x: (N, C) or (N, C, *space).

    The paper averages the deviation; this averages the unbiased variance, as torch's batch norm does.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        r_max: float = R_MAX,
        d_max: float = D_MAX,
        warm_up: int = WARM_UP,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.r_max = r_max
        self.d_max = d_max
        self.warm_up = warm_up
        self.statistics: Statistics = batch_statistics
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Batch norm of the running statistics in eval; of the batch, corrected, in training."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance, count = self.statistics(x, self.running_mean.dtype)
        r, d = self._correction(mean.detach(), variance.detach())
        self._keep(mean.detach(), variance.detach(), count)
        scale = self.weight * r / torch.sqrt(variance + self.eps)
        shift = self.weight * d + self.bias
        return (x - mean.reshape(shape)) * scale.reshape(shape) + shift.reshape(shape)

    def _correction(self, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """r and d (C,), within the limits of this batch."""
        relaxed = torch.clamp(self.num_batches_tracked / self.warm_up, max=1.0) if self.warm_up else 1.0
        r_max = 1 + relaxed * (self.r_max - 1)
        d_max = relaxed * self.d_max
        sigma = torch.sqrt(self.running_var + self.eps)
        r = torch.sqrt(variance + self.eps) / sigma
        d = (mean - self.running_mean) / sigma
        r = torch.clamp(r, min=torch.as_tensor(1 / r_max).to(r), max=torch.as_tensor(r_max).to(r))
        return r, torch.clamp(d, min=torch.as_tensor(-d_max).to(d), max=torch.as_tensor(d_max).to(d))

    def _keep(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
