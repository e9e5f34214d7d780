"""Are two nodes, one of each network, the same computation? And which of their inputs must then be alike?

Linears are compared by what they are (window, groups, channels), never by how they are spelt; carriers by their rule
where it says everything; anything else attribute by attribute and constant by constant.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.folding.carriers import (
    Activation,
    Concat,
    Pad,
    Pool,
    Reshape,
    Select,
    Shuffle,
    Split,
    Sum,
    Transpose,
)
from bnfold.folding.expressions import Array, Expr, view
from bnfold.folding.facts import Carrier, Linear, Node, Norm, Opaque
from bnfold.folding.onnx_attributes import integers, number, text
from bnfold.folding.onnx_edits import NewTensor
from bnfold.parity.audit.sides import Side, same_bits

Pair = tuple[str, str]

_PLAIN = ("relu", "relu6", "leaky_relu", "hardswish", "mish", "silu")
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


def compare_nodes(left: Side, right: Side, before: Node, after: Node) -> Likeness:
    """Compare two nodes that stand in the same place."""
    match before, after:
        case Linear(), Linear():
            return _linears(left, right, before, after)
        case Carrier(rule=Reshape()), Carrier(rule=Reshape()):
            return _reshapes(left, right, before, after)
        case Carrier(rule=Concat(axis)), Carrier(rule=Concat(other)) if axis == other:
            return _concats(left, right, before, after)
        case Carrier(), Carrier() if _is_told_by_rule(before, after):
            return Likeness(list(zip(before.inputs, after.inputs, strict=True)))
        case Carrier(rule=Activation("hardswish")), _ if (source := _hard_swish(right, after)) is not None:
            return Likeness([(before.inputs[0], source)])
    return _plainly(left, right, before, after)


def _hard_swish(side: Side, node: Node) -> str | None:
    """x of `x * HardSigmoid(x)` with alpha 1/6 and beta 1/2, which is HardSwish-14; None for anything else."""
    if node.kind != "Mul":
        return None
    sources = list(inputs_of(side, node))
    for source, gate in itertools.permutations(sources, 2) if len(sources) == 2 else ():
        written = side.nodes.get(gate)
        if written is None or written.op_type != "HardSigmoid" or written.inputs[0] is None:
            continue
        slope, offset = number(written, "alpha", 0.2), number(written, "beta", 0.5)
        if side.root(written.inputs[0]) == source and abs(slope - 1 / 6) < 1e-8 and offset == 0.5:
            return source
    return None


def _is_told_by_rule(before: Carrier, after: Carrier) -> bool:
    if before.rule != after.rule or len(before.inputs) != len(after.inputs):
        return False
    match before.rule:
        case Concat() | Sum() | Transpose() | Split() | Shuffle():
            return True
        case Activation(function):
            return function in _PLAIN
        case Select(axes):
            return all(indices is not None for _, indices in axes)
        case Pool(window=window):
            return window is None or window.pads is not None
    return False


# Linears


def _linears(left: Side, right: Side, before: Linear, after: Linear) -> Likeness:
    source, pads = before.input, _pads(left, before)
    wanted, found = _signature(before), _signature(after)
    if wanted != found:
        spelt = f"{before.label} {_spelt(wanted)}"
        return Likeness(problem=f"{after.label} {_spelt(found)} stands where {spelt} is expected")
    have = _pads(right, after)
    if pads != have:
        border = _border(left, source)
        if border is not None and pads is not None:
            source, wide = border
            pads = tuple((a + b, c + d) for (a, c), (b, d) in zip(pads, wide, strict=False))
    if pads != have:
        return Likeness(problem=f"{after.label} is padded by {have}, {before.label} by {pads}")
    return Likeness([(source, after.input)])


def _signature(linear: Linear) -> tuple[object, ...]:
    window = linear.window
    kind = "dense" if window is None else "transposed convolution" if linear.is_transposed else "convolution"
    if window is None:
        return kind, linear.in_channels, linear.channels
    steps = (window.kernel, window.stride, window.dilation, window.output_padding, linear.groups)
    return kind, linear.in_channels, linear.channels, *steps


def _spelt(signature: tuple[object, ...]) -> str:
    kind, inputs, outputs, *rest = signature
    more = f", kernel {rest[0]}, stride {rest[1]}, groups {rest[4]}" if rest else ""
    return f"({kind}, {inputs} to {outputs} channels{more})"


def _pads(side: Side, linear: Linear) -> tuple[tuple[int, int], ...] | None:
    """The border of a convolution, computed where it hangs on a size that is known."""
    window = linear.window
    if window is None:
        return ()
    node = side.nodes.get(linear.id)
    shape = side.graph.shapes.get(linear.input, ())
    sizes = [size for size in shape[2:] if isinstance(size, int)]
    if window.pads is not None or node is None or linear.is_transposed or len(sizes) != len(window.kernel):
        return window.pads
    mode = text(node, "auto_pad", "NOTSET")
    if "SAME" not in mode:
        return None
    steps = zip(sizes, window.kernel, window.stride, window.dilation, strict=True)
    return tuple(_same(size, kernel, stride, dilation, mode) for size, kernel, stride, dilation in steps)


def _same(size: int, kernel: int, stride: int, dilation: int, mode: str) -> tuple[int, int]:
    """SAME_UPPER and SAME_LOWER of Conv-11."""
    total = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _border(side: Side, value: str) -> tuple[str, tuple[tuple[int, int], ...]] | None:
    """(input, widths along the spatial axes) of a border of zeros that a value has; None where it has none."""
    node = side.producer(value)
    if not isinstance(node, Carrier) or not isinstance(node.rule, Pad):
        return None
    written = side.nodes.get(node.id)
    if written is None or node.rule.mode != "constant" or node.rule.value != 0 or {0, 1} & set(node.rule.axes):
        return None
    given = integers(written, "pads")
    if given is None and len(written.inputs) > 1:
        given = side.constants.integers(written.inputs[1])
    if given is None or (len(written.inputs) > 3 and written.inputs[3] is not None):
        return None
    half = len(given) // 2
    return node.inputs[0], tuple((given[axis], given[half + axis]) for axis in range(2, half))


# Shapes


def _reshapes(left: Side, right: Side, before: Carrier, after: Carrier) -> Likeness:
    wanted, found = left.graph.shapes.get(before.outputs[0]), right.graph.shapes.get(after.outputs[0])
    if wanted is None or found is None or not _alike(wanted, found):
        return Likeness(problem=f"{after.label} gives {found}, {before.label} {wanted}")
    return Likeness([(_unshaped(left, before.inputs[0]), _unshaped(right, after.inputs[0]))])


def _alike(wanted: tuple[object, ...], found: tuple[object, ...]) -> bool:
    """True when two shapes of the same elements are one: no more than one size is not known."""
    if len(wanted) != len(found):
        return False
    unsure = [at for at, size in enumerate(wanted) if not (isinstance(size, int) and size == found[at])]
    return len(unsure) <= 1 and not any(isinstance(wanted[at], int) and isinstance(found[at], int) for at in unsure)


def _unshaped(side: Side, value: str) -> str:
    """The value before other changes of shape."""
    node = side.producer(value)
    while isinstance(node, Carrier) and isinstance(node.rule, Reshape):
        value = node.inputs[0]
        node = side.producer(value)
    return value


def _concats(left: Side, right: Side, before: Carrier, after: Carrier) -> Likeness:
    first, second = _joined(left, before), _joined(right, after)
    if len(first) != len(second):
        return Likeness(problem=f"{after.label} joins {len(second)} values, {before.label} {len(first)}")
    return Likeness(list(zip(first, second, strict=True)))


def _joined(side: Side, node: Carrier) -> list[str]:
    """What is joined in the end where one of the values is joined itself, along the same axis."""
    found: list[str] = []
    for value in node.inputs:
        chain = side.chain(value)
        inner = side.producer(chain.source)
        if not chain.norms and isinstance(inner, Carrier) and inner.rule == node.rule:
            found += _joined(side, inner)
        else:
            found.append(value)
    return found


# Anything else


def _plainly(left: Side, right: Side, before: Node, after: Node) -> Likeness:
    first, second = left.nodes.get(_id(before)), right.nodes.get(_id(after))
    labels = f"{_label(after)} stands where {_label(before)} is expected"
    if first is None or second is None or (first.domain, first.op_type) != (second.domain, second.op_type):
        return Likeness(problem=labels)
    if _attributes(left, first) != _attributes(right, second):
        return Likeness(problem=f"{labels}, with other attributes")
    if _has_subgraph(first) or _body(left, first) != _body(right, second):
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


def _body(side: Side, node: ir.Node) -> bytes | None:
    """The function that a node calls, as bytes."""
    function = side.model.functions.get(node.op_identifier())
    if function is None:
        return None
    body: bytes = ir.to_proto(function).SerializeToString(deterministic=True)
    return body


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


def _attributes(side: Side, node: ir.Node) -> dict[str, object]:
    """Attributes by name, without those that have their default."""
    found: dict[str, object] = {}
    for name, attribute in node.attributes.items():
        default = _defaults(node.op_type, side.model.opset_imports.get("", 0)).get(name) if node.domain == "" else None
        value = _value(attribute)
        if default is None or value != default:
            found[name] = value
    return found


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
