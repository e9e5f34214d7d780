"""T1, the weight certificate: the shipped graph is the fold of its reference, every number the nearest there is.

It needs no data. The plan says which edits a fold of the reference is made of, and of each new tensor, as an expression
over the reference's constants, what it is. Structure: node for node what the edits leave. Numbers: every element of
every new tensor is the float nearest to its expression's exact value, whose arithmetic is this package's own
(`bnfold.parity.weights.nearest`), never the fold's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnfold.errors import ParityError
from bnfold.folding.edits import AddConstant, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.expressions import Array, Expr, size_of, spread, view
from bnfold.folding.facts import Graph, Norm
from bnfold.folding.onnx_edits import FoldMap, NewTensor, fold_map_of, replay
from bnfold.folding.onnx_graph import read
from bnfold.folding.plan import Plan, make_plan
from bnfold.folding.report import FoldReport
from bnfold.parity.hypotheses import Cause, likely_cause
from bnfold.parity.local.sites import Site
from bnfold.parity.weights.nearest import measure
from bnfold.parity.weights.structure import differences
from bnfold.parity.weights.verdicts import Certificate, TensorVerdict

__all__ = ["Certificate", "Expectation", "TensorVerdict", "certify", "expect", "plan_of"]


@dataclass(frozen=True)
class Expectation:
    """What a fold of the reference must look like: its graph (new tensors zero), and what contradicts.

    tensors: the new ones. sites: linears that absorb the norms right behind them, and nothing else. others: what the
    remaining edits change, a name each.
    """

    model: ir.Model
    plan: Plan
    tensors: tuple[NewTensor, ...]
    sites: tuple[Site, ...]
    others: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def fold_map(self) -> FoldMap:
        """The fold map that goes with the fold."""
        return fold_map_of(self.tensors)


def certify(
    expectation: Expectation, folded: ir.Model, *, only: Collection[str] | None = None, explain: bool = True
) -> Certificate:
    """Certify a folded model against what `expect` makes of its reference. The model is not changed.

    only: judge these new tensors, not all of them. explain: look for the likely cause of what is wrong.
    """
    names = [new.tensor for new in expectation.tensors]
    structure = expectation.problems + differences(expectation.model, folded, recomputed=names)
    linears = {
        id(part): edit
        for edit in expectation.plan.edits
        if isinstance(edit, SetWeights)
        for part in (edit.weight, edit.bias)
        if part is not None
    }
    others = expectation.plan.norms if explain else None
    found = (
        _judged(new, linears.get(id(new.expr)), expectation.model, folded, others)
        for new in _in_graph_order(expectation)
        if only is None or new.tensor in only
    )
    return Certificate(_with_stale_biases([verdict for verdict in found if verdict is not None]), structure)


def _in_graph_order(expectation: Expectation) -> list[NewTensor]:
    """The new tensors in the order in which the folded graph reads them."""
    read = [value.name for node in expectation.model.graph for value in node.inputs if value is not None]
    first = {name: at for at, name in reversed(list(enumerate(read)))}
    return sorted(expectation.tensors, key=lambda new: first.get(new.tensor, len(read)))


def _with_stale_biases(found: Sequence[TensorVerdict]) -> tuple[TensorVerdict, ...]:
    """One number a channel does not show other statistics; the weight of the same linear does."""
    stale = {verdict.linear for verdict in found if verdict.cause and verdict.cause.code == "STALE"}
    words = "its weight has other factors than the norm's: stale statistics?"
    return tuple(
        dataclasses.replace(verdict, cause=Cause("STALE", words, 0.0))
        if verdict.role == "bias" and not verdict.nearest and not verdict.cause and verdict.linear in stale
        else verdict
        for verdict in found
    )


def expect(reference: ir.Model, report: FoldReport | None = None, plan: Plan | None = None) -> Expectation:
    """The graph that a fold of the reference must be, and what its new tensors are.

    report: the fold report that came with the fold, whose moves and kept norms are planned again; None: those of
    `make_plan`. plan: the plan of that, where it has been made. The reference is not changed.
    """
    plan = plan or plan_of(read(reference), report)
    problems = () if report is None else tuple(_contradictions(report, plan.report))
    model, tensors = replay(reference, plan.edits, _blank)
    return Expectation(model, plan, tensors, tuple(_sites(plan, tensors)), tuple(_others(plan)), problems)


def plan_of(graph: Graph, report: FoldReport | None) -> Plan:
    """The plan of a graph with the moves and the kept norms that a report states.

    Raises ParityError when the graph cannot be planned like that.
    """
    if report is None:
        return make_plan(graph)
    return make_plan(graph, keep=report.keep, moves=report.moves)


def _blank(expr: Expr, dtype: str) -> Array:
    """Zeros in place of the numbers of a new tensor: the graph is wanted, not what the fold computes."""
    return np.zeros(expr.shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _sites(plan: Plan, tensors: Sequence[NewTensor]) -> Iterator[Site]:
    weights = {id(new.expr): new.tensor for new in tensors if new.role == "weight"}
    biases = iter([new.tensor for new in tensors if new.role == "bias"])
    for edit in plan.edits:
        if isinstance(edit, SetWeights):
            bias = "" if edit.bias is None else next(biases)
            behind = _behind(edit, plan)
            if behind:
                yield Site(edit.linear, behind, weights[id(edit.weight)], bias)


def _behind(edit: SetWeights, plan: Plan) -> tuple[Norm, ...]:
    """The norms right behind a linear whose absorption is all that is done to it; none for any other edit."""
    if edit.behind is not None:
        return edit.behind
    linear, between = edit.linear, [edit.linear.output]
    is_same = (edit.weight.shape, edit.window, edit.groups) == (linear.weight.shape, linear.window, linear.groups)
    if edit.merged or not is_same:
        return ()
    for norm in edit.norms:
        if norm.input != between[-1]:
            return ()
        between.append(norm.output)
    merged = (other.carrier.inputs for other in plan.edits if isinstance(other, Redirect))
    if any(value in inputs for inputs in merged for value in between):  # BN(y) + y
        return ()
    elsewhere = (other.norms for other in plan.edits if isinstance(other, SetAffine | AddConstant | SetSlope))
    ids = {norm.id for norms in elsewhere for norm in norms}
    return () if any(norm.id in ids for norm in edit.norms) else edit.norms


def _others(plan: Plan) -> Iterator[str]:
    """What is changed by edits that are no site."""
    for edit in plan.edits:
        match edit:
            case SetWeights() if not _behind(edit, plan):
                yield edit.linear.label
            case SetAffine():
                yield edit.norm.label
            case AddConstant():
                yield f"the addition to '{edit.value}'"
            case SetSlope():
                yield edit.carrier.label


def _contradictions(claimed: FoldReport, planned: FoldReport) -> Iterator[str]:
    """What a fold report says and the plan of its moves does not."""
    rows = {row.name: row for row in planned.norms}
    for name, count in Counter(row.name for row in claimed.norms).items():
        if count > 1:
            yield f"the fold report has {count} rows for the norm '{name}'; expected one"
    for row in claimed.norms:
        found = rows.get(row.name)
        if found is None:
            yield f"the fold report speaks of the norm '{row.name}', which the reference does not have"
        elif row.outcome == "folded" != found.outcome:
            yield f"the fold report says that norm '{row.name}' is folded, but it cannot be: {found.detail}"
        elif (row.kind, row.outcome, row.target) != (found.kind, found.outcome, found.target):
            said, wanted = (f"{r.kind!r:.80}, {r.outcome!r:.80}, target {r.target!r:.120}" for r in (row, found))
            yield f"the fold report calls the norm '{row.name}' {said}; expected {wanted}"
    names = {row.name for row in claimed.norms}
    yield from (f"the fold report has no row for the norm '{name}'" for name in rows if name not in names)


def _judged(
    new: NewTensor, edit: SetWeights | None, expected: ir.Model, folded: ir.Model, others: Sequence[Norm] | None
) -> TensorVerdict | None:
    """A new tensor against its exact value; one that is not there, or misshapen, has no verdict.

    edit: that of a weight or bias. others: all norms, to look for a cause among; None: it is not looked for.
    """
    wanted, shipped = _stored(expected, new.tensor), _stored(folded, new.tensor)
    if wanted is None or shipped is None or (shipped.dtype, shipped.shape) != (wanted.dtype, wanted.shape):
        return None
    expr = new.expr
    if size_of(expr) == shipped.size:
        shipped = shipped.reshape(expr.shape)
    else:  # one number for every place
        expr = spread(view(expr, (1,) * shipped.ndim), shipped.shape)
    names = tuple(norm.name for norm in new.norms)
    of_weight = edit if new.role == "weight" else None
    try:
        found = measure(expr, shipped)
        if not found.not_nearest:
            return TensorVerdict(
                new.tensor, new.role, new.owner, names, found, _channel(new, of_weight, found.worst_index)
            )
        wrong = np.zeros(shipped.shape, bool)
        measure(expr, shipped, wrong=wrong)
    except ParityError as problem:
        labels = " and ".join(f"'{norm.name}'" for norm in new.norms)
        raise ParityError(f"{new.role} of '{new.owner}' with {labels}: {problem}") from None
    linear = edit.linear if edit is not None else None
    cause = None if others is None else likely_cause(new, shipped, others, wrong=wrong, linear=linear)
    return TensorVerdict(
        new.tensor, new.role, new.owner, names, found, _channel(new, of_weight, found.worst_index),
        _channels(new, of_weight, wrong), cause,
    )  # fmt: skip


def _channel(new: NewTensor, edit: SetWeights | None, index: tuple[int, ...]) -> int:
    """The channel of an element: of a weight the output channel, of a constant that behind the batch."""
    if edit is not None and not edit.linear.out_first:
        inputs, per_group = edit.weight.shape[:2]
        return index[0] // max(1, inputs // edit.groups) * per_group + index[1] if index else 0
    axis = 1 if new.role == "constant" and len(index) > 1 else 0
    return index[axis] if index else 0


def _channels(new: NewTensor, edit: SetWeights | None, wrong: Array) -> tuple[int, ...]:
    """The channels with a wrong element, in order."""
    leading = wrong.reshape(*wrong.shape[:2], -1).any(axis=-1) if wrong.ndim > 2 else wrong
    places = (tuple(int(at) for at in place) for place in np.argwhere(leading))
    return tuple(sorted({_channel(new, edit, place) for place in places}))


def _stored(model: ir.Model, name: str) -> Array | None:
    value = model.graph.initializers.get(name)
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())
