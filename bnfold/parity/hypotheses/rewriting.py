"""Expressions with some of their nodes exchanged, and the nodes in which a norm's statistics stand in one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from bnfold.folding.expressions import (
    ONE,
    ZERO,
    Embed,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Permute,
    Scalar,
    Spread,
    Take,
    Total,
    View,
    operands,
    size_of,
    spread,
    view,
    walk,
)
from bnfold.folding.facts import Norm, Statistics
from bnfold.folding.statistics import statistics_of


@dataclass(frozen=True)
class Rewrite:
    """A new tensor as a wrong fold makes it. code: the way in which it is wrong; words: the same for a person."""

    code: str
    words: str
    expr: Expr


def substitute(expr: Expr, by: Mapping[int, Expr]) -> Expr:
    """The expression with other nodes in the place of some, by id. Each must have the shape of the one it replaces."""
    made: dict[int, Expr] = {}
    for node in walk(expr):
        of = operands(node)
        new = tuple(made[id(part)] for part in of)
        if id(node) in by:
            found = by[id(node)]
        elif all(old is other for old, other in zip(of, new, strict=True)):
            found = node
        else:
            found = _rebuilt(node, new)
        _ = found.shape  # asked bottom up: a deep chain asked from the top would recurse
        made[id(node)] = found
    return made[id(expr)]


def _rebuilt(node: Expr, of: tuple[Expr, ...]) -> Expr:
    match node:
        case Op(kind, _):
            return Op(kind, of)
        case Join(_, axis):
            return Join(of, axis)
        case View(_, shape):
            return View(of[0], shape)
        case Permute(_, perm):
            return Permute(of[0], perm)
        case Spread(_, shape):
            return Spread(of[0], shape)
        case Take(_, axis, indices):
            return Take(of[0], axis, indices)
        case Total(_, axes):
            return Total(of[0], axes)
        case Embed(_, shape, start, step):
            return Embed(of[0], shape, start, step)
    return node


def shaped(expr: Expr, like: Expr) -> Expr:
    """An expression in the shape of another: of one number or of as many as the other has."""
    if expr.shape == like.shape:
        return expr
    if size_of(expr) == size_of(like):
        return view(expr, like.shape)
    return spread(view(expr, (1,) * len(like.shape)), like.shape)


def full(value: float, like: Expr) -> Expr:
    """One number in every place of a shape."""
    return shaped(Given((value,), (1,)), like) if like.shape else Given((value,), ())


def plain(expr: Expr) -> Expr:
    """An expression without the views around it."""
    while isinstance(expr, View):
        expr = expr.of
    return expr


class Tree:
    """The nodes of an expression, operands first."""

    def __init__(self, expr: Expr) -> None:
        self.expr = expr
        self.nodes = tuple(walk(expr))
        self.ids = frozenset(id(node) for node in self.nodes)

    def find(self, part: Expr) -> Expr | None:
        """A part as a node of this tree: itself, what it is a view of, or an equal leaf; None for a literal 0 or 1."""
        if part is ZERO or part is ONE:
            return None
        if id(part) in self.ids:
            return part
        core = plain(part)
        if id(core) in self.ids and not isinstance(core, Scalar):
            return core
        return next((node for node in self.nodes if isinstance(core, Leaf) and node == core), None)

    def replaced(self, code: str, words: str, by: Mapping[int, Expr]) -> Rewrite:
        """A rewrite of the whole with other nodes in the place of some."""
        return Rewrite(code, words, substitute(self.expr, by))

    @cached_property
    def depth(self) -> int:
        """The length of the longest chain of operations."""
        depths: dict[int, int] = {}
        for node in self.nodes:
            below = max((depths[id(part)] for part in operands(node)), default=0)
            depths[id(node)] = below + isinstance(node, Op)
        return depths[id(self.expr)]

    @cached_property
    def summed(self) -> int:
        """How many numbers the largest sum over axes has."""
        sizes = [size_of(node.of) // max(1, size_of(node)) for node in self.nodes if isinstance(node, Total)]
        return max(sizes, default=1)


@dataclass(frozen=True)
class Parts:
    """Where the statistics of a norm stand in a tree; None where they do not. total: variance + eps, root: of that."""

    norm: Norm
    gamma: Expr | None
    beta: Expr | None
    mean: Expr | None
    variance: Expr | None
    eps: Expr
    total: Op | None
    root: Op | None


def known_statistics(norm: Norm) -> Statistics | None:
    """The statistics of a norm, also where a bias of the linear was composed with it as its first step."""
    found = statistics_of(norm)
    if found is None and norm.steps and norm.steps[0].kind == "add":
        return statistics_of(dataclasses.replace(norm, steps=norm.steps[1:]))
    return found


def parts_of(norm: Norm, tree: Tree) -> Parts | None:
    """The statistics of a norm as nodes of a tree; None where they cannot be told apart."""
    known = known_statistics(norm)
    if known is None:
        return None
    variance = tree.find(known.variance)
    total = None if variance is None else _over(tree, "add", variance)
    root = None if total is None else _over(tree, "sqrt", total)
    return Parts(
        norm, tree.find(known.gamma), tree.find(known.beta), tree.find(known.mean), variance, known.eps, total, root
    )


def _over(tree: Tree, kind: str, part: Expr) -> Op | None:
    """The operation of a kind that is done to a node."""
    for node in tree.nodes:
        if isinstance(node, Op) and node.kind == kind and any(arg is part or plain(arg) is part for arg in node.args):
            return node
    return None
