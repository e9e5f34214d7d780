"""What makes a norm no fixed, finite affine map: NaN or negative variance, an infinite scale."""

from __future__ import annotations

import dataclasses

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import Expr, Leaf, Scalar, walk
from bnfold.folding.facts import Graph, Norm, Reason


def refuse_unsound(graph: Graph, checked: Graph | None = None) -> Graph:
    """The graph with a refusal on every norm whose numbers are not those of a finite affine map.

    checked: a graph that has been through this; nodes that are the same objects are not looked at again.
    """
    known = {id(node) for node in checked.nodes} if checked is not None else set()
    nodes = tuple(
        _judged(node) if isinstance(node, Norm) and not node.refusal and id(node) not in known else node
        for node in graph.nodes
    )
    return graph.with_nodes(nodes)


def _judged(norm: Norm) -> Norm:
    found = fault(norm)
    return norm if found is None else dataclasses.replace(norm, refusal=found)


def fault(norm: Norm) -> Reason | None:
    """The first thing wrong with the numbers of a norm, None when it is sound."""
    if norm.statistics is not None:
        for name in ("mean", "variance", "gamma", "beta", "eps"):
            bad = _count(getattr(norm.statistics, name), finite=True)
            if bad:
                return Reason("NON_FINITE_STATISTICS", f"its {name} is NaN or infinite in {bad} channel(s)")
        negative = _count(norm.statistics.variance, finite=False)
        if negative:
            return Reason("NEGATIVE_VARIANCE", f"its variance is negative in {negative} channel(s)")
    made_of = norm.statistics is None and not all(_is_finite(part) for part in (norm.scale, norm.shift))
    if made_of or not all(np.isfinite(algebra.magnitude(part)).all() for part in (norm.scale, norm.shift)):
        return Reason("NON_FINITE_FOLD", "its scale or shift is not finite (a variance plus eps that is not positive?)")
    return None


def _is_finite(expr: Expr) -> bool:
    """True when every constant of an expression is finite: a division by infinity gives a finite zero."""
    for node in walk(expr):
        if isinstance(node, Scalar) and not np.isfinite(node.value):
            return False
        if isinstance(node, Leaf) and not np.isfinite(node.tensor.load().astype(np.float64)).all():
            return False
    return True


def _count(expr: Expr, *, finite: bool) -> int:
    values = algebra.magnitude(expr)
    return int(np.sum(~np.isfinite(values)) if finite else np.sum(values < 0))
