"""Where and in which arithmetic a network trains."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from bnfold.errors import DataError, first_line
from bnfold.training.recipe import Recipe, Train

Forward = Callable[[torch.Tensor], torch.Tensor]


def choose_device(name: str) -> torch.device:
    """cpu, cuda, or auto: CUDA where there is a device. Raises DataError when CUDA is asked for and absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise DataError(f"device '{name}' is not known; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device 'cuda' was asked for, but torch finds no CUDA device; use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def settings(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """What is global in torch, as the recipe says it, and put back afterwards: threads, TF32, random numbers."""
    threads, on_cuda = torch.get_num_threads(), device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_cuda else []),
        tf32(recipe.train.tf32) if on_cuda else contextlib.nullcontext(),
    ):
        try:
            torch.manual_seed(recipe.seed)  # of what a network draws while it trains, such as dropout
            torch.set_num_threads(recipe.train.threads)
            yield
        finally:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Products and convolutions of float32 in TF32 on CUDA, or not.

    By the older of torch's two settings: putting back the newer one (fp32_precision) changes convolutions on the CPU.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def autocast(train: Train, device: torch.device) -> torch.autocast:
    """The context of the forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16")


def forward_of(network: nn.Module, train: Train, device: torch.device) -> Forward:
    """The forward pass of a training step, compiled where the recipe says so. What it gives lasts until the next call.

    Raises DataError, at its first call too, where the network or the machine does not let itself be compiled.
    """
    graphs = train.cuda_graphs and device.type == "cuda"
    if not train.compile and not graphs:
        return network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the compiler's own modules, when they are imported
        # Two shapes at most: the last batch of an epoch may be another.
        compiled = torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else "default")

    def forward(x: torch.Tensor) -> torch.Tensor:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            logits: torch.Tensor = compiled(x)
        except torch._dynamo.exc.TorchDynamoException as problem:
            raise DataError(
                f"the network cannot be compiled: {first_line(problem)}; install what the compiler lacks, or set "
                "train.compile=false and train.cuda_graphs=false"
            ) from None
        return logits

    return forward
