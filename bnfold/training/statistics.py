"""The running statistics of norms, measured over a data set: exact for batches of any sizes, in float64.

A norm here is any module with the buffers `running_mean` and `running_var`, (C,): batch norm, SyncBatchNorm, a frozen
or hand-written one. Instance norm is left alone: its statistics are of another kind. Batches of unequal sizes are
pooled by what they hold, as Chan, Golub and LeVeque do (1983, The American Statistician 37): E[x^2] - E[x]^2 loses all
its digits, and its sign, where the mean is large beside the deviation.

A norm's statistics depend on what stands before it, so that "the statistics over a data set" can mean three things:
"batch"  every norm normalises each batch by that batch, as in training. One pass; the statistics are those of what each
         norm saw (precise batch norm: Wu and Johnson 2021, arXiv 2105.07576).
"exact"  every norm normalises by the statistics, over all data, of what it sees once all norms before it do so. One
         pass for each norm, in the order in which they are called; the size of the batches does not matter.
"eval"   every norm normalises by the statistics that it has. One pass; what a network that is in use sees.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from bnfold.errors import DataError

Meaning: TypeAlias = Literal["batch", "exact", "eval"]
Seen: TypeAlias = Callable[[str, torch.Tensor], None]

_BLOCK = 1 << 22  # elements in float64 at a time


@dataclass
class Moments:
    """Count, mean and sum of squared deviations by channel, (C,) float64, of all that was added. Empty at first."""

    count: int = 0
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    squares: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def add(self, x: torch.Tensor) -> None:
        """Add the values of x (N, C, ...)."""
        rows = max(1, _BLOCK // max(1, x[:1].numel()))
        for start in range(0, len(x), rows):
            part = x[start : start + rows].detach().to(torch.float64).transpose(0, 1).flatten(1)
            mean = part.mean(1)
            self.join(Moments(part.shape[1], mean, (part - mean[:, None]).square().sum(1)))

    def join(self, other: Moments) -> None:
        """Add what another has counted."""
        if self.count == 0:
            self.count, self.mean, self.squares = other.count, other.mean, other.squares
        elif other.count:
            count = self.count + other.count
            step = other.mean - self.mean
            self.mean = self.mean + step * (other.count / count)
            self.squares = self.squares + other.squares + step.square() * (self.count / count * other.count)
            self.count = count

    def variance(self, correction: int = 1) -> torch.Tensor:
        """(C,) float64; divided by count - 1 by default, as torch's running_var is (Bessel)."""
        return self.squares / (self.count - correction)


def norms_of(module: nn.Module) -> dict[str, nn.Module]:
    """The norms with running statistics, by name, one that has several names by the first."""
    return {name: part for name, part in module.named_modules() if _is_norm(part)}


def _is_norm(part: nn.Module) -> bool:
    mean, variance = getattr(part, "running_mean", None), getattr(part, "running_var", None)
    return (
        isinstance(mean, torch.Tensor)
        and isinstance(variance, torch.Tensor)
        and mean.ndim == variance.ndim == 1
        and mean.shape == variance.shape
        and not isinstance(part, nn.modules.instancenorm._InstanceNorm)
    )


def measure(module: nn.Module, batches: Sequence[torch.Tensor], meaning: Meaning = "batch") -> dict[str, Moments]:
    """What each norm sees over the batches, by name; the module is left as it was found.

    batches: inputs (N, ...), read again for each pass; they are moved to where the module is. A norm that is called
    several times counts all that it sees; one that is never called has a count of 0.

    Raises DataError for a batch that leaves a norm one value a channel (meaning "batch" only: it has no variance), and
    for a norm that is called twice where the meaning is "exact": what it sees then depends on what it is to be given.
    """
    with _kept_as_it_was(module), torch.no_grad():
        module.eval()
        return _exact(module, batches) if meaning == "exact" else _one_pass(module, batches, meaning == "batch")


