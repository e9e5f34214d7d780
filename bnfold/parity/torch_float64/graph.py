"""The evaluator: nodes in order, each by its operator; floats are float64 whatever the model says."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from bnfold.errors import BnfoldError, ParityError, first_line
from bnfold.parity.torch_float64 import layout, pointwise, reductions, resizing, windows
from bnfold.parity.torch_float64.calls import Call, Tensor

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

OPERATORS = {
    **pointwise.OPERATORS, **reductions.OPERATORS, **layout.OPERATORS, **windows.OPERATORS, **resizing.OPERATORS,
}  # fmt: skip


class TorchGraph:
    """A graph ready to run.

    Floats have `dtype`, whatever the model says; constants keep their values (float32(1e-5) stays that number), as in
    `bnfold.parity.oracle.run_float64`, with which the tests compare every operator.

    calls: the nodes in order; constants: by name; inputs, outputs: names. Nothing changes after it was made.
    """

    def __init__(self, model: onnx.ModelProto, dtype: torch.dtype = torch.float64) -> None:
        """Read a model whose tensors are in it. Raises ParityError that names an operator which is not supported."""
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        if model.graph.sparse_initializer:
            raise ParityError("the graph has sparse initialisers, which the torch evaluation in float64 does not read")
        self.dtype = dtype
        self.calls = tuple(_call(node, opset, dtype) for node in model.graph.node)
        self.constants: Mapping[str, Tensor] = {
            tensor.name: to_torch(numpy_helper.to_array(tensor), dtype) for tensor in model.graph.initializer
        }
        self.inputs = tuple(value.name for value in model.graph.input if value.name not in self.constants)
        self.outputs = tuple(value.name for value in model.graph.output)
        self._last = {name: place for place, call in enumerate(self.calls) for name in call.inputs}
        self._last |= {name: len(self.calls) for name in self.outputs}  # kept to the end

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name. Differentiable in whatever input requires a gradient.

        Raises ParityError for an input that is missing and for what torch cannot carry out.
        """
        missing = [name for name in self.inputs if name not in inputs]
        if missing:
            raise ParityError(f"the torch evaluation has no input '{missing[0]}'; it was given {sorted(inputs)}")
        values: dict[str, Tensor] = dict(self.constants)
        for name in self.inputs:
            given = inputs[name]
            values[name] = given.to(self.dtype) if given.is_floating_point() else given
        for place, call in enumerate(self.calls):
            results = _carry_out(call, values)
            values |= {name: result for name, result in zip(call.outputs, results, strict=False) if name}
            for name in (*call.inputs, *call.outputs):
                if name and self._last.get(name, place) <= place:
                    values.pop(name, None)
        return {name: values[name] for name in self.outputs}

    def truth(self, inputs: Mapping[str, Array]) -> dict[str, F64]:
        """The outputs for arrays, without gradients; float64 whatever their type is."""
        with torch.no_grad():
            found = self({name: to_torch(np.asarray(array), self.dtype) for name, array in inputs.items()})
        return {name: tensor.to(torch.float64).numpy() for name, tensor in found.items()}

    def with_constants(self, changed: Mapping[str, Tensor]) -> TorchGraph:
        """The graph with other values for some of its constants."""
        other = copy.copy(self)
        other.constants = {**self.constants, **changed}
        return other


def to_torch(array: Array, dtype: torch.dtype) -> Tensor:
    """An array as a tensor: floats in `dtype`, integers and booleans as they are. Raises ParityError for others."""
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return torch.from_numpy(np.array(array, np.float64)).to(dtype)
    if array.dtype.kind not in "iub":
        raise ParityError(f"a tensor of {array.dtype} has no place in the torch evaluation; expected numbers")
    return torch.from_numpy(np.array(array))


def _call(node: onnx.NodeProto, opset: int, dtype: torch.dtype) -> Call:
    call = Call(node.op_type, node.name, {}, tuple(node.input), tuple(node.output), opset, dtype)
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        domain = f" of {node.domain}" if node.domain not in ("", "ai.onnx") else ""
        raise ParityError(f"{call.label}{domain} is no operator that the torch evaluation in float64 knows")
    attributes = dict(_defaults(node.op_type, opset))
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise call.refuse(f"takes its {attribute.name} from a function's caller")
        attributes[attribute.name] = _value(attribute, dtype)
    return dataclasses.replace(call, attributes=attributes)


def _defaults(operator: str, opset: int) -> Iterator[tuple[str, Any]]:
    """The schema's defaults: floats there are float32 numbers, as they are in a graph."""
    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        raise ParityError(f"{operator} is no operator of opset {opset}") from None
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            yield name, _value(attribute.default_value, torch.float64)


def _value(attribute: onnx.AttributeProto, dtype: torch.dtype) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return to_torch(numpy_helper.to_array(value), dtype)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _carry_out(call: Call, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    try:
        given = [values[name] if name else None for name in call.inputs]
        found = OPERATORS[call.operator](call, given)
    except BnfoldError:
        raise
    except Exception as problem:  # torch raises RuntimeError, IndexError, TypeError and its own
        raise ParityError(f"{call.label} cannot be carried out by torch in float64: {first_line(problem)}") from problem
    results = found if isinstance(found, tuple) else (found,)
    if any(call.outputs[len(results) :]):
        raise call.refuse(f"has {len(call.outputs)} outputs")
    return results
