"""Nodes of which nothing is known but their operator: attribute by attribute, and constant by constant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.folding.expressions import Array, Expr, view
from bnfold.folding.facts import Carrier, Linear, Node, Norm, Opaque
from bnfold.folding.onnx_edits import NewTensor
from bnfold.parity.audit.sides import Side, same_bits

Pair = tuple[str, str]

COMMUTATIVE = ("Add", "Mul", "Max", "Min", "Sum", "And", "Or", "Xor", "Equal")


@dataclass(frozen=True)
class Stored:
    """A constant of the folded network that stands for an expression of the original one. value: its ONNX name."""

    value: str
    array: Array
    new: NewTensor
    expr: Expr


@dataclass
class Likeness:
    """Two nodes side by side. inputs: pairs of values that must be alike; problem: why they are not the same."""

    inputs: list[Pair] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    problem: str = ""


def compare_plainly(left: Side, right: Side, before: Node, after: Node) -> Likeness:
    """Compare two nodes as they are written."""
    first, second = left.nodes.get(_id(before)), right.nodes.get(_id(after))
    labels = f"{_label(after)} stands where {_label(before)} is expected"
    if first is None or second is None or (first.domain, first.op_type) != (second.domain, second.op_type):
        return Likeness(problem=labels)
    if not _same_attributes(left, right, first, second):
        return Likeness(problem=f"{labels}, with other attributes")
    if _meaning(left, first) != _meaning(right, second):
        return Likeness(problem=f"{labels}, which means something else in that operator set")
    if _has_subgraph(first) or _bodies(left, first) != _bodies(right, second):
        return Likeness(problem=f"{_label(after)} has a subgraph or a function of its own, which is not looked into")
    found = Likeness()
    wanted, had = _inputs(first), _inputs(second)
    if first.op_type in COMMUTATIVE and len(wanted) == len(had) == 2 and _is_turned(left, right, wanted, had):
        had = had[::-1]
    for want, have in zip(wanted, had, strict=False):
        if (want is None) != (have is None):
            return Likeness(problem=f"{labels}, with other inputs")
        if want is not None and have is not None and not _same_input(left, right, want, have, found):
            return Likeness(problem=f"{labels}, with another constant '{have.name}'")
    if len(wanted) != len(had):
        return Likeness(problem=f"{labels}, with other inputs")
    return found


def _is_turned(left: Side, right: Side, wanted: list[ir.Value | None], had: list[ir.Value | None]) -> bool:
    """True where a constant and a value change places."""
    first = [value is not None and left.constant(value) is not None for value in wanted]
    second = [value is not None and right.constant(value) is not None for value in had]
    return first != second and first == second[::-1]


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _bodies(side: Side, node: ir.Node) -> dict[ir.OperatorIdentifier, bytes]:
    """The function that a node calls, and those that it calls in turn, as bytes."""
    found: dict[ir.OperatorIdentifier, bytes] = {}
    waiting = [node.op_identifier()]
    while waiting:
        name = waiting.pop()
        function = side.model.functions.get(name)
        if function is not None and name not in found:
            found[name] = ir.to_proto(function).SerializeToString(deterministic=True)
            waiting += [inner.op_identifier() for inner in function.all_nodes()]
    return found


def _same_input(left: Side, right: Side, want: ir.Value, have: ir.Value, found: Likeness) -> bool:
    stored, array = left.constants.stored(want), right.constant(have)
    if stored is not None and stored.name in left.made and array is not None:
        new = left.made[stored.name]
        if array.size != stored.load().size or right.constants.stored(have) is None:
            return False
        found.stored.append(Stored(str(have.name), array, new, view(new.expr, array.shape)))
        return True
    known = left.constant(want)
    if known is None and array is None:
        found.inputs.append((left.root(want), right.root(have)))
        return True
    return known is not None and array is not None and same_numbers(known, array)


def same_numbers(known: Array, array: Array) -> bool:
    """True for the same bits, or the same numbers where one of the two was computed in float64."""
    if same_bits(known, array):
        return True
    if known.shape != array.shape or known.dtype.kind != array.dtype.kind or known.dtype.kind not in "fiub":
        return False
    if known.dtype.kind == "f" and known.dtype != array.dtype:
        return bool(np.array_equal(known.astype(array.dtype), array))
    return bool(known.dtype.kind in "iub" and np.array_equal(known, array))


def _same_attributes(left: Side, right: Side, first: ir.Node, second: ir.Node) -> bool:
    """True for the same values, written or by default; one that an operator set has not is at the other's default."""
    wanted, defaults = _attributes(left, first)
    found, others = _attributes(right, second)
    return (others | defaults | wanted) == (defaults | others | found)


def _attributes(side: Side, node: ir.Node) -> tuple[dict[str, object], dict[str, object]]:
    """(the attributes that are written, the defaults of all in the operator set of the network), by name."""
    defaults = _defaults(node.op_type, side.model.opset_imports.get("", 0)) if node.domain == "" else {}
    return {name: _value(attribute) for name, attribute in node.attributes.items()}, defaults


_CHANGED = {"Softmax": 13, "LogSoftmax": 13, "Hardmax": 13, "Resize": 11, "RoiAlign": 16}


def _meaning(side: Side, node: ir.Node) -> bool:
    """Before or behind the operator set in which the same attributes came to mean something else."""
    since = _CHANGED.get(node.op_type, 0) if node.domain == "" else 0
    return side.model.opset_imports.get("", 0) >= since


def _value(attribute: ir.Attr) -> object:
    if attribute.is_ref():
        return "ref", attribute.ref_attr_name
    if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        tensors = [attribute.as_tensor()] if attribute.type == ir.AttributeType.TENSOR else attribute.as_tensors()
        return [(tensor.dtype, tuple(tensor.shape), tensor.tobytes()) for tensor in tensors]
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return None
    return list(attribute.value) if isinstance(attribute.value, tuple | list) else attribute.value


def _defaults(op_type: str, opset: int) -> dict[str, object]:
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return {}
    found = {}
    for name, given in schema.attributes.items():
        if given.default_value.type:
            value = onnx.helper.get_attribute_value(given.default_value)
            found[name] = value.decode() if isinstance(value, bytes) else value
    return found


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    found = list(node.inputs)
    while found and found[-1] is None:
        found.pop()
    return found


def _id(node: Node) -> str:
    return node.id


def _label(node: Node) -> str:
    return node.label


def inputs_of(side: Side, node: Node) -> Iterator[str]:
    """The values that a node reads and that are no constants."""
    match node:
        case Linear() | Norm():
            yield node.input
        case Carrier():
            yield from node.inputs
        case Opaque():
            written = side.nodes.get(node.id)
            for value in _inputs(written) if written is not None else ():
                if value is not None and side.constant(value) is None:
                    yield side.root(value)
