"""A network that the user's own code gives: `module:factory`, called with (shape, classes) and the keys of the recipe.

What it gives is tried before it is trained: code from elsewhere keeps no rule that nobody checks.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bnfold.errors import BnfoldError, DataError, said
from bnfold.factories import call, find, is_spec
from bnfold.training.fields import Faults

_MOST_ITEMS = 1024
_PLAIN = f"true or false, a text, a finite number of up to 64 bits, or a list of up to {_MOST_ITEMS} of these"


def read_arguments(values: Mapping[str, object], faults: Faults) -> dict[str, Any]:
    """The keyword arguments of a factory, as TOML and JSON both have them. Raises what `faults` raises."""
    for name, value in values.items():
        if not (name.isidentifier() and name.isascii()):
            faults.refused(name, value, "a key that Python takes as the name of an argument")
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > _MOST_ITEMS or not all(_is_plain(item) for item in items):
            faults.refused(name, value, _PLAIN)
    return {name: list(value) if isinstance(value, list | tuple) else value for name, value in values.items()}


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, bool | str) or (type(value) is int and -(2**63) <= value < 2**63)


def make_network(
    spec: str, shape: Sequence[int], classes: int, arguments: Mapping[str, Any], places: Sequence[Path]
) -> nn.Module:
    """The network of a factory. shape: of one input, without the batch; places: as for `bnfold.factories.make`.

    Raises DataError for code that fails, and for anything but a module that gives (N, classes) finite floats for N
    inputs in eval and lets itself be copied and saved.
    """
    what = f"the network {spec}"
    with torch.random.fork_rng(devices=[]):  # what a module draws when it is imported is not drawn again
        factory = find(spec, what, places)
    made = call(factory, what, (tuple(shape), classes), copy.deepcopy(dict(arguments)))
    if not isinstance(made, nn.Module):
        raise DataError(f"{what} is an object of type {type(made).__name__}, expected a torch.nn.Module; return one")
    _ran(f"{what} has no eval mode", made.eval)
    for count in (2, 3, 1):  # the last of the held-out samples may be alone
        images = torch.rand(count, *shape)
        with torch.no_grad():
            logits = _ran(f"{what} fails on inputs of {list(images.shape)} in eval", made, images)
        _check_logits(what, logits, count, classes)
    _ran(f"{what} cannot be copied", lambda: copy.deepcopy(made).requires_grad_(False))
    _ran(f"{what} has no training mode", made.train)
    _check_state(what, _ran(f"{what} has no state to save", made.state_dict))
    return made


def make_trainable(
    spec: str, shape: Sequence[int], classes: int, arguments: Mapping[str, Any], places: Sequence[Path]
) -> nn.Module:
    """The same, for a training: it has to learn, and the factory to give the same network anew whenever it is called.

    The trainer builds a network several times, and in several processes, under the seed of the recipe.
    """
    with torch.random.fork_rng(devices=[]):
        other = make_network(spec, shape, classes, arguments, places)
    made = make_network(spec, shape, classes, arguments, places)
    what = f"the network {spec}"
    _check_anew(what, made, other)
    _check_learns(what, other, torch.rand(2, *shape), classes)
    return made


def without_storage(
    spec: str, shape: Sequence[int], classes: int, arguments: Mapping[str, Any], places: Sequence[Path]
) -> dict[str, torch.Tensor] | None:
    """The state of the network without memory for its numbers; None where the code does not bear that."""
    try:
        factory = find(spec, spec, places)
        with torch.device("meta"):
            made = call(factory, spec, (tuple(shape), classes), copy.deepcopy(dict(arguments)))
            state: dict[str, torch.Tensor] = made.state_dict()
    except Exception:  # whether anything is wrong with the code is for `make_network` to say
        return None
    return None if any(nn.parameter.is_lazy(tensor) for tensor in state.values()) else state


def _check_logits(what: str, logits: object, count: int, classes: int) -> None:
    if not isinstance(logits, torch.Tensor):
        raise DataError(
            f"{what} gives an object of type {type(logits).__name__}, expected one tensor; return the logits"
        )
    if logits.shape != (count, classes) or not logits.is_floating_point():
        raise DataError(
            f"{what} gives {logits.dtype} of {list(logits.shape)} for a batch of {count}, expected floats of "
            f"{[count, classes]}; return a logit for each class"
        )
    if not logits.isfinite().all():
        raise DataError(f"{what} gives NaN or infinite logits before any training; mend its initial weights")


def _check_state(what: str, state: Mapping[str, object]) -> None:
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise DataError(
                f"{what} has an object of type {type(tensor).__name__} as '{name}' in its state, expected tensors "
                "alone; keep it elsewhere"
            )
        if not name.isprintable():
            raise DataError(f"{what} has the name {name!r:.200} in its state, expected a printable one; rename it")
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise DataError(f"{what} has '{name}' with all its values in one place of memory; clone() what is expanded")


def _check_anew(what: str, made: nn.Module, other: nn.Module) -> None:
    mine, theirs = made.state_dict(), other.state_dict()
    if list(mine) != list(theirs):
        name = min(mine.keys() ^ theirs.keys(), default="the order of its tensors")
        raise DataError(f"{what} is another one at each call of the factory ({name}); give the same one each time")
    places = {tensor.data_ptr() for tensor in theirs.values() if tensor.numel()}
    for name, tensor in mine.items():
        if tensor.numel() and tensor.data_ptr() in places:
            raise DataError(f"{what} shares '{name}' with the one of an earlier call; make it anew inside the factory")
        if tensor.dtype != theirs[name].dtype or not torch.equal(tensor, theirs[name]):
            raise DataError(
                f"{what} has another '{name}' at each call of the factory under one seed; draw it by torch's random "
                "numbers, or make it the same each time"
            )


def _check_learns(what: str, network: nn.Module, images: torch.Tensor, classes: int) -> None:
    """One step's forward and backward pass on a network that is then thrown away."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise DataError(
            f"{what} has no parameter that learns; expected one with requires_grad; there is nothing to train"
        )
    before = {name: tensor.shape for name, tensor in network.state_dict().items()}
    logits = _ran(f"{what} fails on inputs of {list(images.shape)} in training", network, images)
    _check_logits(f"{what}, in training,", logits, 2, classes)
    loss = F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64))
    _ran(f"{what} has no gradient", loss.backward)
    after = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if list(before.items()) != list(after.items()):
        name = min(dict(before.items() ^ after.items()), default="the order of its tensors")
        raise DataError(
            f"{what} has another state after a step than before ({name}), and could not be saved and loaded; make all "
            "its parameters and buffers, in their sizes, when it is made"
        )
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise DataError(f"{what} has a sparse gradient for '{name}', expected a dense one; leave out sparse=True")


@contextlib.contextmanager
def run_by(kind: str) -> Iterator[None]:
    """Where a network is called in a training, or its gradients are: what the user's code raises there is said to be
    its own. kind: as the recipe has it.
    """
    try:
        yield
    except (BnfoldError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as problem:
        if not is_spec(kind):
            raise
        raise DataError(
            f"the network {kind} fails in the middle of the training: {said(problem)}; see that it takes every "
            "batch of the data"
        ) from problem


def _ran(failure: str, run: Callable[..., Any], *values: Any) -> Any:
    """What the user's code gives. Raises DataError for whatever it raises."""
    try:
        return run(*values)
    except (Exception, SystemExit) as problem:
        raise DataError(f"{failure}: {said(problem)}") from problem
