"""The planner: applies moves to facts until nothing moves; gives edits, outcomes and a fold map."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bnfold.errors import FoldError
from bnfold.folding.absorb import commit
from bnfold.folding.affine import AffineMap, vector
from bnfold.folding.bench import Bench, LinearState, NormState
from bnfold.folding.edits import Edit, SetAffine, SetWeights
from bnfold.folding.expressions import Expr
from bnfold.folding.facts import Graph, Linear, Norm, Reason
from bnfold.folding.faults import refuse_unsound
from bnfold.folding.moves import MOVES, chosen
from bnfold.folding.moves.compose_affine import compose_affine
from bnfold.folding.outcomes import report_of
from bnfold.folding.report import FoldReport
from bnfold.folding.upstream import upstream

ROUNDS = 100  # of the free moves; each round that moves anything removes a node, and deep nests need a few


@dataclass(frozen=True)
class Plan:
    """What an adapter is to do, and what the person is told.

    `norms` are the maps that the report's rows are about, in the same order.
    """

    edits: tuple[Edit, ...]
    report: FoldReport
    norms: tuple[Norm, ...]


def make_plan(graph: Graph, *, keep: Sequence[str] = (), moves: str | Sequence[str] = "default") -> Plan:
    """Plan the fold of a graph.

    keep: names or patterns (fnmatch) of norms to leave alone, or a single one. moves: "default" (those that cost
    nothing at run time), "all", or names of moves. Raises FoldError for a move that is not known or a pattern that
    fits no norm.
    """
    allowed = chosen(moves)
    patterns = _patterns(keep)
    start = refuse_unsound(graph)
    if "compose_affine" in allowed:
        start = refuse_unsound(_composed(start), start)
    kept = _keep(_named_apart(start), patterns)
    bench = _worked(kept, allowed)
    norms = tuple(norm for norm in kept.norms if norm.is_norm)
    more = _worked(kept, chosen("all")) if moves == "default" and _is_anything_left(bench) else None
    given = moves if isinstance(moves, str) else tuple(moves)
    return Plan(tuple(_edits(bench)), report_of(bench, norms, given, patterns, more), norms)


def _patterns(keep: object) -> tuple[str, ...]:
    if isinstance(keep, str):
        return (keep,)
    if not isinstance(keep, Sequence) or not all(isinstance(pattern, str) for pattern in keep):
        raise FoldError(f"keep is {keep!r}; expected names or patterns of norms, as inspect shows them")
    return tuple(keep)


def _composed(graph: Graph) -> Graph:
    while (after := compose_affine(graph)) is not None:
        graph = after
    return graph


def _worked(graph: Graph, allowed: frozenset[str]) -> Bench:
    """The bench after all moves; shared weights are copied only where that is allowed, or needs no copy."""
    tied: frozenset[Hashable] = frozenset()
    while True:
        bench = Bench(graph, allowed, tied)
        _apply(bench)
        torn = frozenset() if "copy_shared_weight" in allowed else _torn(bench)
        if torn <= tied:
            return bench
        tied |= torn


def _apply(bench: Bench) -> None:
    for state in bench.live_norms():  # `0 + x`, `1 * x`: some networks begin a sum with them
        if not state.norm.is_norm and state.map is not None and state.map.is_nothing:
            bench.bypass(state.norm, [])
    for _ in range(ROUNDS):
        bench.why.clear()
        made = [_made(bench, move.name) for move in MOVES if not move.cost]
        if not any(made):
            break
    for move in MOVES:
        if move.cost:
            _made(bench, move.name)
    _take_biases_in(bench)


def _made(bench: Bench, name: str) -> bool:
    """Make a move where it is allowed, and note which norms it moved."""
    move = next(move for move in MOVES if move.name == name)
    if move.apply is None or name not in bench.allowed:
        return False
    before = set(bench.fate) | set(bench.reduced)
    changed = move.apply(bench)
    for id in (set(bench.fate) | set(bench.reduced)) - before:
        bench.moved_by[id] = name
    return changed


def _take_biases_in(bench: Bench) -> None:
    """A linear that changes anyway takes in the bias that stands right behind it as a node of its own."""
    for state in bench.live_norms():
        node = bench.producer(bench.input_of(state.norm))
        if state.norm.is_norm or state.norm.refusal or state.norm.obstacle or state.map is None:
            continue
        if not isinstance(node, Linear) or not bench.linears[node.id].is_changed:
            continue
        found = upstream(bench, state, state.map)
        if not isinstance(found, Reason) and list(found.linears) == [node.id]:
            commit(bench, state.norm, found, is_gone=True, is_right_behind=False)


def _torn(bench: Bench) -> frozenset[Hashable]:
    """The keys of shared weights of which the fold would need more than one version."""
    users: dict[Hashable, list[LinearState]] = {}
    for state in bench.linears.values():
        key = state.linear.weight.key
        if bench.graph.tensor_readers.get(key, 1) > 1:
            users.setdefault(key, []).append(state)
    torn = set()
    for key, states in users.items():
        left = [state for state in states if not bench.is_gone(state.linear.id)]
        if not any(state.is_changed for state in left):
            continue
        first = left[0].weights.weight
        has_outsider = len(states) != bench.graph.tensor_readers.get(key, 1)
        if has_outsider or not all(state.weights.weight == first for state in left):
            torn.add(key)
        for state in left if key not in torn else ():
            state.weights = dataclasses.replace(state.weights, weight=first)
    return frozenset(torn)


def _is_anything_left(bench: Bench) -> bool:
    return any(
        state.norm.is_norm and not state.norm.refusal and not state.norm.obstacle for state in bench.live_norms()
    )


def _edits(bench: Bench) -> list[Edit]:
    edits: list[Edit] = []
    for state in bench.linears.values():
        if state.is_changed and not bench.is_gone(state.linear.id):
            w = state.weights
            behind = None if state.behind is None or not state.behind else tuple(state.behind)
            edits.append(
                SetWeights(
                    state.linear, w.weight, w.bias, w.window, w.groups,
                    tuple(dict.fromkeys(state.norms)), behind, tuple(state.merged),
                )
            )  # fmt: skip
    edits.extend(_affine(norm, norm.map) for norm in bench.live_norms() if norm.is_changed and norm.map is not None)
    return [*edits, *bench.removals, *bench.additions]


def _affine(state: NormState, moving: AffineMap) -> SetAffine:
    axes = sorted(moving.axes)
    axis = axes[0] if axes else state.norm.axis
    norm = dataclasses.replace(state.norm, axis=axis)

    def part(expr: Expr) -> Expr:
        return expr if not expr.shape or axis is None else vector(expr, axis, moving.size(axis))

    return SetAffine(norm, part(moving.scale), part(moving.shift), (*state.taken, state.norm))


def _named_apart(graph: Graph) -> Graph:
    """Give a norm that is applied several times a name of its own for each use ('bn', 'bn#2')."""
    given = {norm.name for norm in graph.norms if norm.is_norm}
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    nodes = []
    for node in graph.nodes:
        if isinstance(node, Norm) and node.is_norm:
            name, number = node.name, numbers.get(node.name, 1)
            while name in taken or (number > 1 and name in given):
                number += 1
                name = f"{node.name}#{number}"
            numbers[node.name] = number
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
