"""T1 of an audit: both networks matched, every tensor judged.

ORIGINAL as it is is tried first: most tools only take norms into the linear before them. Where that does not match,
ORIGINAL is folded by this package's own moves, with the norms kept that FOLDED still has, and that is tried.
"""

from __future__ import annotations

import dataclasses
import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnfold.errors import FoldError, ParityError
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.expressions import Array, Expr
from bnfold.folding.facts import Norm
from bnfold.folding.moves import FREE, MOVES
from bnfold.folding.onnx_edits import replay
from bnfold.folding.plan import Plan, make_plan
from bnfold.parity.audit.demand import Demand, Demands
from bnfold.parity.audit.demands import demands_of, misplaced
from bnfold.parity.audit.matching import Ends, Matching, match
from bnfold.parity.audit.settling import settled
from bnfold.parity.audit.sides import Side, side_of
from bnfold.parity.audit.verdicts import TensorAudit, judge

_COSTLY = [move.name for move in MOVES if move.cost]
_CHOICES: tuple[str | tuple[str, ...], ...] = ("default", "all", *(tuple(FREE | {name}) for name in _COSTLY))


@dataclass(frozen=True)
class Comparison:
    """What the two graphs say. gaps: places where they are not the same, a sentence each; then nothing is proven.

    by: with which moves ORIGINAL had to be folded to look like FOLDED, "" for none. kept, taken, lost: norms by name.
    reasons: why lost norms cannot be folded. computed: weights that FOLDED computes in its graph.
    """

    tensors: tuple[TensorAudit, ...]
    gaps: tuple[str, ...]
    by: str
    kept: tuple[str, ...]
    taken: tuple[str, ...]
    lost: tuple[str, ...]
    linears: int
    matched: int
    reasons: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """True when every node and every step has its like."""
        return not self.gaps

    @property
    def wrong(self) -> tuple[TensorAudit, ...]:
        """Tensors that rounding does not explain."""
        return tuple(tensor for tensor in self.tensors if tensor.verdict == "wrong")

    @property
    def changed(self) -> tuple[TensorAudit, ...]:
        """Tensors that are not the original's, bit for bit."""
        return tuple(tensor for tensor in self.tensors if tensor.verdict != "unchanged")


def compare_graphs(
    original: ir.Model, folded: ir.Model, ends: Ends | None = None, *, is_torch: bool = False
) -> Comparison:
    """Match two models and judge every tensor of the folded one. Raises FoldError for what cannot be read.

    ends: which input and output is which; None: by their places. is_torch: the original one was exported from a module,
    whose epsilons are float64 where those of ONNX are float32.
    """
    original, _ = settled(original, weights=False)
    ready, computed = settled(folded, weights=True)
    left, right = side_of(original, is_torch=is_torch), side_of(ready)
    _check_ends(left, right)
    matching = match(left, right, ends)
    demands = demands_of(left, right, matching)
    first = _judged(left, right, matching, demands, "", None)
    if first.is_whole and not first.wrong:
        return dataclasses.replace(first, computed=computed)
    for moves, other, plan in _folded_sides(left, right, demands, original):
        again = match(other, right, ends)
        found = _judged(other, right, again, demands_of(other, right, again), moves, plan)
        if found.is_whole and (not found.wrong or not first.is_whole):
            return dataclasses.replace(found, computed=computed)
    return dataclasses.replace(_explained(first, left), computed=computed)


def _explained(found: Comparison, left: Side) -> Comparison:
    """With the planner's word on norms that are gone where nothing takes them in."""
    plan = make_plan(left.graph, moves="all")
    rows = {row.name: row for row in plan.report.norms if row.outcome in ("kept", "refused")}
    reasons = tuple(
        f"norm '{name}' is gone from FOLDED, and no exact fold takes it in: {rows[name].detail}"
        for name in found.lost
        if name in rows
    )
    return dataclasses.replace(found, reasons=reasons)


def _check_ends(left: Side, right: Side) -> None:
    more = Counter(_contents(right)) - Counter(_contents(left))
    fewer = Counter(_contents(left)) - Counter(_contents(right))
    if sum(more.values()) > sum(fewer.values()):
        counts = f"the norms of FOLDED are {len(right.norms)}, those of ORIGINAL {len(left.norms)}"
        raise ParityError(f"{counts}; expected fewer in FOLDED, for a fold takes norms away; are the two swapped?")


def _contents(side: Side) -> Iterator[object]:
    return (side.content(norm) for norm in side.norms if norm.statistics is not None)


def _folded_sides(left: Side, right: Side, demands: Demands, original: ir.Model) -> Iterator[tuple[str, Side, Plan]]:
    """ORIGINAL as this package folds it, with the norms kept that FOLDED still has."""
    kept = _still_there(left, right, demands)
    seen: set[tuple[object, ...]] = set()
    for moves in _CHOICES:
        try:
            plan = make_plan(left.graph, moves=moves)
            names = [glob.escape(norm.name) for norm in plan.norms if kept & {norm.id, *norm.nodes}]
            if names:
                plan = make_plan(left.graph, keep=names, moves=moves)
            told = tuple(_told(edit) for edit in plan.edits)
            if told in seen:
                continue
            seen.add(told)
            model, tensors = replay(original, plan.edits, _blank)
            name = moves if isinstance(moves, str) else f"default, {', '.join(sorted(set(moves) - FREE))}"
            yield name, side_of(model, tensors, is_torch=left.is_torch), plan
        except FoldError:
            continue


