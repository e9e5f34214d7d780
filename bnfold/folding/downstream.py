"""Where can a map go downstream? Into all that reads a value, or nowhere.

The readers of a value are given a map; carriers are passed forward, linears and norms are the end. Nodes are visited
in the order of the graph, so that a carrier knows the maps of all of its inputs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from bnfold.folding import transport
from bnfold.folding.absorb import Changes, before_problem, norm_problem, taken_in
from bnfold.folding.affine import AffineMap, after
from bnfold.folding.bench import Bench, NormState
from bnfold.folding.facts import GRAPH_OUTPUT, Carrier, Linear, Norm, Opaque, Reason


def downstream(bench: Bench, norm: NormState, moving: AffineMap) -> Changes | Reason:
    """Give the map to all that reads the norm's output; the changes that takes, or why it cannot be."""
    changes = Changes()
    given: dict[str, AffineMap] = {norm.norm.output: moving}
    queue: list[int] = []
    waiting: set[int] = set()

    def spread_out(value: str) -> Reason | None:
        if given[value].is_identity:
            return None
        readers = bench.readers(value)
        if not readers:
            return Reason("NO_LINEAR_BEHIND", "nobody reads it")
        for id, _ in readers:
            if id == GRAPH_OUTPUT:
                return Reason("GRAPH_OUTPUT", "its output is an output of the graph; nothing behind it can take it in")
            at = bench.position[id]
            if at not in waiting:
                waiting.add(at)
                heapq.heappush(queue, at)
        return None

    problem = spread_out(norm.norm.output)
    while queue and problem is None:
        node = bench.graph.nodes[heapq.heappop(queue)]
        match node:
            case Linear():
                state = bench.linears[node.id]
                wanted = given[bench.input_of(node)]
                problem = taken_in(bench, changes, state, before_problem(state, wanted), wanted, behind=False)
            case Norm():
                problem = _downstream_norm(bench, changes, node, given, spread_out)
            case Carrier():
                maps = tuple(given.get(value) for value in bench.inputs(node))
                found = transport.forward(node, maps, bench.shapes)
                if isinstance(found, Reason):
                    problem = found
                    continue
                for output, passed in zip(node.outputs, found, strict=False):
                    given[output] = passed
                    if problem is None and bench.readers(output):
                        problem = spread_out(output)
            case Opaque():
                problem = node.why or Reason(
                    "NO_LINEAR_BEHIND", f"its output is read by {node.label}, which is no linear layer"
                )
    return problem or changes


def _downstream_norm(
    bench: Bench, changes: Changes, node: Norm, given: dict[str, AffineMap],
    spread_out: Callable[[str], Reason | None],
) -> Reason | None:  # fmt: skip
    """Give a map to a norm behind: it takes it in; a bias or factor alone goes along."""
    state = bench.norms[node.id]
    moving = given[bench.input_of(node)]
    blocked = norm_problem(state, moving)
    if blocked or state.map is None:
        return blocked
    together = after(state.map, moving)
    if node.is_norm:
        changes.norms[node.id] = together
        return None
    changes.passed.append(node)
    given[node.output] = together
    return spread_out(node.output)
