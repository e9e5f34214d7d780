"""Evaluation of expressions, in whatever arithmetic is asked for: whole, or some rows at a time.

An expression is compiled into steps in topological order, so that chains of any depth are no problem. A step may be
evaluated by rows along one of its axes: what lies below then is evaluated by the same rows, as far as layout allows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from bnfold.folding import double_double as dd
from bnfold.folding.double_double import F64, DoubleDouble
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
    Tensor,
    Total,
    View,
    operands,
    walk,
)

Memo: TypeAlias = dict[int, tuple[Expr, DoubleDouble]]  # by id of the expression, which it keeps alive
X = TypeVar("X")

_REMEMBERED = 65536  # elements of the largest value that a memo keeps


class Arithmetic(Protocol[X]):
    """What a kind of numbers must know to evaluate expressions in it."""

    def stored(self, values: Array) -> X:
        """Numbers of the source in their own dtype."""

    def known(self, value: DoubleDouble) -> X:
        """Numbers that have been computed in double-double."""

    def moved(self, x: X, change: Callable[[F64], F64]) -> X:
        """The numbers with a change of layout, which copies numbers or fills in zeros."""

    def joined(self, parts: list[X], axis: int) -> X:
        """Arrays behind one another."""

    def total(self, x: X, axes: tuple[int, ...]) -> X:
        """The sum over some axes, which stay with size 1."""

    def combined(self, kind: str, args: list[X]) -> X:
        """An elementwise operation with broadcasting."""


class InDoubleDouble:
    """Evaluation in double-double."""

    _KINDS: ClassVar[dict[str, Callable[..., DoubleDouble]]] = {
        "add": dd.add, "sub": dd.sub, "mul": dd.mul, "div": dd.div, "sqrt": dd.sqrt,
    }  # fmt: skip

    def stored(self, values: Array) -> DoubleDouble:
        """The numbers as they are."""
        return dd.exact(values)

    def known(self, value: DoubleDouble) -> DoubleDouble:
        """The numbers as they are."""
        return value

    def moved(self, x: DoubleDouble, change: Callable[[F64], F64]) -> DoubleDouble:
        """Both parts moved."""
        return DoubleDouble(change(x.hi), change(x.lo))

    def joined(self, parts: list[DoubleDouble], axis: int) -> DoubleDouble:
        """Both parts joined."""
        return DoubleDouble(np.concatenate([x.hi for x in parts], axis), np.concatenate([x.lo for x in parts], axis))

    def total(self, x: DoubleDouble, axes: tuple[int, ...]) -> DoubleDouble:
        """The sum by halves."""
        return dd.total(x, axes)

    def combined(self, kind: str, args: list[DoubleDouble]) -> DoubleDouble:
        """The operation of Hida, Li and Bailey."""
        return self._KINDS[kind](*args)


class InFloat64:
    """Evaluation in plain float64."""

    _KINDS: ClassVar[dict[str, Callable[..., F64]]] = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt,
    }  # fmt: skip

    def stored(self, values: Array) -> F64:
        """The nearest float64: the numbers themselves."""
        return values.astype(np.float64)

    def known(self, value: DoubleDouble) -> F64:
        """The nearest float64."""
        return value.hi

    def moved(self, x: F64, change: Callable[[F64], F64]) -> F64:
        """The array moved."""
        return change(x)

    def joined(self, parts: list[F64], axis: int) -> F64:
        """The arrays joined."""
        return np.concatenate(parts, axis)

    def total(self, x: F64, axes: tuple[int, ...]) -> F64:
        """numpy's sum."""
        return np.asarray(x.sum(axis=axes, keepdims=True))

    def combined(self, kind: str, args: list[F64]) -> F64:
        """numpy's operation."""
        return self._KINDS[kind](*args)


Key: TypeAlias = tuple[int, int | None]  # the id of a node, and the axis of its rows (None: it is evaluated whole)


@dataclass(frozen=True)
class Step:
    """One node to evaluate, whole or by rows. of: what it is made of.

    is_cut: the rows are cut out of the whole value, its only operand.
    """

    key: Key
    node: Expr
    of: tuple[Key, ...]
    is_cut: bool = False


