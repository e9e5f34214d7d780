"""Tier T3b: an exported graph is its source. Parameters bit for bit, outputs in float64.

What may differ is told apart from what may not. PyTorch holds a literal (an epsilon, a slope) as a double, ONNX as a
float32 attribute or a constant in the network's dtype; so the graph's literals are off by up to half a unit in their
last place, and nothing else is. Where the outputs differ by more than float64 rounding, the effect of that is
measured by moving literals by a whole unit: up to eight of them one by one, and the effects are added; more of them
all at once in random directions, and the outputs may differ by sqrt(n) times the largest change (by Cauchy and
Schwarz the sum of n effects is at most sqrt(n) times the root of the sum of their squares, which is what random
directions show).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from bnfold.errors import ExportError, said
from bnfold.folding.expressions import Array
from bnfold.folding.torch_tensors import to_numpy
from bnfold.folding.torch_trace import copied
from bnfold.parity.oracle import run_float64

# Relative to the largest |output|: networks of a thousand layers in float64 stay ten times below it.
ROUNDING = 1e-10
# A tolerance above this proves nothing. Half precision holds an epsilon of 1e-5 to 0.3 %.
_VOID, _VOID_IN_HALF = 1e-4, 0.1
_RUNS = 8  # of the graph with literals moved


@dataclass(frozen=True)
class ExportProof:
    """What was proven of an exported graph.

    equal: initialisers that are tensors of the source, bit for bit; added: those that are not (shapes, literals, the
    ones and zeros of a norm without gamma and beta); unused: tensors of the source that the graph does not need.
    worst: the largest difference of an output from the module's in float64, relative to the largest |output|;
    tolerance: what it may be; literals: how much the rounding of literals may change, 0 where it was not needed.
    """

    equal: tuple[str, ...]
    added: tuple[str, ...]
    unused: tuple[str, ...]
    worst: float
    tolerance: float
    literals: float

    def to_dict(self) -> dict[str, Any]:
        """The proof as JSON-ready values."""
        return asdict(self)


def prove_export(module: torch.nn.Module, model: onnx.ModelProto, inputs: Mapping[str, Array]) -> ExportProof:
    """Prove that a graph is the export of a module. inputs: by name, in the dtypes of the graph's inputs.

    The module is evaluated in float64 in eval mode, on a copy, with the inputs in the order of the graph's. Raises
    ExportError when a tensor or an output differs, and ParityError when the graph cannot be evaluated in float64.
    """
    equal, added, unused = _compare_tensors(module, model)
    names = [value.name for value in model.graph.input]
    missing = [name for name in names if name not in inputs]
    if missing:
        raise ExportError(f"the proof of the export needs an input '{missing[0]}'; it was given {sorted(inputs)}")
    truth = run_module_float64(module, [inputs[name] for name in names])
    outputs = [value.name for value in model.graph.output]
    if len(truth) != len(outputs):
        raise ExportError(f"{type(module).__name__} gives {len(truth)} tensors, its export {len(outputs)}: {outputs}")
    found = run_float64(model, inputs)
    errors = {name: _distance(found[name], want) for name, want in zip(outputs, truth, strict=True)}
    name, worst = max(errors.items(), key=lambda item: item[1])
    literals = 0.0 if worst <= ROUNDING else _effect_of_literals(model, inputs, found)
    tolerance = ROUNDING + literals
    allowed = min(tolerance, _void(model))
    if not worst <= allowed:
        raise ExportError(
            f"output '{name}' of the export of {type(module).__name__} is {worst:.3g} (relative) from the module's in "
            f"float64, expected at most {allowed:.3g}; the exporter has changed the network, report it"
        )
    return ExportProof(equal, added, unused, worst, tolerance, literals)


def _void(model: onnx.ModelProto) -> float:
    halves = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    is_half = any(tensor.data_type in halves for tensor in model.graph.initializer)
    return _VOID_IN_HALF if is_half else _VOID


def _compare_tensors(
    module: torch.nn.Module, model: onnx.ModelProto
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of initialisers that are the module's, of those that are not, and of the module's that are not used."""
    source: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    source |= dict(module.named_buffers(remove_duplicate=False))
    equal, added = [], []
    for tensor in model.graph.initializer:
        if tensor.name not in source:
            added.append(tensor.name)
            continue
        ours, theirs = to_numpy(source[tensor.name]), ir.serde.deserialize_tensor(tensor).numpy()
        if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
            raise ExportError(
                f"'{tensor.name}' is {theirs.dtype}{list(theirs.shape)} in the export, "
                f"expected {ours.dtype}{list(ours.shape)} as in {type(module).__name__}; the exporter has changed it"
            )
        if ours.tobytes() != np.ascontiguousarray(theirs).tobytes():
            raise ExportError(
                f"'{tensor.name}' differs from that of {type(module).__name__}, expected every bit the same; "
                "the network has changed since it was exported, or the exporter has changed it"
            )
        equal.append(tensor.name)
    unused = [name for name in source if name not in equal]
    return tuple(equal), tuple(added), tuple(unused)


