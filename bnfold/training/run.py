"""A training under way: all that its next step depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from bnfold.training.data import Array
from bnfold.training.distributed import ALONE, Group
from bnfold.training.ema import Average
from bnfold.training.optimizers import build_optimizer
from bnfold.training.recipe import Recipe
from bnfold.training.trends import NUMBERS, Trends, norm_names


@dataclass(frozen=True)
class Epoch:
    """One row of the history. Losses are mean cross-entropies in nats, accuracies shares of 1, seconds wall-clock."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    held_out_loss: float
    held_out_accuracy: float
    seconds: float


@dataclass
class Run:
    """generator: of the order of the data and of the augmentation. kept: the state dict that the checkpoint will have.

    history: one row for each epoch that is done, all of finite losses. norms: (epochs, norms, numbers) float64 on the
    CPU, the numbers of every norm after each of them. group: the processes that train together.
    """

    recipe: Recipe
    device: torch.device
    network: nn.Module
    average: Average | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    history: list[Epoch] = field(default_factory=list)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, len(NUMBERS), dtype=torch.float64))
    group: Group = ALONE

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and saved."""
        return self.network if self.average is None else self.average.network

    @property
    def kept_epoch(self) -> int:
        """The epoch of the weights that are kept; 0 before the first one is done."""
        return best_epoch(self.history) if self.recipe.train.keep == "best" else len(self.history)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or the patience is at its end."""
        wanted, done = self.recipe.train, len(self.history)
        return done >= wanted.epochs or 0 < wanted.patience <= done - best_epoch(self.history)

    @property
    def trends(self) -> Trends:
        """What the epochs that are done made of every norm."""
        return Trends(norm_names(self.judged), self.norms.numpy(), self.recipe.train.epochs)

    def add(self, row: Epoch, norms: Array) -> None:
        """An epoch is done: remember it, the numbers of its norms, and its weights where they are to be kept."""
        self.history.append(row)
        numbers = torch.from_numpy(norms)[None]
        self.norms = torch.cat([self.norms, numbers]) if len(self.norms) else numbers
        if self.kept_epoch == row.epoch:
            self.kept = {name: tensor.detach().clone() for name, tensor in self.judged.state_dict().items()}


def begin(network: nn.Module, recipe: Recipe, device: torch.device, group: Group = ALONE) -> Run:
    """The state before the first step; the network is moved to the device in place."""
    network = group.synchronised(network.to(device), device)
    if recipe.train.channels_last:
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.ndim == 4:  # kernels of three dimensions have another format, and may stand beside these
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return Run(
        recipe=recipe,
        device=device,
        network=network,
        average=Average(network, recipe.train.ema) if recipe.train.ema else None,
        optimizer=build_optimizer(network, recipe.optimizer),
        generator=torch.Generator().manual_seed(recipe.seed),
        group=group,
    )


def best_epoch(history: Sequence[Epoch]) -> int:
    """The epoch of the highest held-out accuracy; of equal ones the lowest loss, then the first. 0 for none."""
    best = max(history, key=lambda row: (row.held_out_accuracy, -row.held_out_loss), default=None)
    return 0 if best is None else best.epoch
