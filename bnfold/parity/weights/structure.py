"""Two ONNX graphs that should be one and the same: node for node, name for name, bit for bit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

_SHOWN = 20  # differences listed; after that the rest is counted


def differences(expected: ir.Model, found: ir.Model, *, recomputed: Collection[str] = ()) -> tuple[str, ...]:
    """What differs between two models, a sentence each; empty when nothing does.

    Compared: operator sets, functions, graph inputs and outputs (name, dtype, shape), nodes in their order (operator,
    domain, attributes, names of inputs and outputs, subgraphs), what is stated of inner values (dtype, shape),
    initialisers (name, dtype, shape, bits). recomputed: initialisers of which only name, dtype and shape are compared
    here. Names of nodes and doc strings do not count.
    """
    found_list = list(_models(expected, found, frozenset(recomputed)))
    if len(found_list) > _SHOWN:
        more = len(found_list) - _SHOWN
        return (*found_list[:_SHOWN], f"there are {more} more differences between the graphs")
    return tuple(found_list)


def _models(expected: ir.Model, found: ir.Model, recomputed: frozenset[str]) -> Iterator[str]:
    if dict(expected.opset_imports) != dict(found.opset_imports):
        yield (
            f"the graph imports the operator sets {dict(found.opset_imports)}; expected {dict(expected.opset_imports)}"
        )
    if set(expected.functions) != set(found.functions):
        yield "the graph has other local functions than its reference; expected the same"
    for key in expected.functions.keys() & found.functions.keys():
        want, have = expected.functions[key], found.functions[key]
        if _head(want) != _head(have):
            yield f"function '{key[1]}' has other inputs, outputs, attributes or operator sets than in the reference"
        yield from _node_lists(list(want), list(have), f"function '{key[1]}': ")
    yield from _graphs(expected.graph, found.graph, recomputed, "")


def _graphs(expected: ir.Graph, found: ir.Graph, recomputed: frozenset[str], where: str) -> Iterator[str]:
    for side, want, have in (("input", expected.inputs, found.inputs), ("output", expected.outputs, found.outputs)):
        wanted, had = [_signature(value) for value in want], [_signature(value) for value in have]
        if wanted != had:
            yield f"{where}the graph {side}s are {'; '.join(had)}; expected {'; '.join(wanted)}"
    yield from _node_lists(list(expected), list(found), where)
    yield from _initializers(expected, found, recomputed, where)


def _head(function: ir.Function) -> tuple[object, ...]:
    """All of a function but its nodes."""
    head = ir.to_proto(function)
    defaults = sorted(attribute.SerializeToString(deterministic=True) for attribute in head.attribute_proto)
    opsets = sorted((opset.domain, opset.version) for opset in head.opset_import)
    return list(head.input), list(head.output), sorted(head.attribute), defaults, opsets


def _signature(value: ir.Value) -> str:
    return f"'{value.name}' {value.dtype} {value.shape}"


def _node_lists(expected: Sequence[ir.Node], found: Sequence[ir.Node], where: str) -> Iterator[str]:
    for want, have in zip(expected, found, strict=False):
        if want.op_type != have.op_type or _outputs(want) != _outputs(have):
            yield f"{where}{_label(have)} stands where {_label(want)} is expected"
            return
        yield from _nodes(want, have, where)
    for have in found[len(expected) :]:
        yield f"{where}{_label(have)} is not in the fold of the reference; expected no such node"
    for want in expected[len(found) :]:
        yield f"{where}{_label(want)} is missing"


def _nodes(expected: ir.Node, found: ir.Node, where: str) -> Iterator[str]:
    if _domain(expected) != _domain(found) or expected.overload != found.overload:
        yield f"{where}{_label(found)} is of domain '{_domain(found)}'; expected '{_domain(expected)}'"
    wanted = [None if value is None else value.name for value in expected.inputs]
    had = [None if value is None else value.name for value in found.inputs]
    if wanted != had:
        yield f"{where}{_label(found)} reads {had}; expected {wanted}"
    # The runtime believes what a graph states of an inner value: it makes a constant of its Shape, say.
    for value, stated in zip(expected.outputs, found.outputs, strict=True):
        if stated.dtype not in (None, value.dtype) or str(stated.shape) not in ("None", str(value.shape)):
            yield f"{where}{_label(found)} is stated to give {_signature(stated)}; expected {_signature(value)}"
    for name in sorted(expected.attributes.keys() | found.attributes.keys()):
        want, have = expected.attributes.get(name), found.attributes.get(name)
        if want is None or have is None:
            yield f"{where}{_label(found)} has {'an unexpected' if want is None else 'no'} attribute '{name}'"
        else:
            yield from _attributes(want, have, f"{where}{_label(found)}, attribute '{name}'")


def _attributes(expected: ir.Attr, found: ir.Attr, where: str) -> Iterator[str]:
    if expected.type != found.type or expected.is_ref() or found.is_ref():
        if (expected.type, expected.ref_attr_name) != (found.type, found.ref_attr_name):
            yield f"{where} is of type {found.type.name}; expected {expected.type.name}"
        return
    match expected.type:
        case ir.AttributeType.GRAPH:
            yield from _graphs(expected.as_graph(), found.as_graph(), frozenset(), f"{where}: ")
        case ir.AttributeType.GRAPHS:
            pairs = list(zip(expected.as_graphs(), found.as_graphs(), strict=False))
            if len(expected.as_graphs()) != len(found.as_graphs()):
                yield f"{where} has {len(found.as_graphs())} graphs; expected {len(expected.as_graphs())}"
            for want, have in pairs:
                yield from _graphs(want, have, frozenset(), f"{where}: ")
        case ir.AttributeType.TENSOR:
            if not same_bits(expected.as_tensor(), found.as_tensor()):
                yield f"{where} holds other numbers than in the reference"
        case ir.AttributeType.FLOAT | ir.AttributeType.FLOATS:
            if np.asarray(expected.value, np.float32).tobytes() != np.asarray(found.value, np.float32).tobytes():
                yield f"{where} is {found.value}; expected {expected.value}"
        case _:
            if str(expected.value) != str(found.value):
                yield f"{where} is {found.value}; expected {expected.value}"


def _initializers(expected: ir.Graph, found: ir.Graph, recomputed: frozenset[str], where: str) -> Iterator[str]:
    for name in sorted(expected.initializers.keys() - found.initializers.keys()):
        yield f"{where}tensor '{name}' is missing"
    for name in sorted(found.initializers.keys() - expected.initializers.keys()):
        yield f"{where}tensor '{name}' is not in the fold of the reference; expected no such tensor"
    for name in expected.initializers.keys() & found.initializers.keys():
        want, have = expected.initializers[name].const_value, found.initializers[name].const_value
        if want is None or have is None:
            if want is not have:
                yield f"{where}tensor '{name}' has {'no' if have is None else 'unexpected'} data"
        elif (want.dtype, list(want.shape)) != (have.dtype, list(have.shape)):
            yield (
                f"{where}tensor '{name}' is {have.dtype.name} {list(have.shape)}; "
                f"expected {want.dtype.name} {list(want.shape)}"
            )
        elif name not in recomputed and not same_bits(want, have):
            yield f"{where}tensor '{name}', which no fold touches, differs from the reference"


def same_bits(left: ir.TensorProtocol, right: ir.TensorProtocol) -> bool:
    """True when two tensors have one dtype, one shape and the same bits."""
    if left.dtype != right.dtype or list(left.shape) != list(right.shape):
        return False
    if left.dtype == ir.DataType.STRING:  # texts have no bits of their own
        return bool(np.array_equal(left.numpy(), right.numpy()))
    return left.tobytes() == right.tobytes()


def _outputs(node: ir.Node) -> list[str | None]:
    return [value.name for value in node.outputs]


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _label(node: ir.Node) -> str:
    outputs = ", ".join(str(name) for name in _outputs(node))
    return f"{node.op_type} '{node.name or outputs}' (writing {outputs})"
