"""Are two nodes, one of each network, the same computation? And which of their inputs must then be alike?

Linears are compared by what they are (window, groups, channels), never by how they are spelt; carriers by their rule
where it says everything; anything else attribute by attribute and constant by constant.
"""

from __future__ import annotations

import itertools

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
from bnfold.folding.facts import Carrier, Linear, Node
from bnfold.folding.onnx_attributes import integers, number, text
from bnfold.parity.audit.plain_nodes import Likeness, compare_plainly, inputs_of
from bnfold.parity.audit.sides import Side

_PLAIN = ("relu", "relu6", "leaky_relu", "hardswish", "mish", "silu")


def compare_nodes(left: Side, right: Side, before: Node, after: Node) -> Likeness:
    """Compare two nodes that stand in the same place."""
    match before, after:
        case Linear(), Linear():
            return _linears(left, right, before, after)
        case Carrier(rule=Reshape()), Carrier(rule=Reshape()):
            return _reshapes(left, right, before, after)
        case Carrier(rule=Concat(axis)), Carrier(rule=Concat(other)) if axis == other:
            return _concats(left, right, before, after)
        case Carrier(rule=Select()), Carrier(rule=Select()):
            first, second = _selected(left, before), _selected(right, after)
            if first is not None and second is not None and first[1] == second[1]:
                return Likeness([(first[0], second[0])])
        case Carrier(), Carrier() if _is_told_by_rule(before, after):
            return Likeness(list(zip(before.inputs, after.inputs, strict=True)))
        case Carrier(rule=Activation("hardswish")), _ if (source := _hard_swish(right, after)) is not None:
            return Likeness([(before.inputs[0], source)])
    return compare_plainly(left, right, before, after)


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
    if pads is None and _sized(left, before) != _sized(right, after):
        return Likeness(problem=f"{after.label} has a border or output of another size than {before.label}")
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


def _sized(side: Side, linear: Linear) -> tuple[object, ...]:
    """What a border that hangs on the size of the data is made of, as it is written."""
    node = side.nodes.get(linear.id)
    if node is None:
        return ()
    return text(node, "auto_pad", "NOTSET"), integers(node, "pads"), integers(node, "output_shape")


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


def _selected(side: Side, node: Carrier) -> tuple[str, dict[int, tuple[int, ...]]] | None:
    """(what slices in a row are taken of, the indices by axis that are left of it); None where they are not known."""
    found: dict[int, tuple[int, ...]] = {}
    value: Node | None = node
    source = node.outputs[0]
    while isinstance(value, Carrier) and isinstance(value.rule, Select):
        for axis, indices in value.rule.axes:
            if indices is None:
                return None
            found[axis] = tuple(indices[at] for at in found[axis]) if axis in found else indices
        source = value.inputs[0]
        chain = side.chain(source)
        value = None if chain.norms else side.producer(chain.source)
    return source, found


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
