"""Constants that a network computes in its graph, as the numbers that they come to.

Some tools write the fold down as nodes over constants and leave the arithmetic to whoever loads the model; what such a
weight is can only be said with a runtime. And what one network computes of constants (indices, masks), the other
may have stored. ONNX Runtime computes them, with its optimisations off.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.errors import BnfoldError
from bnfold.folding.expressions import Array
from bnfold.folding.onnx_clone import clone_of, unlist_constants
from bnfold.folding.onnx_constants import Constants
from bnfold.folding.onnx_file import to_proto
from bnfold.runtime import open_session, run

_LINEARS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RANDOM = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")


def settled(model: ir.Model, *, weights: bool) -> tuple[ir.Model, tuple[str, ...]]:
    """(a clone with computed constants stored, the names of weights and biases among them).

    weights: also those of linears, which otherwise stay the expressions that they are. The model is not changed.
    """
    clone = clone_of(model)
    unlist_constants(clone)
    found = dict(_computed(clone, weights))
    if not found:
        return clone, ()
    try:
        arrays = _values(clone, list(found))
    except BnfoldError:  # nothing is said of them then, and what reads them matches nothing
        return clone, ()
    for value, users in found.items():
        name = str(value.name)
        tensor = ir.tensor(arrays[name], name=_fresh(clone, name))
        stored = ir.Value(
            name=tensor.name, shape=ir.Shape(arrays[name].shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        clone.graph.register_initializer(stored)
        for user, index in users:
            user.replace_input_with(index, stored)
    linears = (str(value.name) for value, users in found.items() if any(_is_weight(*use) for use in users))
    return clone, tuple(linears)


Use = tuple[ir.Node, int]


def _is_weight(user: ir.Node, index: int) -> bool:
    return user.op_type in _LINEARS and index > 0 and not user.domain


def _computed(model: ir.Model, weights: bool) -> Iterator[tuple[ir.Value, list[Use]]]:
    """Values that nodes make of constants, and who reads them that is no constant itself."""
    listed = set(model.graph.inputs)
    constant = {value for value in model.graph.initializers.values() if value not in listed}
    known = _known(model)
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        has_graph = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        is_random = any(node.op_type.startswith(name) for name in _RANDOM)
        if not node.domain and not has_graph and not is_random and all(value in constant for value in inputs):
            constant.update(node.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in constant or node.op_type in ("Constant", "Identity"):
                continue
            uses = [(use.node, use.idx) for use in value.uses() if not set(use.node.outputs) <= constant]
            wanted = [use for use in uses if (weights and _is_weight(*use)) or not _is_told(known, value)]
            if wanted:
                yield value, wanted


def _known(model: ir.Model) -> Constants:
    """The constants that facts know as expressions or integers."""
    known = Constants(model.graph, ir_version=model.ir_version)
    for node in model.graph:
        if not node.domain and node.op_identifier() not in model.functions:
            known.take(node)
    return known


def _is_told(known: Constants, value: ir.Value) -> bool:
    found = (known.get(value), known.integers(value), known.flag(value))
    return any(part is not None for part in found)


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _values(model: ir.Model, wanted: list[ir.Value]) -> dict[str, Array]:
    """The numbers that ONNX Runtime computes for values that are made of constants alone."""
    part = clone_of(model)
    names = {str(value.name) for value in wanted}
    found = {str(v.name): v for node in part.graph for v in node.outputs if v.name in names}
    part.graph.outputs.clear()
    part.graph.outputs.extend(found[str(value.name)] for value in wanted)
    needed: set[ir.Node] = set()
    stack = [node for value in found.values() if (node := value.producer()) is not None]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(p for value in node.inputs if value is not None and (p := value.producer()) is not None)
    for node in reversed(list(part.graph)):
        if node not in needed:
            part.graph.remove(node, safe=True)
    part.graph.inputs.clear()
    for name, value in list(part.graph.initializers.items()):
        if not value.uses():
            part.graph.initializers.pop(name)
    for value in part.graph.outputs:
        if value.type is None:
            value.type = ir.TensorType(next(v.dtype for v in part.graph.initializers.values() if v.dtype is not None))
    return dict(run(open_session(to_proto(part).SerializeToString(), optimise=False), {}))


def _fresh(model: ir.Model, name: str) -> str:
    taken = {str(value.name) for node in model.graph for value in node.outputs} | set(model.graph.initializers)
    candidate, count = f"{name}.computed", 1
    while candidate in taken:
        count += 1
        candidate = f"{name}.computed.{count}"
    return candidate
