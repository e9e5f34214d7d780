"""What makes a norm no fixed, finite affine map: NaN or negative variance, an infinite scale."""

from __future__ import annotations

import dataclasses

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import Expr
from bnfold.folding.facts import Graph, Norm, Reason


def refuse_unsound(graph: Graph) -> Graph:
    """The graph with a refusal on every norm whose numbers are not those of a finite affine map."""
    nodes = tuple(
        dataclasses.replace(node, refusal=fault(node)) if isinstance(node, Norm) and not node.refusal else node
        for node in graph.nodes
    )
    return graph.with_nodes(nodes)


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
    if not (algebra.evaluate(norm.scale).is_finite() and algebra.evaluate(norm.shift).is_finite()):
        return Reason("NON_FINITE_FOLD", "its scale or shift is not finite (a variance plus eps that is not positive?)")
    return None


def _count(expr: Expr, *, finite: bool) -> int:
    values = algebra.evaluate(expr).hi
    return int(np.sum(~np.isfinite(values)) if finite else np.sum(values < 0))
