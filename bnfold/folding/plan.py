"""The planner: applies moves to facts until nothing moves; gives edits, outcomes and a fold map."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from bnfold.errors import FoldError
from bnfold.folding.edits import Bypass, Edit, SetWeights
from bnfold.folding.facts import Graph, Linear, Norm, Reason
from bnfold.folding.faults import refuse_unsound
from bnfold.folding.moves import MOVES, Move
from bnfold.folding.moves.linear_to_norm import absorbed_map, obstacle
from bnfold.folding.report import FoldReport, NormOutcome


@dataclass(frozen=True)
class Plan:
    """What an adapter is to do, and what the person is told.

    `norms` are the maps that the report's rows are about, in the same order; `graph` is what the facts have become.
    """

    edits: tuple[Edit, ...]
    report: FoldReport
    norms: tuple[Norm, ...]
    graph: Graph


def make_plan(graph: Graph, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default") -> Plan:
    """Plan the fold of a graph.

    keep: names or patterns (fnmatch) of norms to leave alone, or a single one. moves: "default", "all", or names of
    moves; every move of this planner is exact and costs nothing at run time. Raises FoldError for a move that is not
    known or a pattern that fits no norm.
    """
    chosen = _chosen(moves)
    start = refuse_unsound(graph)
    composed = _to_fixed_point(start, tuple(move for move in chosen if move.name == "compose_affine"))
    kept = _keep(_named_apart(refuse_unsound(composed)), (keep,) if isinstance(keep, str) else keep)
    current = _to_fixed_point(kept, chosen)
    linears = [node for node in current.nodes if isinstance(node, Linear) and node.absorbed]
    edits: list[Edit] = []
    for linear in linears:
        before = start.by_id[linear.id]
        if not isinstance(before, Linear):
            raise FoldError(f"{linear.label} was not a linear layer when planning began; please report this network")
        edits.append(SetWeights(before, absorbed_map(linear, linear.absorbed), linear.absorbed))
        edits.extend(Bypass(norm) for norm in linear.absorbed)
    norms = tuple(norm for norm in kept.norms if norm.is_norm)
    return Plan(tuple(edits), _report(norms, current), norms, current)


def _chosen(moves: str | Sequence[str]) -> tuple[Move, ...]:
    known = [move.name for move in MOVES]
    if moves in ("default", "all"):
        return MOVES
    names = [moves] if isinstance(moves, str) else list(moves)
    for name in names:
        if name not in known:
            raise FoldError(f"move '{name}' is not known; choose 'default', 'all' or names out of {', '.join(known)}")
    return tuple(move for move in MOVES if move.name in names)


def _to_fixed_point(graph: Graph, moves: tuple[Move, ...]) -> Graph:
    while True:
        for move in moves:
            after = move.apply(graph)
            if after is not None:
                graph = after
                break
        else:
            return graph


def _named_apart(graph: Graph) -> Graph:
    """Give a norm that is applied several times a name of its own for each use ('bn', 'bn#2')."""
    given = {norm.name for norm in graph.norms if norm.is_norm}
    taken: set[str] = set()
    nodes = []
    for node in graph.nodes:
        if isinstance(node, Norm) and node.is_norm:
            name, number = node.name, 1
            while name in taken or (number > 1 and name in given):
                number += 1
                name = f"{node.name}#{number}"
            taken.add(name)
            node = dataclasses.replace(node, name=name)
        nodes.append(node)
    return graph.with_nodes(tuple(nodes))


def _keep(graph: Graph, patterns: Sequence[str]) -> Graph:
    for pattern in patterns:
        if not any(norm.is_norm and fnmatch.fnmatchcase(norm.name, pattern) for norm in graph.norms):
            raise FoldError(f"keep: no norm is called '{pattern}'; names and patterns are those that inspect shows")
    asked = Reason("KEEP_ASKED", "it was to be kept by name")

    def kept(norm: Norm) -> bool:
        return norm.is_norm and any(fnmatch.fnmatchcase(norm.name, pattern) for pattern in patterns)

    return graph.with_nodes(
        tuple(
            dataclasses.replace(node, obstacle=asked) if isinstance(node, Norm) and kept(node) else node
            for node in graph.nodes
        )
    )


def _report(found: Sequence[Norm], left: Graph) -> FoldReport:
    """A row for each norm as it was found after composition, with what became of it."""
    targets = {
        norm.id: node for node in left.nodes if isinstance(node, Linear) for norm in node.absorbed if norm.is_norm
    }
    rows = []
    for norm in found:
        if norm.id in targets:
            rows.append(_folded(norm, targets[norm.id]))
        else:
            rows.append(_left(left, norm))
    return FoldReport(tuple(rows))


def _folded(norm: Norm, linear: Linear) -> NormOutcome:
    return NormOutcome(norm.name, norm.kind, "folded", "", linear.name, f"merged into {linear.label}")


def _left(graph: Graph, norm: Norm) -> NormOutcome:
    now = graph.by_id.get(norm.id)
    reason = obstacle(graph, now) if isinstance(now, Norm) else None
    if reason is None:
        reason = Reason("MOVE_NOT_CHOSEN", "it could be folded, but the moves that were chosen leave it")
    refused = isinstance(now, Norm) and now.refusal is not None
    return NormOutcome(norm.name, norm.kind, "refused" if refused else "kept", reason.code, "", reason.detail)
