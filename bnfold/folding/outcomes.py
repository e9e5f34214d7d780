"""What became of each norm on the bench, as rows of the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from bnfold.folding.bench import Bench
from bnfold.folding.facts import GRAPH_OUTPUT, Graph, Norm, Reason
from bnfold.folding.moves import MOVES
from bnfold.folding.numbers import numbers_of
from bnfold.folding.remedies import remedy
from bnfold.folding.report import Declined, FoldReport, NormOutcome

# Reasons that say no more than that there is nothing to fold into; another reason tells a person more.
_PLAIN = ("NO_LINEAR_BEFORE", "NO_LINEAR_BEHIND", "GRAPH_OUTPUT", "NONLINEAR")


def report_of(
    bench: Bench, norms: Sequence[Norm], moves: str | tuple[str, ...], keep: tuple[str, ...], more: Bench | None
) -> FoldReport:
    """A row for each norm, in graph order. more: the bench after all moves, where that may have moved more."""
    declined = [] if more is None else list(_declined(bench, more, norms))
    help_by = {row.norm: row.move for row in declined}
    rows = tuple(_row(bench, norm, help_by.get(norm.name, "")) for norm in norms)
    return FoldReport(rows, moves=moves, keep=keep, declined=tuple(declined))


def _declined(bench: Bench, more: Bench, norms: Sequence[Norm]) -> Iterator[Declined]:
    costs = {move.name: move for move in MOVES}
    for norm in norms:
        name = more.moved_by.get(norm.id, "")
        if norm.id in bench.fate or norm.id in bench.reduced or norm.id not in more.moved_by:
            continue
        move = costs[name]
        if not move.cost:  # free in itself, but only where another one is allowed: the reason names it
            why = " ".join(reason.detail for reason in bench.why.get(norm.id, []))
            move = next((other for other in MOVES if f"(moves: {other.name})" in why), costs["copy_shared_weight"])
        yield Declined(move.name, norm.name, f"{move.does}, at the cost of {move.cost}")


def _row(bench: Bench, norm: Norm, helped_by: str) -> NormOutcome:
    row = dataclasses.replace(_outcome(bench, norm), where=_where(bench.graph, norm), numbers=numbers_of(norm))
    if row.outcome == "folded":
        return row
    return dataclasses.replace(row, needs=f"--moves all ({helped_by})" if helped_by else remedy(row.reason))


def _outcome(bench: Bench, norm: Norm) -> NormOutcome:
    if norm.id in bench.reduced:
        into = _labels(bench, bench.reduced[norm.id])
        why = _best(bench.why.get(norm.id, [])) or Reason("PAD_SHIFT", "its shift cannot pass")
        detail = f"its scale went into {into}, an addition stays for its shift: {why.detail}"
        names = _names(bench, bench.reduced[norm.id])
        return NormOutcome(norm.name, norm.kind, "reduced", why.code, names, detail)
    if norm.id in bench.fate:
        ids = list(_final(bench, norm.id))
        names = _names(bench, ids)
        return NormOutcome(norm.name, norm.kind, "folded", "", names, f"merged into {_labels(bench, ids)}")
    reason = norm.refusal or norm.obstacle or _best(bench.why.get(norm.id, []))
    if reason is None:
        reason = Reason("MOVE_NOT_CHOSEN", "it could be folded, but the moves that were chosen leave it")
    outcome = "refused" if norm.refusal else "kept"
    return NormOutcome(norm.name, norm.kind, outcome, reason.code, "", reason.detail)  # type: ignore[arg-type]


def _where(graph: Graph, norm: Norm) -> str:
    """Between which nodes of the source a norm stands; '' for one out of reach."""
    before = graph.producers.get(norm.input)
    if before is None and norm.input not in graph.inputs:
        return ""
    readers = list(dict.fromkeys(graph.readers.get(norm.output, ())))
    behind = "" if not readers else "an output" if readers[0] == GRAPH_OUTPUT else graph.by_id[readers[0]].label
    more = f" and {len(readers) - 1} more" if len(readers) > 1 else ""
    start = "behind " + (before.label if before else f"input '{norm.input}'")
    return f"{start}, before {behind}{more}" if behind else start


def _best(reasons: Sequence[Reason]) -> Reason | None:
    """The reason that tells a person most: the first that is not plain, or the first."""
    return next((reason for reason in reasons if reason.code not in _PLAIN), next(iter(reasons), None))


def _final(bench: Bench, id: str) -> Iterator[str]:
    """The ids of what has taken a norm in in the end, each once."""
    seen: dict[str, None] = {}
    stack = list(reversed(bench.fate.get(id, [])))
    while stack:
        target = stack.pop()
        if target in bench.fate and bench.is_gone(target):
            stack.extend(reversed(bench.fate[target]))
        else:
            seen[target] = None
    yield from seen


def _names(bench: Bench, ids: Sequence[str]) -> str:
    return ", ".join(bench.graph.by_id[id].name for id in ids)


def _labels(bench: Bench, ids: Sequence[str]) -> str:
    labels = [bench.label(id) for id in ids]
    if len(labels) > 3:
        return f"{', '.join(labels[:2])} and {len(labels) - 2} more"
    return " and ".join(labels) if labels else "nothing, for it did nothing"
