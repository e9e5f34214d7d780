"""Regions: what lies between the points where two graphs are equal, and is not the same on both sides.

A region has one point behind it, its target, and the points before it, its sources. Both sides compute the target from
the sources alone, so that both can be given the same input: the reference's own values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from bnfold.parity.local.points import written


@dataclass(frozen=True)
class Region:
    """One region. target, sources: (name in the folded graph, name in the reference).

    unfolded, folded: the nodes of either side, in order. tensors: the new ones among what the folded side reads.
    """

    target: tuple[str, str]
    sources: tuple[tuple[str, str], ...]
    unfolded: tuple[onnx.NodeProto, ...]
    folded: tuple[onnx.NodeProto, ...]
    tensors: tuple[str, ...]


def regions(
    reference: onnx.ModelProto, folded: onnx.ModelProto, same: Mapping[str, str], tensors: Collection[str]
) -> Iterator[Region]:
    """The regions of a fold, in the order of the folded graph.

    same: the points, names in the folded graph -> names in the reference. tensors: those that the fold made. Where the
    unfolded side also needs what the folded side does not, there is no common input, and no region.
    """
    old, new = _Side(reference), _Side(folded)
    gone = set(written(reference)) - set(written(folded))
    for target in (name for name in written(folded) if name in same):
        nodes, stops = new.behind(target, set(same) - {target})
        before, used = old.behind(same[target], {same[stop] for stop in stops})
        read = {name for node in nodes for name in node.input}
        made = tuple(name for name in tensors if name in read)
        if not made and not any(name in gone for node in before for name in node.output if name != same[target]):
            continue
        if used <= {same[stop] for stop in stops}:
            sources = tuple((stop, same[stop]) for stop in sorted(stops))
            yield Region((target, same[target]), sources, before, nodes, made)


class _Side:
    """One graph, to be cut."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._writers = {name: at for at, node in enumerate(model.graph.node) for name in node.output if name}
        self._nodes = list(model.graph.node)
        self._inputs = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}

    def behind(self, target: str, stops: Collection[str]) -> tuple[tuple[onnx.NodeProto, ...], set[str]]:
        """The nodes that compute a value from some stops and from constants, in order; which stops those are.

        An input of the graph is a stop always.
        """
        found: set[int] = set()
        reached: set[str] = set()
        waiting = [target]
        while waiting:
            name = waiting.pop()
            if (name != target and name in stops) or name in self._inputs:
                reached.add(name)
            elif name in self._writers and self._writers[name] not in found:
                at = self._writers[name]
                found.add(at)
                waiting.extend(read_by(self._nodes[at]))
        return tuple(self._nodes[at] for at in sorted(found)), reached


def read_by(node: onnx.NodeProto) -> list[str]:
    """What a node reads, the bodies of its control flow included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names += [name for inner in graph.node for name in read_by(inner)]
    return names
