"""Two affine maps in a row, over the same axis, are one.

Algebra: `s2 * (s1 * x + t1) + t2 = (s2 * s1) * x + (s2 * t1 + t2)`.
Condition: the first map's output has the second as its only reader (a graph output is a reader); both run over the
same axis, or one of them is a scalar; neither is refused or may not be touched; at most one of them is a norm
operator, so that every norm operator keeps a row of its own in the report (two in a row are absorbed one by one).
Source: composition of affine maps; Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3.1.

A hand-written batch norm arrives as three or four elementwise steps and leaves as one map; a bias that stands as an
addition between a matrix product and its norm joins the norm.
"""

from __future__ import annotations

import dataclasses

from bnfold.folding.expressions import add, mul
from bnfold.folding.facts import Graph, Norm

LONGEST = 64  # steps; expressions are walked recursively, and no norm is written in more than a handful


def compose_affine(graph: Graph) -> Graph | None:
    """Compose every map with the one before it where that may be done; None when there is no such pair."""
    # Elementwise steps first: a hand-written norm must be whole before a norm operator behind it is looked at.
    return _pass(graph, elementwise=True) or _pass(graph, elementwise=False)


def _pass(graph: Graph, *, elementwise: bool) -> Graph | None:
    """One pass from front to back over the maps that are elementwise, or over those that are not."""
    composed: dict[str, Norm] = {}  # by the id of the last map in it
    gone: set[str] = set()
    for second in graph.norms:
        first = graph.producers.get(second.input)
        if not isinstance(first, Norm) or second.is_elementwise != elementwise:
            continue
        first = composed.get(first.id, first)
        if _composable(graph, first, second):
            composed[second.id] = _compose(first, second)
            gone.add(first.id)
    nodes = tuple(composed.get(node.id, node) for node in graph.nodes if node.id not in gone)
    return graph.with_nodes(nodes) if gone else None


def _composable(graph: Graph, first: Norm, second: Norm) -> bool:
    return (
        first.is_elementwise
        and (second.is_elementwise or not first.is_norm)
        and graph.readers[first.output] == (second.id,)
        and (first.axis == second.axis or None in (first.axis, second.axis))
        and len(first.steps) < LONGEST
        and not any((first.refusal, second.refusal, first.obstacle, second.obstacle))
    )


def _compose(first: Norm, second: Norm) -> Norm:
    named = second if not first.is_norm else first
    return dataclasses.replace(
        second,
        name=named.name,
        input=first.input,
        scale=mul(second.scale, first.scale),
        shift=add(mul(second.scale, first.shift), second.shift),
        axis=second.axis if first.axis is None else first.axis,
        nodes=first.nodes + second.nodes,
        steps=first.steps + second.steps if second.is_elementwise else (),
    )
