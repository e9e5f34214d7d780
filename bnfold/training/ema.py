"""The exponential moving average of a network."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a network whose weights and statistics follow it: average <- decay * average + (1 - decay) * network.

    The running statistics of its norms are averaged like the weights: those of the network belong to other weights.
    Integer buffers are copied. The first steps have the smaller decay (1 + step) / (10 + step), so that the initial
    weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after a step; step: of the whole training, from 1."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        seen: set[int] = set()  # a tensor that two layers share has two names
        for mine, theirs in zip(_tensors(self.network), _tensors(network), strict=True):
            if id(mine) in seen:
                continue
            seen.add(id(mine))
            if mine.is_floating_point():
                mine.lerp_(theirs, weight)
            else:
                mine.copy_(theirs)


def _tensors(network: nn.Module) -> list[torch.Tensor]:
    """Of the state dict, each as the very object that the layers hold."""
    return list(network.state_dict(keep_vars=True).values())
