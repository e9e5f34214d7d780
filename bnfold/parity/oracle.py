"""The float64 oracle: what a graph computes, without float32's rounding.

Every float tensor, type, cast and literal of a clone becomes float64, and the ONNX reference evaluator runs it (ONNX
Runtime has no float64 Conv on any provider), with the operators of `bnfold.parity.float64_operators` where the
evaluator's own are wrong or slow. What cannot be computed so raises ParityError: the tier then cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.errors import ParityError, first_line

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

_DOUBLE = onnx.TensorProto.DOUBLE
_NARROW = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
# Attributes that name a data type, by operator.
_TYPED = {
    "Cast": "to", "EyeLike": "dtype", "SequenceEmpty": "dtype", "LayerNormalization": "stash_type",
    "RMSNormalization": "stash_type", "GroupNormalization": "stash_type", "Attention": "softmax_precision",
    "HannWindow": "output_datatype", "HammingWindow": "output_datatype", "BlackmanWindow": "output_datatype",
}  # fmt: skip
_DEFAULT_TYPED = ("LayerNormalization", "RMSNormalization", "GroupNormalization")  # whose default is float32
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_INTEGER = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
     "QuantizeLinear"}
)  # fmt: skip
# Operators that the evaluator of onnx 1.23 computes in float32 whatever comes in.
_FLOAT32_ONLY = frozenset({"AffineGrid", "CausalConvWithState", "GridSample", "LinearAttention", "MelWeightMatrix"})


def run_float64(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, F64]:
    """Evaluate a graph in float64. inputs: by name; gives the outputs by name, float64 whatever their type is.

    Float constants keep the values that they have in the model (an epsilon of float32(1e-5) stays that number).
    Raises ParityError when the graph holds something that has no float64 meaning, or that cannot be evaluated.
    """
    results = _evaluate(widen(model), inputs, [value.name for value in model.graph.output])
    return {name: result.astype(np.float64) for name, result in results.items()}


def run_values(model: onnx.ModelProto, inputs: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    """As `run_float64`, for any values of the main graph: those that are tensors, integers as they are."""
    wide = widen(model)
    present = {value.name for value in wide.graph.output}
    wide.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    results = _evaluate(wide, inputs, names)
    return {name: result for name, result in results.items() if result.dtype.kind in "fiub"}


def _evaluate(wide: onnx.ModelProto, inputs: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
    from onnx.reference import ReferenceEvaluator

    from bnfold.parity.float64_operators import OPERATORS

    constants = {tensor.name for tensor in wide.graph.initializer}
    feeds = {}
    for value in wide.graph.input:
        if value.name in inputs:
            array = np.asarray(inputs[value.name])
            feeds[value.name] = array.astype(np.float64) if _is_float(array) else array
        elif value.name not in constants:
            raise ParityError(f"the float64 oracle has no input '{value.name}'; it was given {sorted(inputs)}")
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(wide, new_ops=list(OPERATORS)).run(list(wanted), feeds)
    except Exception as problem:  # the evaluator raises whatever its operators and numpy raise
        raise ParityError(f"the graph cannot be evaluated in float64: {first_line(problem)}") from problem
    return {name: _array(result) for name, result in zip(wanted, results, strict=True)}


def _array(result: Any) -> Array:
    """A result as an array; sequences and what is absent become one of objects."""
    if isinstance(result, np.ndarray | np.generic | float | int):
        return np.asarray(result)
    return np.asarray(None, object)


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """A clone whose floats are all float64. Raises ParityError for operators that have no such clone."""
    clone = onnx.ModelProto()
    clone.CopyFrom(model)
    _widen_graph(clone.graph)
    for function in clone.functions:
        del function.value_info[:]
        _widen_nodes(function.node)
    return clone


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _widen_graph(graph: onnx.GraphProto) -> None:
    if graph.sparse_initializer:
        raise ParityError("the graph has sparse initialisers, which the float64 oracle does not read")
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        _widen_type(value.type)
    _widen_nodes(graph.node)


def _widen_type(kind: onnx.TypeProto) -> None:
    match kind.WhichOneof("value"):
        case "tensor_type":
            if kind.tensor_type.elem_type in _NARROW:
                kind.tensor_type.elem_type = _DOUBLE
        case "sequence_type":
            _widen_type(kind.sequence_type.elem_type)
        case "optional_type":
            _widen_type(kind.optional_type.elem_type)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _NARROW:
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), name))


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        _refuse(node)
        for attribute in node.attribute:
            if attribute.ref_attr_name and attribute.name in ("to", "dtype", "value", "value_float", "value_floats"):
                raise ParityError(f"{node.op_type} '{node.name}' takes its {attribute.name} from a function's caller")
            _widen_attribute(node, attribute)
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = numpy_helper.from_array(np.zeros(1), "value")
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        if node.op_type in _DEFAULT_TYPED and not any(a.name == _TYPED[node.op_type] for a in node.attribute):
            node.attribute.append(onnx.helper.make_attribute(_TYPED[node.op_type], _DOUBLE))


def _widen_attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> None:
    if attribute.HasField("t"):
        _widen_tensor(attribute.t)
    if attribute.HasField("g"):
        _widen_graph(attribute.g)
    for graph in attribute.graphs:
        _widen_graph(graph)
    if attribute.name == _TYPED.get(node.op_type) and attribute.i in _NARROW:
        attribute.i = _DOUBLE
    if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
        values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        tensor = numpy_helper.from_array(np.asarray(values, np.float64), "value")
        attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _refuse(node: onnx.NodeProto) -> None:
    label = f"{node.op_type} '{node.name or ', '.join(node.output)}'"
    if node.op_type in _RANDOM:
        raise ParityError(f"{label} draws random numbers; there is no one true output to compare with")
    if node.op_type in _INTEGER:
        raise ParityError(f"{label} rounds to integers by definition; a float64 evaluation has no meaning for it")
    if node.op_type in _FLOAT32_ONLY:
        raise ParityError(f"{label} is computed in float32 by the reference evaluator; there is no float64 truth")
