"""Weights that a folded network computes in its graph, as the numbers that they come to.

Some tools write the fold down as nodes over constants and leave the arithmetic to whoever loads the model. What such a
weight is can only be said with a runtime: ONNX Runtime's, with its optimisations off.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from bnfold.errors import BnfoldError
from bnfold.folding.expressions import Array
from bnfold.folding.onnx_clone import clone_of, unlist_constants
from bnfold.folding.onnx_file import to_proto
from bnfold.runtime import open_session, run

_LINEARS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RANDOM = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")


def settled(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """(a clone with computed weights and biases stored, their names). The model is not changed."""
    clone = clone_of(model)
    unlist_constants(clone)
    wanted = dict.fromkeys(_computed(clone))
    if not wanted:
        return clone, ()
    try:
        arrays = _values(clone, list(wanted))
    except BnfoldError:  # nothing is said of them then: a linear with a computed weight matches nothing
        return clone, ()
    for value in wanted:
        name = str(value.name)
        tensor = ir.tensor(arrays[name], name=f"{name}.computed")
        stored = ir.Value(
            name=_fresh(clone, name), shape=ir.Shape(arrays[name].shape), type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )  # fmt: skip
        clone.graph.register_initializer(stored)
        for user, index in list(value.uses()):
            if user.op_type in _LINEARS and index > 0:
                user.replace_input_with(index, stored)
    return clone, tuple(str(value.name) for value in wanted)


def _computed(model: ir.Model) -> Iterator[ir.Value]:
    """Values that are made of constants by nodes, and that a linear reads as weight or bias."""
    constant: set[ir.Value] = {v for v in model.graph.initializers.values() if v not in set(model.graph.inputs)}
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type in _LINEARS and not node.domain:
            for value in inputs[1:]:
                producer = value.producer()
                if value in constant and producer is not None and producer.op_type not in ("Constant", "Identity"):
                    yield value
        has_graph = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        is_random = any(node.op_type.startswith(name) for name in _RANDOM)
        if not node.domain and not has_graph and not is_random and all(value in constant for value in inputs):
            constant.update(node.outputs)


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
