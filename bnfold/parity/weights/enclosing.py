"""Expressions over whole tensors as balls: each value with a rigorous bound on its error (`balls.py`).

The product of one huge constant with small factors, and sums over such a product, are computed in slices of the first
axis, so that no copy of the constant is ever there as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnfold.folding.expressions import (
    Array,
    Embed,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Permute,
    Scalar,
    Shape,
    Spread,
    Take,
    Total,
    View,
    operands,
)
from bnfold.parity.weights import balls
from bnfold.parity.weights.balls import Ball

F64 = np.ndarray[Any, np.dtype[np.float64]]
Rows: TypeAlias = Callable[[int, int, bool], Ball]  # the balls of some slices of the first axis; wide or not

BLOCK = 1 << 20  # elements at a time; the working set stays in the cache
_SHARE = 16  # a factor is small if the tensor has this many times its elements


def enclose(expr: Expr, *, wide: bool) -> Ball:
    """The values of an expression over constants, enclosed. wide: to about 104 bits instead of 52.

    Parts are let go as soon as nobody needs them any more.
    """
    order = list(_walk(expr))
    last = {id(part): at for at, node in enumerate(order) for part in _operands(node)}
    done: dict[int, list[int]] = {}
    for part, at in last.items():
        done.setdefault(at, []).append(part)
    found: dict[int, Ball] = {}
    with np.errstate(all="ignore"):
        for at, node in enumerate(order):
            found[id(node)] = _node(node, [found[id(part)] for part in _operands(node)], wide)
            for part in done.get(at, ()):
                found.pop(part, None)
    return found[id(expr)]


def at_most(expr: Expr) -> F64:
    """|v| of every value of an expression, or a little more, in float64."""
    ball = enclose(expr, wide=False)
    parts = [np.abs(part) for part in (ball.hi, ball.lo, ball.rad) if part is not None]
    return np.asarray(np.nextafter(sum(parts[1:], parts[0]) * (1 + 2.0**-50), np.inf))


def product_rows(expr: Expr, shape: Shape) -> Rows | None:
    """The slices of one constant of this shape times small factors; None for any other expression."""
    large: list[Expr] = []
    small: list[Expr] = []
    stack = [expr]
    while stack:
        node = stack.pop()
        if isinstance(node, Op) and node.kind == "mul":
            stack += node.args
        else:
            (small if math.prod(node.shape) * _SHARE <= math.prod(shape) else large).append(node)
    if len(large) != 1 or not isinstance(large[0], Leaf) or large[0].shape != shape:
        return None
    tensor, loaded, factors = large[0].tensor, list[Array](), dict[bool, list[Ball]]()

    def rows(start: int, stop: int, wide: bool) -> Ball:
        if not loaded:
            loaded.append(tensor.load())
        if wide not in factors:
            factors[wide] = [_ranked(enclose(factor, wide=wide), len(shape)) for factor in small]
        ball = Ball(loaded[0][start:stop].astype(np.float64))
        with np.errstate(all="ignore"):
            for factor in factors[wide]:
                part = factor if factor.hi.shape[0] == 1 else factor.each(lambda x: x[start:stop])
                ball = balls.mul(ball, part, wide)
        return ball

    return rows


def slices(shape: Shape) -> Iterator[tuple[int, int]]:
    """The first axis in blocks."""
    step = max(1, BLOCK // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _ranked(ball: Ball, rank: int) -> Ball:
    return ball.each(lambda part: part.reshape((1,) * (rank - part.ndim) + part.shape))


def _operands(node: Expr) -> tuple[Expr, ...]:
    """What must be enclosed as a whole before a node can be."""
    return () if _summed_product(node) is not None else operands(node)


def _walk(expr: Expr) -> Iterator[Expr]:
    """Every node that must be enclosed as a whole, operands before what is made of them."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((part, False) for part in _operands(node))


def _summed_product(node: Expr) -> tuple[Rows, Shape, tuple[int, ...]] | None:
    """(slices of the product, its shape, axes) where a node is the sum over some axes of a large product."""
    if not isinstance(node, Total) or math.prod(node.of.shape) < BLOCK:
        return None
    of, axes = node.of, node.axes
    if isinstance(of, View) and of.shape == (1, *of.of.shape) and 0 not in axes:
        of, axes = of.of, tuple(axis - 1 for axis in axes)
    rows = product_rows(of, of.shape)
    return None if rows is None else (rows, of.shape, axes)


def _sum_of_product(rows: Rows, of: Shape, axes: Sequence[int], shape: Shape, wide: bool) -> Ball:
    parts = [balls.total(rows(start, stop, wide), axes, wide) for start, stop in slices(of)]
    if 0 not in axes:
        return balls.joined(parts, 0).each(lambda part: part.reshape(shape))
    return balls.total(balls.joined(parts, 0), (0,), wide).each(lambda part: part.reshape(shape))


def _node(node: Expr, of: list[Ball], wide: bool) -> Ball:
    match node:
        case Scalar(value):
            return Ball(np.asarray(value, np.float64))
        case Leaf(tensor):
            return Ball(np.asarray(tensor.load()).astype(np.float64))
        case Given(values, shape):
            return Ball(np.asarray(values, np.float64).reshape(shape))
        case View(_, shape):
            return of[0].each(lambda part: part.reshape(shape))
        case Permute(_, perm):
            return of[0].each(lambda part: part.transpose(perm))
        case Spread(_, shape):
            return of[0].spread(shape)
        case Take(_, axis, indices):
            return of[0].each(lambda part: part.take(indices, axis=axis))
        case Embed(_, shape, start, step):
            return of[0].each(lambda part: _embedded(part, shape, start, step))
        case Join(_, axis):
            return balls.joined(of, axis)
        case Total(_, axes):
            product = _summed_product(node)
            return balls.total(of[0], axes, wide) if product is None else _sum_of_product(*product, node.shape, wide)
        case Op("sqrt", _):
            return balls.sqrt(of[0], wide)
        case Op("add", _):
            return balls.add(of[0], of[1], wide)
        case Op("sub", _):
            return balls.add(of[0], balls.minus(of[1]), wide)
        case Op("mul", _):
            return balls.mul(of[0], of[1], wide)
        case Op():
            return balls.div(of[0], of[1], wide)


def _embedded(part: F64, shape: Shape, start: Sequence[int], step: Sequence[int]) -> F64:
    full = np.zeros(shape)
    full[tuple(slice(a, a + (n - 1) * k + 1, k) for a, n, k in zip(start, part.shape, step, strict=True))] = part
    return full