def run_module_float64(module: torch.nn.Module, inputs: Sequence[Array]) -> list[Array]:
    """The tensors that a module gives in float64, on a copy in eval mode on the CPU, in the order of its pytree.

    inputs: arrays in the order of the positional arguments. Casts to narrower floats that the module spells out are
    casts to float64 here, as they are in the float64 oracle. Raises ExportError when it cannot be run so.
    """
    double = copied(module).to("cpu").double().eval()
    tensors = [_tensor(array) for array in inputs]
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.no_grad(), _Widened():
            outputs = double(*tensors)
    except Exception as problem:  # whatever the network's own code raises
        raise ExportError(
            f"{type(module).__name__} cannot be run in float64: {said(problem)}; expected a module whose "
            "double() takes the inputs of its export as positional arguments"
        ) from problem
    finally:
        torch.set_default_dtype(default)
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    return [leaf.detach().double().numpy() for leaf in leaves]


class _Widened(TorchFunctionMode):
    """Every narrow float dtype that a call names is float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        return func(*_wide(args), **_wide(kwargs or {}))


_NARROW = (torch.float16, torch.bfloat16, torch.float32)
_CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)


def _wide(given: Any) -> Any:
    return pytree.tree_map(
        lambda leaf: torch.float64 if isinstance(leaf, torch.dtype) and leaf in _NARROW else leaf,
        given,
        is_leaf=_is_no_container,
    )


def _is_no_container(value: Any) -> bool:
    return not isinstance(value, tuple | list | dict)


def _tensor(array: Array) -> torch.Tensor:
    is_float = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return torch.from_numpy(array.astype(np.float64) if is_float else array.copy())


def _distance(found: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest finite |wanted|; infinite where only one is finite."""
    if found.shape != wanted.shape:
        return math.inf
    finite = np.isfinite(wanted)
    if not np.array_equal(found[~finite], wanted[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return math.inf
    scale = float(np.abs(wanted[finite]).max(initial=0.0)) or 1.0
    return float(np.abs(found[finite] - wanted[finite]).max(initial=0.0)) / scale


def _effect_of_literals(model: onnx.ModelProto, inputs: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """How much an output may change, relatively, because the n literals are rounded."""
    count = len(list(_literals(model.graph)))
    if count <= _RUNS:
        return sum(_effect(model, inputs, found, row) for row in np.eye(count, dtype=int))
    signs = np.random.default_rng(0).choice([-1, 1], size=(_RUNS, count))
    return math.sqrt(count) * max(_effect(model, inputs, found, row) for row in signs)


def _effect(model: onnx.ModelProto, inputs: Mapping[str, Array], found: Mapping[str, Array], moves: Array) -> float:
    """The largest relative change of an output when literals move by units in their last place, one number each."""
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    for mover, units in zip(list(_literals(moved.graph)), moves, strict=True):
        if units:
            mover(int(units))
    results = run_float64(moved, inputs)
    return max((_distance(results[name], array) for name, array in found.items()), default=0.0)


def _literals(graph: onnx.GraphProto) -> Iterator[Callable[[int], None]]:
    """For each literal of a graph a function that moves it one unit up (1) or down (-1)."""
    for tensor in graph.initializer:
        if _is_literal(tensor):
            yield _tensor_mover(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.FLOAT and not _is_short(attribute.f):
                yield _attribute_mover(attribute)
            elif attribute.type == onnx.AttributeProto.TENSOR and _is_literal(attribute.t):
                yield _tensor_mover(attribute.t)
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _literals(attribute.g)


def _is_literal(tensor: onnx.TensorProto) -> bool:
    is_number = math.prod(tensor.dims) == 1 and tensor.data_type in _NARROWED
    return is_number and not _is_short(float(numpy_helper.to_array(tensor).reshape(())), tensor.data_type)


# Literals of float64 graphs have been through float32 in the exporter.
_NARROWED: Mapping[int, Any] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.DOUBLE: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
_SHORT = {np.float32: 12, np.float16: 5, ml_dtypes.bfloat16: 3}


def _is_short(value: float, kind: int = onnx.TensorProto.FLOAT) -> bool:
    """True for a number of few significant bits (1, 3, 0.5, 6): no rounding made it, so none is allowed for."""
    fraction, _ = math.frexp(value)
    return not math.isfinite(value) or float(math.ldexp(fraction, _SHORT[_NARROWED[kind]])).is_integer()


def _tensor_mover(tensor: onnx.TensorProto) -> Callable[[int], None]:
    def move(direction: int) -> None:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        narrow = values.astype(_NARROWED[tensor.data_type])
        unit = np.abs(np.nextafter(narrow, narrow.dtype.type(np.inf)).astype(np.float64) - narrow.astype(np.float64))
        tensor.CopyFrom(numpy_helper.from_array(values + direction * unit, tensor.name))

    return move


def _attribute_mover(attribute: onnx.AttributeProto) -> Callable[[int], None]:
    def move(direction: int) -> None:
        attribute.f = float(np.nextafter(np.float32(attribute.f), np.float32(direction * np.inf)))

    return move