def recalibrate(
    module: nn.Module, batches: Sequence[torch.Tensor], meaning: Literal["batch", "exact"] = "batch"
) -> dict[str, Moments]:
    """Give every norm the statistics of the batches, in place; gives what was measured, by name.

    running_mean is the mean and running_var the variance over count - 1, each rounded once to the buffer's dtype. A
    norm that is never called keeps its own, and num_batches_tracked stays. Nothing is changed where a DataError is
    raised: as in `measure`, and for values that are not finite or that do not fit the buffer.
    """
    measured = measure(module, batches, meaning)
    norms = norms_of(module)
    found = {name: _buffers(norms[name], moments, name) for name, moments in measured.items() if moments.count}
    for name, (mean, variance) in found.items():
        _put(norms[name], mean, variance)
    return measured


def _buffers(norm: Any, moments: Moments, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if moments.count < 2:
        raise DataError(f"norm '{name}' sees one value a channel in all data, expected 2 or more; give more samples")
    mean, variance = moments.mean.to(norm.running_mean), moments.variance().to(norm.running_var)
    if not bool(mean.isfinite().all() and variance.isfinite().all()):
        raise DataError(
            f"norm '{name}' sees values whose mean or variance is not a finite {norm.running_var.dtype}; expected "
            "finite ones; look for the samples or the weights that are not, nothing was changed"
        )
    return mean, variance


def _put(norm: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    with torch.no_grad():
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@contextlib.contextmanager
def _kept_as_it_was(module: nn.Module) -> Iterator[None]:
    """Put back statistics and modes at the end, whatever happens."""
    buffers = [(norm, norm.running_mean.clone(), norm.running_var.clone()) for norm in _norms(module)]
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for norm, mean, variance in buffers:
            _put(norm, mean, variance)
        for part, training in modes:
            part.training = training


def _norms(module: nn.Module) -> list[Any]:
    return list(norms_of(module).values())


def _one_pass(module: nn.Module, batches: Sequence[torch.Tensor], by_batch: bool) -> dict[str, Moments]:
    norms = norms_of(module)
    found = {name: Moments() for name in norms}

    def see(name: str, x: torch.Tensor) -> None:
        batch = Moments()
        batch.add(x)
        found[name].join(batch)
        if by_batch:
            if batch.count < 2:
                raise DataError(
                    f"a batch leaves norm '{name}' one value a channel, which has no variance; expected 2 or more; "
                    "give larger batches, or ask for the exact statistics"
                )
            # In eval mode with the batch's own statistics: any norm, SyncBatchNorm on a CPU too, and no dropout.
            _put(norms[name], batch.mean, batch.variance(0))

    _run(module, batches, see)
    return found


class _ReachedError(Exception):
    """The norm that a pass is about has seen its input: the rest of the network has nothing to tell."""


def _exact(module: nn.Module, batches: Sequence[torch.Tensor]) -> dict[str, Moments]:
    norms = norms_of(module)
    found = {name: Moments() for name in norms}
    for name in _order(module, batches):
        moments = found[name]

        def see(which: str, x: torch.Tensor, wanted: str = name, moments: Moments = moments) -> None:
            if which == wanted:
                moments.add(x)
                raise _ReachedError

        _run(module, batches, see)
        _put(norms[name], moments.mean, moments.variance(1 if moments.count > 1 else 0))
    return found


def _order(module: nn.Module, batches: Sequence[torch.Tensor]) -> list[str]:
    """The norms in the order in which they are called."""
    called: list[str] = []
    _run(module, batches[:1], lambda name, _: called.append(name))
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"norm '{twice}' is called {called.count(twice)} times, so that what it sees depends on its own "
            "statistics; expected once for exact ones; take those of one pass"
        )
    return called


def _run(module: nn.Module, batches: Sequence[torch.Tensor], see: Seen) -> None:
    """The batches through the module, each norm's input shown before the norm is called."""
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        for name, norm in norms_of(module).items():
            stack.enter_context(_watched(name, norm, see))
        for batch in batches:
            with contextlib.suppress(_ReachedError):
                module(batch.to(device))


@contextlib.contextmanager
def _watched(name: str, norm: Any, see: Seen) -> Iterator[None]:
    channels = len(norm.running_mean)

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0] if inputs else None
        if not isinstance(x, torch.Tensor) or x.ndim < 2 or x.shape[1] != channels or not math.prod(x.shape):
            found = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise DataError(
                f"norm '{name}' is called with {found}, expected (N, {channels}, ...); "
                "its statistics cannot be measured; leave it out of the network"
            )
        see(name, x)

    handle = norm.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
