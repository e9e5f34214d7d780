"""An affine map and concatenation, split and slicing.

Algebra: slices of a map are the maps of the slices; `concat(a1 * x1 + b1, a2 * x2 + b2) = concat(a1, a2) *
concat(x1, x2) + concat(b1, b2)`. A slice that nobody asks anything of keeps the map 1 * x + 0.
Condition: sizes along the axis are known where the map varies along it; indices are known there.
Source: ONNX Concat-13, Split-18, Slice-13, Gather-13.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.folding.affine import IDENTITY, AffineMap, compressed, take, widened
from bnfold.folding.carriers import Concat, Select, Split
from bnfold.folding.expressions import Expr, Given, Join, Scalar, Take, spread
from bnfold.folding.facts import Carrier, Reason
from bnfold.folding.transport.passage import Passage, Shapes, only, unknown_shape

Layout = Callable[[Expr], Expr]


def concat_backward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[Passage, ...] | Reason:
    """Each input gets its slices of the map."""
    asked, axis = only(maps), _axis(carrier)
    if axis not in asked.axes:
        return (Passage((asked,) * len(carrier.inputs)),)
    sizes = _sizes(carrier, carrier.inputs, axis, shapes)
    if isinstance(sizes, Reason):
        return sizes
    if sum(sizes) != asked.size(axis):
        return Reason("AXIS_MISMATCH", f"{carrier.label} gives {sum(sizes)} channels, the map has {asked.size(axis)}")
    return (Passage(tuple(_sliced(asked, axis, part) for part in _ranges(sizes))),)


def concat_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """The maps behind one another."""
    parts, axis = [moving or IDENTITY for moving in maps], _axis(carrier)
    if all(axis not in part.axes and part.equals(parts[0]) for part in parts):
        return (parts[0],)
    sizes = _sizes(carrier, carrier.inputs, axis, shapes)
    if isinstance(sizes, Reason):
        return sizes
    rank = len(shapes[carrier.inputs[0]])
    return (AffineMap(*(_joined([getattr(part, side) for part in parts], sizes, rank, axis) for side in _SIDES)),)


def split_backward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[Passage, ...] | Reason:
    """The parts' maps behind one another; a part that nobody asks anything of keeps its numbers."""
    rule = carrier.rule
    sizes = rule.sizes if isinstance(rule, Split) else ()
    axis = _axis(carrier)
    parts = [moving or IDENTITY for moving in maps]
    if all(axis not in part.axes and part.equals(parts[0]) for part in parts):
        return (Passage((parts[0],)),)
    known = shapes.get(carrier.inputs[0])
    if known is None or len(sizes) != len(parts):
        return unknown_shape(carrier, carrier.inputs[0])
    joined = (_joined([getattr(part, side) for part in parts], list(sizes), len(known), axis) for side in _SIDES)
    return (Passage((AffineMap(*joined),)),)


def split_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """Each part gets its slices of the map."""
    given, axis = only(maps), _axis(carrier)
    rule = carrier.rule
    sizes = rule.sizes if isinstance(rule, Split) else ()
    if axis not in given.axes:
        return (given,) * len(carrier.outputs)
    if sum(sizes) != given.size(axis) or len(sizes) != len(carrier.outputs):
        return unknown_shape(carrier, carrier.inputs[0])
    return tuple(_sliced(given, axis, part) for part in _ranges(list(sizes)))


def select_backward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[Passage, ...] | Reason:
    """Slices that are taken get their map, the others keep their numbers; one that is taken twice needs one map."""
    moving = only(maps)
    rule = carrier.rule
    for axis, indices in rule.axes if isinstance(rule, Select) else ():
        if axis not in moving.axes:
            continue
        known = shapes.get(carrier.inputs[0])
        size = known[axis] if known is not None else None
        if known is None or indices is None or not isinstance(size, int) or len(indices) != moving.size(axis):
            return unknown_shape(carrier, carrier.inputs[0])
        if len(set(indices)) != len(indices):
            return Reason("OTHER_READER", f"{carrier.label} takes a channel more than once")
        places = dict(zip(indices, range(len(indices)), strict=True))
        order = tuple(places.get(at, len(indices)) for at in range(size))
        moving = AffineMap(
            _filled(moving.scale, len(known), axis, order, len(indices), 1.0),
            _filled(moving.shift, len(known), axis, order, len(indices), 0.0),
        )
    return (Passage((moving,)),)


def select_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """The slices of the map."""
    moving = only(maps)
    rule = carrier.rule
    for axis, indices in rule.axes if isinstance(rule, Select) else ():
        if axis not in moving.axes:
            continue
        if indices is None:
            return unknown_shape(carrier, carrier.inputs[0])
        moving = _sliced(moving, axis, indices)
    return (moving,)


_SIDES = ("scale", "shift")


def _axis(carrier: Carrier) -> int:
    rule = carrier.rule
    return rule.axis if isinstance(rule, Concat | Split) else -1


def _sizes(carrier: Carrier, values: tuple[str, ...], axis: int, shapes: Shapes) -> list[int] | Reason:
    """The sizes of some values along an axis, all of them known."""
    found: list[int] = []
    for value in values:
        known = shapes.get(value)
        size = None if known is None or not 0 <= axis < len(known) else known[axis]
        if not isinstance(size, int):
            return unknown_shape(carrier, value)
        found.append(size)
    return found


def _ranges(sizes: list[int]) -> list[tuple[int, ...]]:
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    return [tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def _sliced(moving: AffineMap, axis: int, indices: tuple[int, ...]) -> AffineMap:
    return moving.each(lambda part: take(part, axis, indices))


def _joined(parts: list[Expr], sizes: list[int], rank: int, axis: int) -> Expr:
    """Constants behind one another along an axis, each widened to the size of its part."""
    if all(part is parts[0] or (not part.shape and part == parts[0]) for part in parts) and not parts[0].shape:
        return parts[0]
    wide = [widened(part, rank, axis, size) for part, size in zip(parts, sizes, strict=True)]
    common = [max(part.shape[at] for part in wide) for at in range(rank)]
    fitted = tuple(
        spread(part, tuple(part.shape[axis] if at == axis else common[at] for at in range(rank))) for part in wide
    )
    return compressed(Join(fitted, axis)) if len(fitted) > 1 else fitted[0]


def _filled(part: Expr, rank: int, axis: int, order: tuple[int, ...], known: int, otherwise: float) -> Expr:
    """A constant over the slices that are taken, put in its places among all; the others get a number of their own."""
    if part == Scalar(otherwise):
        return part
    whole = widened(part, rank, axis, known)
    rest = spread(
        Given((otherwise,), (1,) * len(whole.shape)),
        tuple(1 if at == axis else size for at, size in enumerate(whole.shape)),
    )
    return Take(Join((whole, rest), axis), axis, order)
