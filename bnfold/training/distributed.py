"""One training in several processes, as torchrun starts them: each takes a share of every batch, and all take the step
that one process would take on the whole of it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bnfold.errors import DataError, first_line
from bnfold.training.networks.batch_renorm import BatchRenorm
from bnfold.training.networks.handwritten import HandwrittenBatchNorm
from bnfold.training.recipe import Recipe

_FAREWELL = timedelta(seconds=60)


class LeftAlone(DataError):
    """A process cannot go on, as others do not answer. What happened to them is theirs to say."""


@dataclass(frozen=True)
class Group:
    """The processes of a training. Alone, every method gives back what it was given."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def smallest_batch(self) -> int:
        """Batch norm cannot train on one sample, and no process may be left without any."""
        return max(2, self.size)

    def share(self, whole: torch.Tensor) -> torch.Tensor:
        """The samples of a batch for this process; where it cannot be divided some processes have one more."""
        return whole if self.size == 1 else whole.tensor_split(self.size)[self.rank]

    def part_of_mean(self, mean: torch.Tensor, samples: int, of: int) -> torch.Tensor:
        """The mean over a share of a batch, so weighted that the sum over the processes is the mean of the batch."""
        return mean if self.size == 1 else mean * (samples / of)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the processes."""
        return x if self.size == 1 else _all_reduced(x)

    def of_first(self, x: torch.Tensor) -> torch.Tensor:
        """What the first process has."""
        return self.total(x if self.is_first else torch.zeros_like(x))

    def add_gradients(self, network: nn.Module) -> None:
        """Every gradient becomes its sum over the processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        summed = _all_reduced(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, torch.split(summed, [each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def heard(self, text: str, device: torch.device) -> str:
        """What the first process says. The others wait for it, so that it is also where they meet."""
        if self.size == 1:
            return text
        said = text.encode()
        length = torch.tensor(len(said) if self.is_first else 0, device=device)
        length = _all_reduced(length)
        letters = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.is_first:
            letters.copy_(torch.tensor(list(said), dtype=torch.uint8))
        return bytes(_all_reduced(letters).tolist()).decode()

    def synchronised(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with norms whose statistics are those of the whole batch; names and weights stay.

        Raises DataError for a norm that would take those of its share.
        """
        if self.size == 1:
            return network
        for name, module in network.named_modules():
            if isinstance(module, BatchRenorm | HandwrittenBatchNorm):
                module.statistics = pooled_statistics
            if _keeps_to_itself(module):
                raise DataError(
                    f"the norm '{name}' ({type(module).__name__}) cannot train in {self.size} processes, as what it "
                    "does with the statistics of one only is not known; take one of torch's batch norms, or train in "
                    "one process"
                )
        pool = nn.SyncBatchNorm.convert_sync_batchnorm if device.type == "cuda" else PooledBatchNorm.of
        pooled: dict[nn.Module, nn.Module] = {}
        # By every name: one that stands in two places stands in both of them afterwards.
        for name, norm in list(network.named_modules(remove_duplicate=False)):
            if isinstance(norm, _BatchNorm):
                pooled[norm] = pooled.get(norm) or pool(norm)
                network.set_submodule(name, pooled[norm])
        return network


def _keeps_to_itself(module: nn.Module) -> bool:
    """Whether a norm of the user's own has running statistics by other rules than those of torch's batch norms."""
    if isinstance(module, _BatchNorm):
        return type(module).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    return isinstance(module, _InstanceNorm) and module.track_running_stats


ALONE = Group()


@contextlib.contextmanager
def processes(recipe: Recipe, device: torch.device) -> Iterator[Group]:
    """The processes that torchrun says there are, joined: over gloo on the CPU, over nccl on CUDA, a device each.

    Raises DataError when they cannot meet, or when a recipe is not for several.
    """
    rank, size, local = (_variable(name, least) for name, least in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    if rank is None or size is None or size == 1:
        yield ALONE
        return
    _check(recipe, size)
    if device.type == "cuda":
        if (local or 0) >= torch.cuda.device_count():
            raise DataError(
                f"there are {torch.cuda.device_count()} CUDA devices for process {local} of this machine, counted from "
                "0; start as many as there are devices, with torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local or 0)
    try:
        store, _, _ = next(rendezvous("env://"))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as problem:
        raise LeftAlone(f"process {rank} of {size} cannot join the others: {_reason(problem)}") from None
    try:
        yield Group(rank, size)
        _wait_for_all(store, size)
    finally:
        dist.destroy_process_group()


def _wait_for_all(store: Any, size: int) -> None:
    """Until every process is done, so that none closes its connections while another still sums up over them.

    store: of torch.distributed, at which they met.
    """
    with contextlib.suppress(RuntimeError):  # whatever becomes of the others now, the training is over
        if store.add("bnfold/done", 1) == size:
            store.set("bnfold/all done", "1")
        store.wait(["bnfold/all done"], _FAREWELL)


def is_first_process() -> bool:
    """Whether this process is the one that says what came of a training; a process alone is."""
    return os.environ.get("RANK", "0") == "0"


def command_words() -> list[str]:
    """What `bnfold` is on the command line that starts as many processes as there are."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["bnfold"]
    machines, processes_each = (os.environ.get(name, "1") for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    several = [f"--nnodes={machines}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:PORT"]
    where = ["--standalone"] if machines == "1" else several
    return ["torchrun", *where, f"--nproc-per-node={processes_each}", "-m", "bnfold"]


def _check(recipe: Recipe, size: int) -> None:
    if recipe.train.batch_size < size:
        raise DataError(
            f"train.batch_size is {recipe.train.batch_size}, of all {size} processes together; expected {size} or "
            "more; set a larger one or start fewer processes"
        )
    if recipe.train.compile or recipe.train.cuda_graphs:
        raise DataError(
            f"train.compile and train.cuda_graphs are for one process, and {size} were started; set both to false"
        )


def _variable(name: str, least: int) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise DataError(
            f"the environment variable {name} is '{text:.40}', expected a whole number from {least}, as torchrun sets "
            "it; start with torchrun or unset it"
        )
    return int(text)


def _all_reduced(x: torch.Tensor) -> torch.Tensor:
    summed = x.detach().clone(memory_format=torch.contiguous_format)
    try:
        dist.all_reduce(summed)
    except RuntimeError as problem:
        raise LeftAlone(
            f"the exchange with the other processes failed: {_reason(problem):.200}; see what the process "
            "that ended first says"
        ) from None
    return summed


def _reason(problem: Exception) -> str:
    """The first sentence, without the line of torch's own source."""
    return re.sub(r"^\[[^]]*\.cc:\d+\] ", "", first_line(problem)).partition(". ")[0]


class _Total(torch.autograd.Function):
    """The sum over the processes. Each has it, so that the gradient of a part is the sum of the gradients of all."""

    @staticmethod
    def forward(_context: Any, x: torch.Tensor) -> torch.Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _all_reduced(gradients[0])


class PooledBatchNorm(_BatchNorm):
    """Batch norm by the statistics of the samples of all processes; torch's SyncBatchNorm has no forward on the CPU.

    First the mean of all, then the squares of what is left without it: exact where E[x²] - E[x]² is not. Shares may
    differ in size. Eval is batch norm.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> PooledBatchNorm:
        """In place of a plain one, with the very same parameters and buffers."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        return made.train(norm.training)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm needs (N, C) or (N, C, *space), found {tuple(input.shape)}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) or (N, C, *space), of which N may be another in every process."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, variance, count = pooled_statistics(x, torch.float32 if x.dtype == torch.bfloat16 else x.dtype)
        self._keep(mean.detach(), variance.detach() * (count / (count - 1)))
        y = (x - mean.reshape(shape)) * torch.rsqrt(variance + self.eps).reshape(shape)
        if self.affine:
            y = y * self.weight.reshape(shape) + self.bias.reshape(shape)
        return y.to(x.dtype)

    def _keep(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def pooled_statistics(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and biased variance (C,) in `dtype` over all processes, and how many values of a channel they are of."""
    x = x.to(dtype)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    here = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64, device=x.device)
    totals = _total(torch.cat([x.sum(axes).double(), here]))
    count = round(float(totals[-1].detach()))
    mean = (totals[:-1] / count).to(dtype)
    squares = (x - mean.reshape(1, -1, *[1] * (x.ndim - 2))).square().sum(axes)
    return mean, (_total(squares.double()) / count).to(dtype), count


def _total(x: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
    return total