def compiled(expr: Expr, axis: int | None, known: Container[int]) -> tuple[Step, ...]:
    """The steps, in topological order, that evaluate an expression whole or by rows along an axis.

    known: ids of the nodes whose values are known, where the steps may stop.
    """
    steps: list[Step] = []
    done: set[Key] = set()
    stack: list[tuple[Expr, int | None, bool]] = [(expr, axis, False)]
    while stack:
        node, rows, is_ready = stack.pop()
        key = (id(node), rows)
        if key in done:
            continue
        parts, is_cut = ((), False) if id(node) in known else _below(node, rows)
        if is_ready or not parts:
            done.add(key)
            steps.append(Step(key, node, tuple((id(part), at) for part, at in parts), is_cut))
        else:
            stack.append((node, rows, True))
            stack.extend((part, at, False) for part, at in parts)
    return tuple(steps)


def _below(node: Expr, axis: int | None) -> tuple[tuple[tuple[Expr, int | None], ...], bool]:
    """What the rows of a node are made of: operands with the axis of their rows; or the node itself, whole."""
    parts = operands(node)
    if axis is None or not parts:
        return tuple((part, None) for part in parts), False
    rows = _row_axes(node, axis)
    if rows is None:
        return ((node, None),), True
    return tuple(zip(parts, rows, strict=True)), False


def _row_axes(node: Expr, axis: int) -> tuple[int | None, ...] | None:
    """The axis of each operand that the rows of a node run over (None: it has none); None: they are no rows there."""
    match node:
        case View(of, shape):
            found = _same_axis(of.shape, shape, axis)
            return None if found is None else (found,)
        case Permute(_, perm):
            return (perm[axis],)
        case Spread(of, shape):
            return (axis if of.shape[axis] == shape[axis] else None,)
        case Take(_, at, _):
            return None if at == axis else (axis,)
        case Join(parts, at):
            return None if at == axis else (axis,) * len(parts)
        case Embed(of, shape, _, _):
            return (axis,) if of.shape[axis] == shape[axis] else None
        case Total(_, axes):
            return None if axis in axes else (axis,)
        case Op(_, args):
            places = ((arg, axis - len(node.shape) + len(arg.shape)) for arg in args)
            return tuple(at if at >= 0 and arg.shape[at] == node.shape[axis] else None for arg, at in places)
        case _:
            return None


def _same_axis(old: Shape, new: Shape, axis: int) -> int | None:
    """The axis of the old shape that a view leaves as the axis of the new one."""
    before = math.prod(new[:axis])
    for at, size in enumerate(old):
        if size == new[axis] and math.prod(old[:at]) == before:
            return at
    return None


