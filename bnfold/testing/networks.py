"""What may be given to `assert_parity`, and how it runs: torch in torch, ONNX in ONNX Runtime without optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from bnfold.api import source_kind
from bnfold.bundle.manifest import TensorSpec
from bnfold.bundle.tensorfile import find_dtype
from bnfold.errors import DataError, FoldError
from bnfold.parity.audit.opening import Opened, inputs_of, open_original, specs_of
from bnfold.testing.batches import Array, Batch

if TYPE_CHECKING:
    import onnx

Outputs: TypeAlias = Mapping[str, Array]


class Network(Protocol):
    """A network that runs on batches. names: of its inputs, None where they are not known."""

    @property
    def label(self) -> str:
        """What it is called in a sentence."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Its inputs."""

    def run(self, batch: Batch) -> Outputs:
        """The outputs by name, in order."""

    def truth(self, batch: Batch) -> Outputs:
        """The outputs in float64, in the same order."""

    def opened(self, batch: Batch) -> Opened:
        """The network as ONNX IR. Raises BnfoldError."""


def network_of(given: Any, what: str) -> Network:
    """A network as it is run. what: the argument's name. Raises TypeError for no network, BnfoldError for a bad one."""
    if isinstance(given, bytes):
        return OnnxNetwork(given, what)
    try:
        kind = source_kind(given)
    except FoldError:
        raise TypeError(
            f"{what} is a {type(given).__name__}; expected a torch.nn.Module, an ExportedProgram, an onnx.ModelProto, "
            "a path to .onnx, or the bytes of one"
        ) from None
    if kind in ("module", "program"):
        from bnfold.testing.networks_torch import TorchNetwork

        return TorchNetwork(given.module() if kind == "program" else given, what, is_program=kind == "program")
    if kind == "path" and Path(given).suffix != ".onnx":
        raise DataError(f"{what} is the path {given}, expected one of an .onnx file")
    if kind == "path" and not Path(given).exists():
        raise DataError(f"{what} is the path {given}, where nothing is; expected an .onnx file; correct the path")
    return OnnxNetwork(given, what)


class OnnxNetwork:
    """An ONNX model: a path, bytes, or a model in memory."""

    def __init__(self, given: Any, what: str) -> None:
        self._what = what
        self._model = open_original(given, example_inputs=None, weights=None, shape=None)
        self.label = self._model.name if not isinstance(given, bytes) else what
        self.specs: tuple[TensorSpec, ...] = specs_of(inputs_of(self._model.model))

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs that must be given."""
        return tuple(spec.name for spec in self.specs)

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The model with all of its tensors in it."""
        from bnfold.folding.onnx_file import to_proto

        return to_proto(self._model.model)

    @cached_property
    def _session(self) -> Any:
        from bnfold.runtime import open_session

        return open_session(self.proto.SerializeToString(), optimise=False)

    def run(self, batch: Batch) -> Outputs:
        """The outputs by name."""
        from bnfold.runtime import run

        return run(self._session, self.feeds(batch))

    def truth(self, batch: Batch) -> Outputs:
        """The outputs in float64."""
        from bnfold.parity.oracle import run_float64

        return run_float64(self.proto, self.feeds(batch))

    def opened(self, _: Batch) -> Opened:
        """The model as ONNX IR."""
        return self._model

    def feeds(self, batch: Batch) -> dict[str, Array]:
        """Arrays by name, floats in the dtype of the input."""
        if len(batch) != len(self.specs):
            raise DataError(
                f"inputs hold {len(batch)} arrays, expected {len(self.specs)} for {self._what}: {list(self.names)}"
            )
        return {spec.name: _fitted(array, spec) for array, spec in zip(batch, self.specs, strict=True)}


def _fitted(array: Array, spec: TensorSpec) -> Array:
    fits = not spec.shape or (
        array.ndim == len(spec.shape)
        and all(want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        wanted = str(list(spec.shape)).replace("-1", "N")
        raise DataError(f"input '{spec.name}' was given with shape {list(array.shape)}, expected {wanted}")
    target = find_dtype(spec.dtype)
    both_float = all(kind.name == "bfloat16" or kind.kind == "f" for kind in (array.dtype, target))
    if array.dtype != target and not both_float and not (array.dtype.kind in "iu" and target.kind in "iu"):
        raise DataError(f"input '{spec.name}' was given as {array.dtype}, expected {spec.dtype}")
    return array.astype(target)
