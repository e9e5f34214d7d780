"""A large tensor times small factors, written so that as few passes over the large one as possible are made.

Multiplication in real arithmetic is associative and commutative, so the factors of nested products may be multiplied
with one another first, where that makes no larger tensor of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np

from bnfold.folding.double_double import DoubleDouble
from bnfold.folding.evaluation import Memo, evaluate
from bnfold.folding.expressions import Embed, Expr, Join, Op, Permute, Shape, Spread, Take, Total, View, operands, view
from bnfold.folding.expressions import spread as spread_to

_LEAST, _MOST = 2.0**-250, 2.0**250  # between these, products of factors cannot leave the range of float64
_SHORT = 64  # elements along which a factor does not vary, below which it pays to repeat it
_ROW = 1 << 16  # elements that a repeated factor may have


def regrouped(expr: Expr, known: Memo) -> Expr:
    """The same expression with the small factors of products multiplied first. known: values of all small parts.

    The values of what is new and small are added to `known`.
    """
    nodes = reached(expr, known)
    users = Counter(id(part) for node in nodes if id(node) not in known for part in operands(node))
    in_products = {id(part) for node in nodes if _is_product(node, known) for part in operands(node)}
    factors: dict[int, list[Expr]] = {}  # of products that are written into the one product that uses them
    new: dict[int, Expr] = {}
    for node in nodes:
        if not _is_product(node, known):
            new[id(node)] = node if id(node) in known else _rebuilt(node, [new[id(part)] for part in operands(node)])
            continue
        found: list[Expr] = []
        for part in operands(node):
            inner = factors.pop(id(part)) if id(part) in factors else [new[id(part)]]
            inner.extend(found)
            found = inner
        if users[id(node)] == 1 and id(node) in in_products:
            factors[id(node)] = found
        else:
            new[id(node)] = _product(found, node, known)
    return new[id(expr)]


def reached(expr: Expr, known: Memo) -> list[Expr]:
    """The nodes of an expression, operands first, none below those that are known."""
    nodes: list[Expr] = []
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, is_ready = stack.pop()
        if is_ready:
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            if id(node) not in known:
                stack.extend((part, False) for part in operands(node))
    return nodes


def _is_product(node: Expr, known: Memo) -> bool:
    return isinstance(node, Op) and node.kind == "mul" and id(node) not in known


def _rebuilt(node: Expr, parts: list[Expr]) -> Expr:
    if all(new is old for new, old in zip(parts, operands(node), strict=True)):
        return node
    match node:
        case Op():
            return dataclasses.replace(node, args=tuple(parts))
        case Join():
            return dataclasses.replace(node, parts=tuple(parts))
        case View() | Permute() | Spread() | Take() | Total() | Embed():
            return dataclasses.replace(node, of=parts[0])
        case _:
            return node


def _product(factors: list[Expr], node: Expr, known: Memo) -> Expr:
    """The product of factors, large ones first, then small ones, those of like shape multiplied with one another."""
    groups: list[Expr] = []
    for factor in (factor for factor in factors if id(factor) in known):
        at = next((at for at, group in enumerate(groups) if _fits(group.shape, factor.shape)), None)
        if at is None:
            groups.append(factor)
            continue
        joint = Op("mul", (groups[at], factor))
        if _is_safe(joint, known):
            groups[at] = joint
        else:
            groups.append(factor)
    large = [factor for factor in factors if id(factor) not in known]
    product, *rest = [*large, *(_repeated(group, node.shape, known) for group in groups)]
    for factor in rest:
        product = Op("mul", (product, factor))
    _ = product.shape
    return product


def _fits(left: Shape, right: Shape) -> bool:
    """True when the product of two tensors is no larger than the larger of them."""
    return math.prod(np.broadcast_shapes(left, right)) <= max(math.prod(left), math.prod(right))


def _is_safe(joint: Op, known: Memo) -> bool:
    """True when the product of two small factors is as good as the factors: nothing over- or underflows in it."""
    values = [evaluate(part, known).hi for part in (*joint.args, joint)]
    for value in values:
        sizes = np.abs(value[value != 0.0])
        if sizes.size and not (sizes.min() >= _LEAST and sizes.max() <= _MOST):
            known.pop(id(joint), None)
            return False
    return True


def _repeated(factor: Expr, shape: Shape, known: Memo) -> Expr:
    """A factor repeated along short last axes, over which numpy would loop one element at a time."""
    full = (1,) * (len(shape) - len(factor.shape)) + factor.shape
    last = len(shape)
    while last and full[last - 1] == 1:
        last -= 1
    length = math.prod(shape[last:])
    if not last or not 1 < length < _SHORT or math.prod(full) * length > _ROW:
        return factor
    found = spread_to(view(factor, full), (*full[:last], *shape[last:]))
    value = evaluate(found, known)
    known[id(found)] = (found, DoubleDouble(np.ascontiguousarray(value.hi), np.ascontiguousarray(value.lo)))
    return found
