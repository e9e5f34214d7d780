"""T2 for every other edit: what lies between two points of a fold differs by no more than rounding can explain.

Both sides of a region get the same inputs, the reference's own values, and run in ONNX Runtime with graph optimisations
off. Each computed result lies within its error (see `bnfold.parity.local.running`) of the one exact result, so the two
lie within the sum of the errors of each other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import BnfoldError, ParityError
from bnfold.folding import algebra
from bnfold.folding.expressions import Array
from bnfold.folding.onnx_edits import NewTensor
from bnfold.folding.onnx_file import to_proto
from bnfold.parity.local.bounds import Rounding
from bnfold.parity.local.points import Points, exact_points, first_rows
from bnfold.parity.local.regions import Region, regions
from bnfold.parity.local.results import F64, SLACK, SiteResult, exceeded, worse
from bnfold.parity.local.running import State, analyse, rounded_once
from bnfold.parity.local.spans import Spans, with_outputs
from bnfold.parity.weights.certificate import Expectation
from bnfold.parity.weights.exact import format_of
from bnfold.runtime import open_session, run

_ROWS = 2  # of each batch, on which the points are found


@dataclass(frozen=True)
class Regions:
    """T2 on everything that is no site. results: each with the first tensor that its folded side reads.

    unbounded: new tensors that no region holds, and why.

    apart: outputs that the exact fold, nothing rounded, does not give as the reference does; relative differences.
    """

    results: tuple[tuple[str, SiteResult], ...]
    unbounded: tuple[SiteResult, ...]
    apart: Mapping[str, float]


def check_regions(
    reference: ir.Model, folded: ir.Model, expectation: Expectation, batches: Sequence[Mapping[str, Array]],
    *, is_free: bool = True, threads: int = 1, operands: float = 0.0, points: Points | None = None,
) -> Regions:  # fmt: skip
    """Bound every edit of a fold that is no site, on some inputs. batches: inputs of the network by name.

    is_free: the batch size is. operands: unit roundoff of the factors of products, 0 as they are. Raises ParityError
    when the reference cannot be run on the batches.
    """
    try:
        points = points or points_of(reference, expectation, batches, is_free=is_free)
    except BnfoldError as problem:
        return Regions((), tuple(_unbounded(expectation, (), f"{problem}")), {})
    before, after = to_proto(reference), to_proto(folded)
    at_sites = [{site.weight, site.bias} for site in expectation.sites]
    names = [new.tensor for new in expectation.tensors]
    found = [
        region
        for region in regions(before, after, points.same, names)
        if not any(region.tensors and set(region.tensors) <= tensors for tensors in at_sites)
    ]
    values = _values(before, found, batches, threads)
    sides = Spans(before), Spans(after)
    results = [
        (region.tensors[0] if region.tensors else "", _checked(region, sides, values, expectation, threads, operands))
        for region in found
    ]
    return Regions(tuple(results), tuple(_unbounded(expectation, found)), points.apart)


def points_of(
    reference: ir.Model, expectation: Expectation, batches: Sequence[Mapping[str, Array]], *, is_free: bool = True
) -> Points:
    """Where the exact fold agrees with the reference, whatever was shipped. ParityError: it cannot be run."""
    return exact_points(reference, expectation.plan.edits, first_rows(batches, _ROWS, is_free=is_free))


def _values(
    reference: onnx.ModelProto, found: Sequence[Region], batches: Sequence[Mapping[str, Array]], threads: int
) -> list[dict[str, Array]]:
    """What the reference computes at the sources of the regions, for each batch."""
    if not found:
        return []
    inner = [source for region in found for _, source in region.sources]
    try:
        session = open_session(with_outputs(reference, inner), optimise=False, threads=threads)
        return [{**batch, **run(session, batch)} for batch in batches]
    except BnfoldError as problem:
        raise ParityError(f"the reference cannot be run region by region: {problem}") from problem


def _checked(
    region: Region, sides: tuple[Spans, Spans], values: Sequence[Mapping[str, Array]], expectation: Expectation,
    threads: int, operands: float,
) -> SiteResult:  # fmt: skip
    made = {new.tensor: new for new in expectation.tensors}
    empty = _described(region, made)
    try:
        found = empty
        for left, right, bound in _both(region, sides, values, made, threads, operands):
            found = worse(found, exceeded(left, right, bound, empty, axis=min(1, left.ndim - 1)))
        if not found.elements and not found.problem:
            return dataclasses.replace(empty, problem="the golden vectors give it no element to compare")
        return found
    except ParityError as problem:
        return dataclasses.replace(empty, note=f"measured, not bounded: {problem}")
    except BnfoldError as problem:
        return dataclasses.replace(empty, problem=str(problem))


def _both(
    region: Region, sides: tuple[Spans, Spans], values: Sequence[Mapping[str, Array]],
    made: Mapping[str, NewTensor], threads: int, operands: float,
) -> Iterator[tuple[Array, Array, F64]]:  # fmt: skip
    """Either side's result and the bound on their difference, for each batch."""
    (after_target, target), (before, after) = region.target, sides
    first = values[0]
    old = {source: first[source] for _, source in region.sources}
    new = {name: first[source] for name, source in region.sources}
    unfolded = open_session(before.part(region.unfolded, old, target), optimise=False, threads=threads)
    folded = open_session(after.part(region.folded, new, after_target), optimise=False, threads=threads)
    constants = [_constants(before, region.unfolded, {}), _constants(after, region.folded, made)]
    for batch in values:
        old = {source: batch[source] for _, source in region.sources}
        new = {name: batch[source] for name, source in region.sources}
        (left,) = run(unfolded, old).values()
        (right,) = run(folded, new).values()
        error = np.zeros(left.shape)
        by = Rounding.of(format_of(left.dtype), operands)  # a source may be a whole number, or there may be none
        for side, nodes, known, feeds, name in (
            (before, region.unfolded, constants[0], old, target),
            (after, region.folded, constants[1], new, after_target),
        ):
            data = {key: State.of(array, is_data=array.dtype.kind not in "iub") for key, array in feeds.items()}
            found = analyse(nodes, {**known, **data}, name, by, side.model.opset_import)
            if found.size.shape != left.shape:
                raise ParityError(f"its shape is {left.shape} in the runtime and {found.size.shape} in float64")
            error = error + found.error
        yield left, right, np.asarray(error * SLACK)


