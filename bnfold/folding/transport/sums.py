"""An affine map and a sum of tensors (a residual connection).

Algebra: `a * (x + y) + b = (a * x + b) + (a * y)`: the scale goes into every term, the shift into any one of them.
Of `x + x`, each term takes half of the shift. Forward: `(a * x + b) + (a * y + c) = a * (x + y) + (b + c)`; a shift
alone needs no partner.
Condition: no term is broadcast along an axis on which the map varies, nor adds axes.
Source: linearity; the planner sees to it that no linear is scaled twice where one value stands for two terms.
"""

from __future__ import annotations

from bnfold.folding.affine import IDENTITY, AffineMap, is_zero
from bnfold.folding.carriers import Sum
from bnfold.folding.expressions import ZERO, Expr, Scalar, add, div, sub
from bnfold.folding.facts import Carrier, Reason
from bnfold.folding.transport.passage import Passage, Shapes, only, unknown_shape


def backward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[Passage, ...] | Reason:
    """One passage for each term that may take the shift."""
    asked = only(maps)
    signs = _signs(carrier)
    problem = is_broadcast(carrier, asked, shapes)
    if problem:
        return problem
    scale = AffineMap(asked.scale, ZERO)
    if is_zero(asked.shift):
        return (Passage((scale,) * len(signs)),)
    if len(set(carrier.inputs)) == 1 and set(signs) == {1}:  # x + x: every term is the same value
        share = AffineMap(asked.scale, div(asked.shift, Scalar(float(len(signs)))))
        return (Passage((share,) * len(signs)),)
    passages = []
    for taker, sign in enumerate(signs):
        shifted = AffineMap(asked.scale, asked.shift if sign > 0 else negative(asked.shift))
        passages.append(Passage(tuple(shifted if at == taker else scale for at in range(len(signs)))))
    return tuple(passages)


def forward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[AffineMap, ...] | Reason:
    """The map of the sum, where all terms have the same scale."""
    terms = [moving or IDENTITY for moving in maps]
    for moving in terms:
        problem = is_broadcast(carrier, moving, shapes)
        if problem:
            return problem
    first = terms[0]
    if not all(moving.with_shift(ZERO).equals(first.with_shift(ZERO)) for moving in terms):
        return Reason("OTHER_READER", f"the other terms of {carrier.label} do not have the same scale")
    shift: Expr = ZERO
    for moving, sign in zip(terms, _signs(carrier), strict=True):
        shift = add(shift, moving.shift if sign > 0 else negative(moving.shift))
    return (AffineMap(first.scale, shift),)


def is_broadcast(carrier: Carrier, moving: AffineMap, shapes: Shapes) -> Reason | None:
    """Why the map does not fit every term: one of them is broadcast where the map varies. None when it does."""
    whole = shapes.get(carrier.outputs[0])
    if whole is None:
        return unknown_shape(carrier, carrier.outputs[0])
    for value in carrier.inputs:
        part = shapes.get(value)
        if part is None:
            return unknown_shape(carrier, value)
        if len(part) != len(whole) or any(
            not isinstance(whole[axis], int) or part[axis] != whole[axis] for axis in moving.axes
        ):
            return Reason("BROADCAST_SUM", f"{carrier.label} broadcasts one of its terms over the channels")
    return None


def negative(part: Expr) -> Expr:
    """-x."""
    return part if part == ZERO else sub(ZERO, part)


def _signs(carrier: Carrier) -> tuple[int, ...]:
    return carrier.rule.signs if isinstance(carrier.rule, Sum) else (1,) * len(carrier.inputs)
