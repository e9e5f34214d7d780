"""The training loop: one device, whole data set on it, augmentation there too, the same code on CPU and CUDA."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bnfold.errors import DataError
from bnfold.training.data import Array, Dataset, prepare
from bnfold.training.recipe import Optimizer, Recipe

Progress = Callable[[str], None]


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


def choose_device(name: str) -> torch.device:
    """cpu, cuda, or auto: CUDA where there is a device. Raises DataError when CUDA is asked for and absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise DataError(f"device '{name}' is not known; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device 'cuda' was asked for, but torch finds no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def fit(network: nn.Module, data: Dataset, recipe: Recipe, device: torch.device, progress: Progress) -> list[Epoch]:
    """Train a network in place; gives the history, one row an epoch.

    The order of the data and the augmentation come from the recipe's seed alone. Raises DataError when the loss is no
    longer finite.
    """
    network.to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, classes = _on_device(*data.training_part(), data, device)
    held_out = _on_device(*data.held_out_part(), data, device)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(network, recipe.optimizer)
    batches = _batches(len(images), recipe.train.batch_size)
    schedule = _schedule(optimizer, recipe, steps=recipe.train.epochs * len(batches))
    history = []
    for epoch in range(1, recipe.train.epochs + 1):
        start = time.perf_counter()
        network.train()
        order = torch.randperm(len(images), generator=generator)
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), device=device)
        rate = optimizer.param_groups[0]["lr"]
        for batch in batches:
            index = order[batch].to(device)
            x = _shifted(images[index], recipe.augmentation.shift, generator)
            logits = network(x)
            loss = F.cross_entropy(logits, classes[index], label_smoothing=recipe.train.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(index)
            correct += (logits.detach().argmax(1) == classes[index]).sum()
        mean_loss = float(loss_sum) / len(images)
        loss_out, accuracy_out = evaluate(network, *held_out)
        _check_finite(recipe.name, epoch, {"loss": mean_loss, "held-out loss": loss_out})
        seconds = time.perf_counter() - start
        row = Epoch(epoch, rate, mean_loss, float(correct) / len(images), loss_out, accuracy_out, seconds)
        history.append(row)
        progress(
            f"epoch {epoch}/{recipe.train.epochs}  loss {mean_loss:.4f}  held-out accuracy {accuracy_out:.2%}  "
            f"{len(images) / seconds:.0f} images/s"
        )
    return history


def _on_device(images: Array, classes: Array, data: Dataset, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(prepare(images, data.preprocessing)).to(device), torch.from_numpy(classes).to(device)


def _check_finite(name: str, epoch: int, losses: Mapping[str, float]) -> None:
    # The last step of an epoch can break the network while its own loss is still finite: only the held-out one tells.
    for which, value in losses.items():
        if not math.isfinite(value):
            raise DataError(
                f"recipe '{name}': the {which} became {value} in epoch {epoch}, expected a finite one; "
                "lower optimizer.learning_rate; no checkpoint was written"
            )


def evaluate(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in eval mode. images: (N, ...); classes: (N,)."""
    network.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(images), 1024):
            part = slice(start, start + 1024)
            logits = network(images[part])
            loss += float(F.cross_entropy(logits, classes[part], reduction="sum"))
            correct += int((logits.argmax(1) == classes[part]).sum())
    return loss / len(images), correct / len(images)


def _batches(count: int, size: int) -> list[slice]:
    """Slices of the shuffled data. A last batch of 1 joins the one before: batch norm cannot train on one sample."""
    starts = list(range(0, count, size))
    if count - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True)]


def _optimizer(network: nn.Module, wanted: Optimizer) -> torch.optim.Optimizer:
    """Weight decay on matrices and kernels only: norms and biases are vectors."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": wanted.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if wanted.kind == "adamw":
        return torch.optim.AdamW(groups, lr=wanted.learning_rate, betas=(wanted.momentum, 0.999))
    return torch.optim.SGD(groups, lr=wanted.learning_rate, momentum=wanted.momentum, nesterov=wanted.momentum > 0)


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, *, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate's factor by step: up over the first fifth and down to zero, a half cosine, or always 1."""

    def one_cycle(step: int) -> float:
        peak = max(1, steps // 5)
        return (step + 1) / peak if step < peak else max(0.0, (steps - step) / max(1, steps - peak))

    factors: dict[str, Callable[[int], float]] = {
        "one_cycle": one_cycle,
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)),
        "constant": lambda _: 1.0,
    }
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors[recipe.train.schedule])


def _shifted(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Each image (N, C, H, W) moved by up to `most` pixels in each direction; zeros come in."""
    if most == 0:
        return images
    count, _, height, width = images.shape
    offsets = torch.randint(0, 2 * most + 1, (2, count), generator=generator).to(images.device)
    padded = F.pad(images, (most, most, most, most))
    rows = (offsets[0][:, None] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offsets[1][:, None] + torch.arange(width, device=images.device))[:, None, None, :]
    samples = torch.arange(count, device=images.device)[:, None, None, None]
    channels = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return padded[samples, channels, rows, columns]