def _constants(side: Spans, nodes: Sequence[onnx.NodeProto], made: Mapping[str, NewTensor]) -> dict[str, State]:
    """What some nodes read: constants as stored, and those that the fold made as what they should be, rounded once."""
    states = {}
    for name, stored in side.tensors(nodes).items():
        if name in made:
            exact = np.asarray(algebra.evaluate(made[name].expr).hi, np.float64)
            exact = exact.reshape(stored.shape) if exact.size == stored.size else np.broadcast_to(exact, stored.shape)
            states[name] = rounded_once(exact, stored.dtype.name)
        else:
            states[name] = State.of(stored)
    return states


def _described(region: Region, made: Mapping[str, NewTensor]) -> SiteResult:
    parts = [made[name] for name in region.tensors]
    owners = dict.fromkeys(new.owner for new in parts)
    norms = dict.fromkeys(norm.name for new in parts for norm in new.norms)
    label = " and ".join(owners) or region.target[0]
    return SiteResult(label, tuple(norms), ", ".join(region.tensors), 0, kind="region")


def _unbounded(expectation: Expectation, found: Sequence[Region], why: str = "") -> Iterator[SiteResult]:
    """New tensors that are of no site and in no region."""
    reason = why or "its inputs and its result are nowhere equal on both sides, apart from the network's own"
    seen = {name for region in found for name in region.tensors}
    seen |= {name for site in expectation.sites for name in (site.weight, site.bias)}
    for new in expectation.tensors:
        if new.tensor not in seen:
            norms = tuple(norm.name for norm in new.norms)
            yield SiteResult(new.owner, norms, new.tensor, 0, kind="region", note=f"measured, not bounded: {reason}")