def _told(edit: Edit) -> tuple[object, ...]:
    """What an edit does to what, without the numbers."""
    match edit:
        case SetWeights():
            return "weights", edit.linear.id, edit.weight.shape, tuple(norm.id for norm in edit.norms)
        case Redirect() | SetSlope():
            return type(edit).__name__, edit.carrier.id
        case AddConstant():
            return "constant", edit.value
        case Bypass() | SetAffine():
            return type(edit).__name__, edit.norm.id


def _still_there(left: Side, right: Side, demands: Demands) -> set[str]:
    """Ids of norms of ORIGINAL that FOLDED still has: where they stand, or by their numbers."""
    found = set(demands.kept)
    there = Counter(right.content(norm) for norm in right.graph.norms if norm.statistics is not None)
    for norm in left.graph.norms:
        if norm.id in found and norm.statistics is not None:
            there[left.content(norm)] -= 1
    for norm in left.graph.norms:
        if norm.statistics is not None and norm.id not in found and there[left.content(norm)] > 0:
            there[left.content(norm)] -= 1
            found.add(norm.id)
    return found


def _blank(expr: Expr, dtype: str) -> Array:
    return np.zeros(expr.shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def _judged(left: Side, right: Side, matching: Matching, demands: Demands, by: str, plan: Plan | None) -> Comparison:
    norms = left.norms if plan is None else plan.norms
    tensors = [_with_cause(left, demand, judge(demand, norms), demands) for demand in demands.tensors]
    tensors = list(_with_other_means(tensors))
    gaps = [*matching.problems, *demands.gaps]
    if plan is not None:
        here = {norm.name for norm in left.norms}
        taken = [norm.name for norm in plan.norms if norm.name not in here]
    else:
        taken = _names(demands.taken, demands.lost, demands.kept)
    return Comparison(
        tensors=tuple(_once(tensors)),
        gaps=tuple(dict.fromkeys(gaps)),
        by=by,
        kept=tuple(_names(demands.kept)),
        taken=tuple(taken),
        lost=tuple(_names(demands.lost)),
        linears=len(right.linears),
        matched=sum(linear.id in matching.pairs for linear in right.linears),
    )


def _with_cause(left: Side, demand: Demand, found: TensorAudit, demands: Demands) -> TensorAudit:
    """A wrong tensor that is right for a norm which is gone, but may not be taken in there."""
    if found.verdict != "wrong" or demand.unfit:
        return found
    for norm in demands.lost.values():
        expr = misplaced(left, demand, norm)
        if expr is None:
            continue
        other = judge(dataclasses.replace(demand, expr=left.exact(expr), norms=(norm,)))
        if other.verdict in ("nearest", "consistent with rounding"):
            cause = f"{norm.label} was taken in as though it ran over the channels of this linear"
            return dataclasses.replace(found, cause=cause)
    return found


def _with_other_means(tensors: Sequence[TensorAudit]) -> Iterator[TensorAudit]:
    """A bias that nothing explains, beside a right weight: the mean is the statistic that no weight shows."""
    right = {(one.site, one.norms) for one in tensors if one.role == "weight" and one.verdict != "wrong"}
    for tensor in tensors:
        is_open = tensor.verdict == "wrong" and tensor.role == "bias" and not tensor.cause and tensor.norms
        if is_open and (tensor.site, tensor.norms) in right and 2 * tensor.wrong > tensor.elements:
            cause = "its weight is right: a mean or a beta of another moment of training?"
            yield dataclasses.replace(tensor, cause=cause)
        else:
            yield tensor


def _names(norms: dict[str, Norm], *others: dict[str, Norm]) -> list[str]:
    found = (norm.name for norm in norms.values() if norm.is_norm and not any(norm.id in other for other in others))
    return list(dict.fromkeys(found))


_ORDER = ("wrong", "consistent with rounding", "nearest", "unchanged")


def _once(tensors: list[TensorAudit]) -> Iterator[TensorAudit]:
    """One row for a tensor with the same role and norms at the same place; the worst of them."""
    found: dict[tuple[object, ...], TensorAudit] = {}
    for tensor in tensors:
        key = tensor.tensor, tensor.role, tensor.site, tensor.norms
        if key not in found or _ORDER.index(tensor.verdict) < _ORDER.index(found[key].verdict):
            found[key] = tensor
    right = {tensor.tensor: tensor for tensor in found.values() if tensor.verdict not in ("wrong", "unchanged")}
    for tensor in found.values():
        twin = right.get(tensor.tensor)
        yield tensor if tensor.verdict != "wrong" or twin is None else _shared(tensor, twin)


def _shared(tensor: TensorAudit, twin: TensorAudit) -> TensorAudit:
    """A tensor with several readers that was changed for one of them."""
    norms = f" with {', '.join(twin.norms)}" if twin.norms else ""
    here = f" with {', '.join(tensor.norms)}" if tensor.norms else " without any norm"
    cause = f"it has several readers and was folded{norms}, which is right for one; another needs it{here}"
    return dataclasses.replace(tensor, cause=cause)