class Source:
    """The tensors of the source, each loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[Hashable, Array] = {}

    def load(self, tensor: Tensor) -> Array:
        """The values of a tensor in its own dtype and shape."""
        if tensor.key not in self._loaded:
            self._loaded[tensor.key] = tensor.load()
        return self._loaded[tensor.key].reshape(tensor.shape)


class Run(Generic[X]):
    """The evaluation of an expression in one arithmetic, whole or block by block along an axis."""

    def __init__(self, expr: Expr, axis: int | None, arithmetic: Arithmetic[X], known: Memo, source: Source) -> None:
        self._arithmetic, self._known, self._source = arithmetic, known, source
        steps = compiled(expr, axis, known)
        self._whole = tuple(step for step in steps if step.key[1] is None)
        self._rows = tuple(step for step in steps if step.key[1] is not None)
        self._top = (id(expr), axis)
        self._kept: dict[Key, X] | None = None

    def whole(self, remember: Callable[[Expr, X], None] | None = None) -> X:
        """The value of an expression that is not evaluated by rows."""
        return self._carried_out(self._whole, {}, None, {self._top}, remember)[self._top]

    def rows(self, start: int, stop: int) -> X:
        """Some rows of the value along the axis. What does not depend on them is evaluated once."""
        if self._kept is None:
            needed = {key for step in self._rows for key in step.of}
            self._kept = self._carried_out(self._whole, {}, None, needed)
        values = dict(self._kept)
        return self._carried_out(self._rows, values, slice(start, stop), {self._top})[self._top]

    def _carried_out(
        self,
        steps: tuple[Step, ...],
        values: dict[Key, X],
        rows: slice | None,
        needed: set[Key],
        remember: Callable[[Expr, X], None] | None = None,
    ) -> dict[Key, X]:
        """The values of steps, without those that nobody needs any more."""
        left = Counter(key for step in steps for key in step.of)
        for step in steps:
            found = self._value(step, [values[key] for key in step.of], rows)
            values[step.key] = found
            if remember is not None:
                remember(step.node, found)
            for key in step.of:
                left[key] -= 1
                if not left[key] and key not in needed:
                    values.pop(key, None)
        return values

    def _value(self, step: Step, of: list[X], rows: slice | None) -> X:
        node, axis = step.node, step.key[1]
        cut: tuple[slice, ...] = () if axis is None or rows is None else (slice(None),) * axis + (rows,)
        shape = node.shape
        if axis is not None and rows is not None:
            shape = (*shape[:axis], rows.stop - rows.start, *shape[axis + 1 :])
        if step.is_cut:
            return self._arithmetic.moved(of[0], lambda x: x[cut])
        if id(node) in self._known:
            value = self._known[id(node)][1]
            return self._arithmetic.known(DoubleDouble(_cut(value.hi, cut), _cut(value.lo, cut)))
        match node:
            case Scalar(number):
                return self._arithmetic.known(dd.exact(number))
            case Given(values, full):
                return self._arithmetic.known(dd.exact(_cut(np.asarray(values).reshape(full), cut)))
            case Leaf(tensor):
                return self._arithmetic.stored(_cut(self._source.load(tensor), cut))
            case Join(_, at):
                return self._arithmetic.joined(of, at)
            case Total(_, axes):
                return self._arithmetic.total(of[0], axes)
            case Op(kind, _):
                return self._arithmetic.combined(kind, of)
            case _:
                return self._arithmetic.moved(of[0], movement(node, shape))


def _cut(values: Array, cut: tuple[slice, ...]) -> Array:
    return values[cut] if cut else values  # an empty index would make a scalar of an array without axes


def movement(node: View | Permute | Spread | Take | Embed, shape: Shape) -> Callable[[Array], Array]:
    """What a change of layout does to an array. shape: of the result, or of its rows."""
    match node:
        case View():
            return lambda x: x.reshape(shape)
        case Permute(_, perm):
            return lambda x: x.transpose(perm)
        case Spread():
            return lambda x: np.broadcast_to(x, shape)
        case Take(_, axis, indices):
            return lambda x: x.take(np.asarray(indices, np.int64), axis=axis)
        case Embed(_, _, start, step):
            return lambda x: _embedded(x, shape, start, step)


def _embedded(x: Array, shape: Shape, start: tuple[int, ...], step: tuple[int, ...]) -> Array:
    full = np.zeros(shape, x.dtype)
    full[tuple(slice(a, a + (n - 1) * k + 1 if n else a, k) for a, n, k in zip(start, x.shape, step, strict=True))] = x
    return full


def evaluate(expr: Expr, memo: Memo | None = None) -> DoubleDouble:
    """The value of an expression in double-double. Overflow and invalid operations give inf and NaN, silently.

    memo: values of small expressions, kept and used again from call to call; the caller keeps it alive.
    """
    remember = None if memo is None else _remembering(memo)
    with np.errstate(all="ignore"):
        return Run(expr, None, InDoubleDouble(), memo or {}, Source()).whole(remember)


def _remembering(memo: Memo) -> Callable[[Expr, DoubleDouble], None]:
    def remember(node: Expr, value: DoubleDouble) -> None:
        if value.hi.size <= _REMEMBERED:
            memo[id(node)] = (node, value)

    return remember


def magnitude(expr: Expr) -> F64:
    """The values in plain float64: off by a relative 1e-9 of the sum of absolute terms at most."""
    with np.errstate(all="ignore"):
        return np.asarray(Run(expr, None, InFloat64(), {}, Source()).whole(), np.float64)


def settle_shapes(expr: Expr) -> None:
    """Ask every node for its shape, operands first: asking a deep chain from the top would recurse over it."""
    for node in walk(expr):
        _ = node.shape
