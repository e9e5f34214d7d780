"""What training makes of every norm, epoch by epoch, from its parameters and buffers alone: no sample is looked at.

A norm is what `bnfold.training.statistics.norms_of` finds. Its scale and shift are its `weight` and `bias`, 1 and 0
where it has none of its channels.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bnfold.training.data import Array
from bnfold.training.statistics import norms_of

EPS = 1e-5  # of a norm that does not tell its own
DEAD = 1e-3  # the standard deviation of a channel's output from which on it counts as alive
SIGMAS = 6.0  # standard deviations from the mean that the largest of very many values are taken to have

# y = a * x + b, where a = gamma / sqrt(running_var + eps) and b = beta - a * running_mean; always of the worst channel.
NUMBERS: Mapping[str, str] = {
    "smallest_variance": "of running_var",
    "max_scale": "the largest |a|",
    "max_shift": "the largest |b|",
    "input_reach": f"the largest |running_mean| + {SIGMAS:g} standard deviations: what it takes in",
    "output_reach": f"the largest |beta| + {SIGMAS:g} |gamma|: what it gives",
    "smallest_spread": "the smallest standard deviation of what it gives, |gamma| sqrt(var / (var + eps))",
    "dead": f"channels where that is below {DEAD:g}",
    "eps_share": "the largest eps / (running_var + eps)",
    "mean_drift": "|change of running_mean| in an epoch, in standard deviations before it; root mean square",
    "variance_drift": "e to the root mean square of the change of ln(running_var + eps); 1 for none",
}


@dataclass(frozen=True)
class Trends:
    """The numbers of a training. values: (epochs, norms, numbers) float64, in the order of `names` and of NUMBERS.

    planned: the epochs of the recipe, which a training that is stopped early does not reach.
    """

    names: tuple[str, ...]
    values: Array
    planned: int

    def of(self, norm: int, number: str) -> Array:
        """One number of one norm, epoch by epoch."""
        return self.values[:, norm, list(NUMBERS).index(number)]


@dataclass(frozen=True)
class Channels:
    """Of all norms, one behind the other, each (channels of all,) float64. starts: where each norm begins."""

    mean: Array
    variance: Array
    gamma: Array
    beta: Array
    eps: Array
    starts: Array

    def each(self, reduced: np.ufunc, values: Array) -> Array:
        """(norms,): the values of each norm made one."""
        return np.asarray(reduced.reduceat(values, self.starts))

    def root_mean_square(self, values: Array) -> Array:
        """(norms,)"""
        counts = np.diff(np.append(self.starts, len(values)))
        return np.sqrt(self.each(np.add, values**2) / counts)


def norm_names(network: nn.Module) -> tuple[str, ...]:
    """The norms that are followed, in the order of the network."""
    return tuple(_followed(network))


def channels_of(network: nn.Module) -> Channels | None:
    """What the norms hold now, copied; in one transfer from the device. None where there is no norm."""
    norms = list(_followed(network).values())
    if not norms:
        return None
    device = norms[0].running_mean.device  # what is no buffer may have stayed elsewhere
    rows = [
        torch.cat([_values(norm, name, default).to(device, torch.float64) for norm in norms])
        for name, default in (("running_mean", 0.0), ("running_var", 1.0), ("weight", 1.0), ("bias", 0.0))
    ]
    mean, variance, gamma, beta = torch.stack(rows).cpu().numpy()
    counts = [len(norm.running_mean) for norm in norms]
    eps = np.repeat([eps_of(norm) for norm in norms], counts)
    return Channels(mean, variance, gamma, beta, eps, np.cumsum([0, *counts[:-1]]))


def eps_of(norm: nn.Module) -> float:
    """What a norm adds to its variance, as far as it tells in a number."""
    eps = getattr(norm, "eps", EPS)
    return float(eps) if isinstance(eps, int | float) else EPS


def norm_numbers(before: Channels | None, now: Channels | None) -> Array:
    """(norms, numbers) float64 of an epoch, from what the norms held before and after it. Not finite where they are."""
    if before is None or now is None:
        return np.zeros((0, len(NUMBERS)))
    with np.errstate(all="ignore"):
        seen = now.variance + now.eps
        deviation = np.sqrt(now.variance)
        a = now.gamma / np.sqrt(seen)
        spread = np.abs(now.gamma) * np.sqrt(now.variance / seen)
        old = before.variance + before.eps
        numbers = {
            "smallest_variance": now.each(np.minimum, now.variance),
            "max_scale": now.each(np.maximum, np.abs(a)),
            "max_shift": now.each(np.maximum, np.abs(now.beta - a * now.mean)),
            "input_reach": now.each(np.maximum, np.abs(now.mean) + SIGMAS * deviation),
            "output_reach": now.each(np.maximum, np.abs(now.beta) + SIGMAS * np.abs(now.gamma)),
            "smallest_spread": now.each(np.minimum, spread),
            "dead": now.each(np.add, (spread < DEAD).astype(np.float64)),
            "eps_share": now.each(np.maximum, now.eps / seen),
            "mean_drift": now.root_mean_square((now.mean - before.mean) / np.sqrt(old)),
            "variance_drift": np.exp(now.root_mean_square(np.log(seen / old))),
        }
    return np.stack([numbers[name] for name in NUMBERS], axis=1)


def write_trends(path: Path, trends: Trends) -> None:
    """norms.csv: a row an epoch and norm."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "norm", *NUMBERS])
        for epoch, norms in enumerate(trends.values, start=1):
            for name, values in zip(trends.names, norms, strict=True):
                writer.writerow([epoch, name, *(f"{value:.6g}" for value in values)])


def is_trends(text: str, names: Collection[str]) -> bool:
    """Whether a text is what `write_trends` writes of some norms."""
    try:
        head, *rows = csv.reader(text.splitlines())
        numbers = [[float(cell) for cell in (epoch, *cells)] for epoch, _, *cells in rows]
    except (ValueError, csv.Error):
        return False
    whole = all(len(row) == 1 + len(NUMBERS) for row in numbers)
    return head == ["epoch", "norm", *NUMBERS] and whole and {row[1] for row in rows} <= set(names)


def _followed(network: nn.Module) -> dict[str, Any]:
    return {name: norm for name, norm in norms_of(network).items() if norm.running_mean.numel()}  # type: ignore[operator]


def _values(norm: Any, name: str, default: float) -> torch.Tensor:
    found = getattr(norm, name, None)
    if isinstance(found, torch.Tensor) and found.shape == norm.running_mean.shape:
        return found.detach()
    return torch.full_like(norm.running_mean, default)
