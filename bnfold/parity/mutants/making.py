"""Wrong folds of a right one: every known way to get it wrong, for every kind of edit that it has."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import BnfoldError
from bnfold.folding import algebra
from bnfold.folding.edits import AddConstant, SetAffine, SetSlope, SetWeights
from bnfold.folding.expressions import ONE, Array, Expr, Join, size_of, walk
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.onnx_edits import NewTensor
from bnfold.folding.onnx_file import from_proto, to_proto
from bnfold.folding.onnx_graph import read
from bnfold.parity.hypotheses import rewrites
from bnfold.parity.mutants.faults import ARRAYS, graph_faults, put, stored
from bnfold.parity.weights.certificate import Expectation

SITES = 1  # tensors on which a way is tried, for each kind of edit and role


@dataclass(frozen=True)
class Mutant:
    """A wrong fold. kind: the code of what is wrong; name: that in words; move: of the edit that made the tensor.

    tensor: the one that was changed, or the value where the graph was. is_graph: a node was changed, not a number.
    """

    name: str
    kind: str
    move: str
    tensor: str
    model: ir.Model
    is_graph: bool = False


@dataclass(frozen=True)
class Same:
    """A wrong way whose numbers round to the right ones: nothing to notice."""

    name: str
    kind: str
    tensor: str


def mutants_of(
    reference: ir.Model, folded: ir.Model, expectation: Expectation, *, move: str = "", sites: int = SITES
) -> Iterator[Mutant | Same]:
    """Wrong folds of a pair, each with one tensor or one node changed; the models given are not changed.

    Every way that applies to a kind of edit (move, kind of linear, role) is tried on `sites` of its tensors. Two ways
    that give the same numbers are one mutant. move: the one that all of them are said to be of; else it is told from
    the edits. Ways whose numbers are identical after rounding come as `Same`.
    """
    proto = to_proto(folded)
    moves = _moves(reference, expectation)
    linears = {
        id(edit.bias): edit.linear for edit in expectation.plan.edits if isinstance(edit, SetWeights) and edit.bias
    }
    tried: Counter[tuple[str, ...]] = Counter()
    names = [new.tensor for new in expectation.tensors]
    shipped = {tensor.name for tensor in proto.graph.initializer}
    for new in expectation.tensors:
        if new.tensor not in shipped:
            continue
        made, of = moves.get(id(new.expr), ("", ""))
        right = stored(proto, new.tensor)
        seen = {_digest(right)}
        for kind, words, numbers in _ways(new, right, expectation, linears.get(id(new.expr))):
            key = (made, of, new.role, kind)
            wrong = numbers() if tried[key] < sites else None
            if wrong is None:
                continue
            name, data = f"{new.role}: {words}", _digest(wrong)
            if data not in seen:
                seen.add(data)
                tried[key] += 1
                yield Mutant(name, kind, move or made, new.tensor, _changed(proto, new.tensor, wrong))
            elif data == _digest(right) and tried["same", *key] < sites:
                tried["same", *key] += 1
                yield Same(name, kind, new.tensor)
    first = move or next(iter(moves.values()), ("", ""))[0]
    for kind, words, where, change in graph_faults(proto, expectation.plan.edits, names):
        copy = _copy(proto)
        change(copy)
        yield Mutant(f"graph: {words}", kind, first, where, from_proto(copy), is_graph=True)


def _ways(
    new: NewTensor, right: Array, expectation: Expectation, linear: Linear | None
) -> Iterator[tuple[str, str, Callable[[], Array | None]]]:
    """What a tensor would be: by wrong expressions, then by faults of its numbers. Code, words, numbers."""
    for rewrite in rewrites(new, expectation.plan.norms, linear):
        yield rewrite.code, rewrite.words, partial(_rounded, rewrite.expr, right)
    for code, words, change in ARRAYS:
        yield code, words, partial(_faulty, change, right)


def _faulty(change: Callable[[Array], Array], right: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(change(right))


def _digest(values: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()


def _rounded(expr: Expr, like: Array) -> Array | None:
    """An expression as it would be shipped; None where it has no numbers (a root of a negative one, say)."""
    try:
        values = algebra.rounded(expr, like.dtype.name)
    except (BnfoldError, ArithmeticError, ValueError):
        return None
    if not np.isfinite(values.astype(np.float64)).all():
        return None
    same = (
        values.reshape(like.shape)
        if size_of(expr) == like.size
        else np.broadcast_to(values.reshape(-1)[:1], like.shape)
    )
    return np.ascontiguousarray(same)


def _changed(proto: onnx.ModelProto, name: str, values: Array) -> ir.Model:
    copy = _copy(proto)
    put(copy, name, values)
    return from_proto(copy)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


# ---------------------------------------------------------------------------------------------- which move it was


def _moves(reference: ir.Model, expectation: Expectation) -> dict[int, tuple[str, str]]:
    """Of each new tensor's expression, by id: the move that made it, and the kind of its linear."""
    order = {node.id: at for at, node in enumerate(read(reference).nodes)}
    sites = {site.linear.id for site in expectation.sites}
    found: dict[int, tuple[str, str]] = {}
    for edit in expectation.plan.edits:
        match edit:
            case SetWeights():
                made = _move_of(edit, order, edit.linear.id in sites), edit.linear.kind
                for part in (edit.weight, edit.bias):
                    if part is not None:
                        found[id(part)] = made
            case SetAffine():
                made = "leftover_shift" if edit.scale == ONE else "compose_affine", edit.norm.kind
                found |= {id(edit.scale): made, id(edit.shift): made}
            case AddConstant():
                found[id(edit.constant)] = "constant_map", edit.like.kind
            case SetSlope():
                found[id(edit.slope)] = "per_channel_slope", edit.like.kind
    return found


def _move_of(edit: SetWeights, order: dict[str, int], is_site: bool) -> str:
    """The move that a linear's new weights come from, told from what they are."""
    if is_site:
        return "linear_to_norm"
    if edit.merged:
        return "merge_branches"
    if any(isinstance(node, Join) for part in (edit.weight, edit.bias) if part is not None for node in walk(part)):
        return "ones_channel"
    return "norm_to_linear" if any(_is_before(norm, edit.linear, order) for norm in edit.norms) else "linear_to_norm"


def _is_before(norm: Norm, linear: Linear, order: dict[str, int]) -> bool:
    return order.get(norm.id, 0) < order.get(linear.id, 0)
