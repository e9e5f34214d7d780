"""The search for the worst input by projected gradient ascent in float64. Needs torch.

Every row climbs by itself: a step of the sign of its gradient (Goodfellow, Shlens and Szegedy 2015), back into the
data's range, shorter from step to step (Madry et al. 2018, without its ball). What a row climbs is the logarithm of

    |first(x) - second(x)|²                              or, to change a decision,
    |first(x) - second(x)|² / (largest - second largest output)²

In float64 both are the difference of the two models' coefficients alone: a right fold leaves the rounding of its
weights, a wrong one what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from bnfold.parity.torch_float64 import TorchGraph

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]
Ranges = Mapping[str, tuple[float, float]]
Tensors = Mapping[str, torch.Tensor]

FIRST_STEP, LAST_STEP = 0.5, 0.004  # of the range: half of it, and about one of the 256 shades of an image
_LEAST = 1e-300  # added before a logarithm


@dataclass(frozen=True, eq=False)
class Ascent:
    """Where the rows got to. inputs: by name, (n, ...) of float64; steps: how many were taken."""

    inputs: dict[str, F64]
    steps: int


def graphs(*models: onnx.ModelProto) -> tuple[TorchGraph, ...]:
    """Models ready to search in. Raises ParityError for an operator that the torch evaluation does not know."""
    return tuple(TorchGraph(model) for model in models)


def gradient_search(
    first: TorchGraph, second: TorchGraph, starts: Mapping[str, Array], ranges: Ranges, *, steps: int,
    deadline: float = float("inf"), decided: str | None = None,
) -> Ascent:  # fmt: skip
    """Seek inputs where two graphs differ most. starts: by name, (n, ...); ranges: (low, high) by name.

    decided: the output (n, classes) whose margin the difference is to be compared with. deadline: of time.monotonic;
    one step is always taken. The same starts and steps give the same inputs.
    """
    inputs = {name: torch.from_numpy(np.array(array, np.float64)) for name, array in starts.items()}
    rows = len(next(iter(inputs.values())))
    best = {name: tensor.clone() for name, tensor in inputs.items()}
    highest = torch.full((rows,), -torch.inf, dtype=torch.float64)
    taken = 0
    for step in range(steps + 1):
        score, gradients = _climb(first, second, inputs, decided)
        better = score > highest
        highest = torch.where(better, score, highest)
        best = {name: torch.where(_rowwise(better, x), x, best[name]) for name, x in inputs.items()}
        if step == steps or (step and time.monotonic() > deadline):
            break
        share = FIRST_STEP * (LAST_STEP / FIRST_STEP) ** (step / max(1, steps - 1))
        inputs = {name: _stepped(x, gradients[name], ranges[name], share) for name, x in inputs.items()}
        taken = step + 1
    return Ascent({name: tensor.numpy() for name, tensor in best.items()}, taken)


def _stepped(x: torch.Tensor, gradient: torch.Tensor, limits: tuple[float, float], share: float) -> torch.Tensor:
    low, high = limits
    direction = torch.nan_to_num(torch.sign(gradient), nan=0.0)
    return torch.clamp(x + share * (high - low) * direction, low, high)


def _rowwise(mask: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return mask.reshape(-1, *(1,) * (x.ndim - 1))


def _climb(
    first: TorchGraph, second: TorchGraph, inputs: Tensors, decided: str | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The score of each row and its gradient."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    score = _scores(first(leaves), second(leaves), len(next(iter(leaves.values()))), decided)
    if not score.requires_grad:
        return score.detach(), {name: torch.zeros_like(x) for name, x in leaves.items()}
    found = torch.autograd.grad(score.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return score.detach(), dict(zip(leaves, found, strict=True))


def _scores(first: Tensors, second: Tensors, rows: int, decided: str | None) -> torch.Tensor:
    """Of each row: the mean square difference of every output, relative to the output's own size, summed up."""
    total = torch.zeros(rows, dtype=torch.float64)
    for name, left in first.items():
        right = second[name]
        if not left.is_floating_point() or left.ndim == 0 or left.shape[0] != rows:
            continue
        size = right.detach().square().mean().clamp(min=_LEAST)
        total = total + ((left - right).square() / size).reshape(rows, -1).mean(1)
    score = torch.log(total + _LEAST)
    if decided is None:
        return score
    top = torch.topk(second[decided], 2, dim=1).values
    return score - 2 * torch.log(top[:, 0] - top[:, 1] + _LEAST)
