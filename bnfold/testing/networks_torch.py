"""A torch.nn.Module under test. It is copied: neither its buffers, its modes nor the generator's state change."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from bnfold.errors import BnfoldError, DataError, ExportError, ParityError, first_line
from bnfold.export import export_model
from bnfold.folding import onnx_file
from bnfold.folding.torch_tensors import to_numpy
from bnfold.folding.torch_trace import copied
from bnfold.parity.audit.opening import Opened
from bnfold.testing.batches import Array, Batch

_MODAL: tuple[type[torch.nn.Module], ...] = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.modules.instancenorm._InstanceNorm,
    torch.nn.modules.dropout._DropoutNd,
)


class TorchNetwork:
    """A module in eval mode. is_program: it came out of an ExportedProgram, which has no modes."""

    def __init__(self, module: torch.nn.Module, what: str, *, is_program: bool = False) -> None:
        name = None if is_program else _training(module)
        if name is not None:
            where = f"'{name}' of {what}" if name else what
            raise ParityError(
                f"{where} is in training mode, where batch norm uses the statistics of the batch; "
                "expected eval mode; call .eval() on it first"
            )
        self.label = "the exported program" if is_program else type(module).__name__
        self._what = what
        self._module = copied(module)
        floats = (value.dtype for value in self._values() if value.is_floating_point())
        self._dtype = next(floats, torch.float32)
        self._device = next((value.device for value in self._values()), torch.device("cpu"))

    @property
    def names(self) -> tuple[str, ...] | None:
        """The arguments of `forward`, None where it takes any."""
        try:
            found = inspect.signature(self._module.forward).parameters.values()
        except ValueError:  # compiled code, TorchScript for one, has no signature
            return None
        if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in found):
            return None
        return tuple(one.name for one in found)

    def run(self, batch: Batch) -> Mapping[str, Array]:
        """The outputs by name."""
        return self._called(self._module, self._tensors(batch))

    def truth(self, batch: Batch) -> Mapping[str, Array]:
        """The outputs in float64; by way of ONNX where the module is not made for float64."""
        wide = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in self._tensors(batch))
        try:
            found = self._called(self._wide, wide)
        except BnfoldError:
            return self._evaluated(batch)
        narrow = any(array.dtype.kind == "f" and array.dtype != np.float64 for array in found.values())
        return self._evaluated(batch) if narrow else found

    def opened(self, batch: Batch) -> Opened:
        """The module as ONNX IR. Raises ExportError."""
        tensors = self._tensors(batch)
        try:
            proto = export_model(self._module, tensors)
        except ExportError:
            proto = export_model(self._module, tensors, dynamic_batch=False)
        return Opened(self.label, onnx_file.from_proto(proto, self._what))

    @cached_property
    def _wide(self) -> torch.nn.Module:
        return copied(self._module).double()

    def _evaluated(self, batch: Batch) -> Mapping[str, Array]:
        from bnfold.parity.oracle import run_float64

        proto = onnx_file.to_proto(self.opened(batch).model)
        arrays = (to_numpy(tensor) for tensor in self._tensors(batch))
        found = run_float64(proto, {value.name: array for value, array in zip(proto.graph.input, arrays, strict=True)})
        return _named(list(found.values()), None)

    def _called(self, module: torch.nn.Module, tensors: tuple[torch.Tensor, ...]) -> Mapping[str, Array]:
        with _undisturbed(), torch.no_grad():
            try:
                found = module(*tensors)
            except Exception as problem:  # whatever the network's own code raises
                text = f"{self._what} ({self.label}) cannot be run on the inputs: {first_line(problem)}"
                # The model says which inputs fit; a folded network that then does not take them is at fault itself.
                raise (DataError if self._what == "model" else ParityError)(text) from problem
        leaves = [to_numpy(leaf) for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        if not leaves:
            raise ParityError(f"{self._what} ({self.label}) gives no tensor, expected at least one to compare")
        return _named(leaves, found)

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(self._tensor(array) for array in batch)

    def _tensor(self, array: Array) -> torch.Tensor:
        if array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        tensor = torch.from_numpy(np.array(array))  # its own memory: a module may write into its input
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)

    def _values(self) -> Iterator[torch.Tensor]:
        yield from self._module.parameters()
        yield from self._module.buffers()


def _named(leaves: list[Array], found: Any) -> dict[str, Array]:
    keys = list(found) if isinstance(found, dict) and len(found) == len(leaves) else []
    if keys:
        return dict(zip(map(str, keys), leaves, strict=True))
    return {"output" if not at else f"output_{at}": leaf for at, leaf in enumerate(leaves)}


def _training(module: torch.nn.Module) -> str | None:
    """The first module in training mode that computes something else there; "" is the network itself."""
    if getattr(module, "training", False):  # frozen TorchScript has no modes
        return ""
    return next((name for name, part in module.named_modules() if isinstance(part, _MODAL) and part.training), None)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """With the state of every generator put back behind it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield
