"""T2 at sites, linears with the norms right behind them: linear and the unfolded span differ by no more than rounding.

Both sides get the same input, the reference's own activation. Each computed result lies within its bound (see
`bnfold.parity.local.bounds`) of the one exact result, so the two lie within the sum of the bounds of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.errors import BnfoldError, ParityError
from bnfold.folding.expressions import Array, Expr, Scalar, mul
from bnfold.folding.facts import Norm
from bnfold.folding.onnx_file import to_proto
from bnfold.folding.onnx_graph import read
from bnfold.parity.local import bounds
from bnfold.parity.local.results import SLACK, SiteResult, exceeded, worse
from bnfold.parity.local.sites import Site, bias_of, map_of, output_channels
from bnfold.parity.local.spans import Spans, with_outputs
from bnfold.parity.oracle import run_float64
from bnfold.parity.weights.enclosing import at_most
from bnfold.parity.weights.exact import format_of
from bnfold.runtime import open_session, run

F64 = np.ndarray[Any, np.dtype[np.float64]]


def check_sites(
    reference: ir.Model, folded: ir.Model, sites: Sequence[Site], batches: Sequence[Mapping[str, Array]],
    *, threads: int = 1, operands: float = 0.0,
) -> tuple[SiteResult, ...]:  # fmt: skip
    """Bound every site of a fold on some inputs, in graph order. batches: inputs of the network by name.

    Raises ParityError when the reference itself cannot be run on them.
    """
    proto = to_proto(reference)
    before, after = Spans(proto), Spans(to_proto(folded))
    inner = [before.source(site) for site in sites]
    try:
        session = open_session(with_outputs(proto, inner), optimise=False, threads=threads)
        activations = [{**batch, **run(session, batch)} for batch in batches]
    except BnfoldError as problem:
        raise ParityError(f"the reference cannot be run site by site: {problem}") from problem
    norms = read(reference).norms
    results = []
    for site, source in zip(sites, inner, strict=True):
        inputs = [values[source] for values in activations]
        gone = {node for norm in site.absorbed for node in norm.nodes}
        written = tuple(norm for norm in norms if norm.nodes and set(norm.nodes) <= gone)
        try:
            results.append(_check(site, written, before, after, inputs, threads, operands))
        except BnfoldError as problem:
            results.append(_result(site, problem=str(problem)))
    return tuple(results)


def _check(
    site: Site, written: tuple[Norm, ...], before: Spans, after: Spans, inputs: Sequence[Array], threads: int,
    operands: float,
) -> SiteResult:  # fmt: skip
    rank = inputs[0].ndim
    dtype = onnx.helper.np_dtype_to_tensor_dtype(inputs[0].dtype)
    target = site.absorbed[-1].output
    start = before.source(site)
    unfolded = open_session(before.cut(start, target, dtype, rank), optimise=False, threads=threads)
    source, folded = after.folded(site, dtype, rank)
    linear = open_session(folded, optimise=False, threads=threads)
    bound = SiteBound.of(site, written, before, rank, operands)
    worst = _result(site)
    for x in inputs:
        (left,) = run(unfolded, {start: x}).values()
        (right,) = run(linear, {source: x}).values()
        found = compare(left, right, bound.evaluate(x), site)
        worst = worse(worst, found)
    if not worst.elements and not worst.problem:
        return _result(site, problem="the golden vectors give it no element to compare")
    return worst


@dataclass(frozen=True)
class SiteBound:
    """The bound of one site: r * M + t, with M = |W| * |x| evaluated in float64 by `operator`."""

    site: Site
    operator: onnx.ModelProto
    r: F64
    t: F64

    @staticmethod
    def of(site: Site, written: tuple[Norm, ...], reference: Spans, rank: int, operands: float = 0.0) -> SiteBound:
        """written: the norms of the site one by one, as the reference has them."""
        linear = site.linear
        stored = linear.weight.load()
        form = format_of(stored.dtype)
        by = bounds.Rounding.of(form, operands)
        scale, shift = map_of(site.absorbed)
        factor = _sizes(mul(scale, Scalar(linear.alpha)), linear.channels)
        first = bounds.through(written, bounds.start(linear, by), by)
        second = bounds.folded(linear, factor, _sizes(bias_of(linear, scale, shift), linear.channels), by)
        weight = np.abs(stored.astype(np.float64))
        channels = output_channels(linear)
        r = np.broadcast_to(first.r + second.r, factor.shape)
        shape = (*channels.shape, *(1,) * (weight.ndim - 2))
        weight = weight + bounds.lost_weights(weight, factor[channels].reshape(shape), r[channels].reshape(shape), form)
        return SiteBound(site, reference.absolute(site, weight, rank), r, first.t + second.t)

    def evaluate(self, x: Array) -> F64:
        """The bound on the elementwise difference for an input: float64, in the shape of the linear's output."""
        size = run_float64(self.operator, {self.operator.graph.input[0].name: np.abs(x.astype(np.float64))})["output"]
        axis = _axis(self.site, size.ndim)
        shape = [1] * size.ndim
        shape[axis] = self.site.linear.channels
        with np.errstate(all="ignore"):
            return np.asarray((self.r.reshape(shape) * size + self.t.reshape(shape)) * SLACK)


def compare(left: Array, right: Array, bound: F64, site: Site) -> SiteResult:
    """Two results of a site against the bound on their difference. NaN and infinity never pass."""
    return exceeded(left, right, bound, _result(site), axis=_axis(site, left.ndim))


def _axis(site: Site, rank: int) -> int:
    if site.linear.axis is not None:
        return site.linear.axis
    return rank - 1 if site.linear.kind == "MatMul" else 1


def _sizes(expr: Expr, channels: int) -> F64:
    """|v| of a map or a bias, rounded upwards, a number a channel."""
    return np.broadcast_to(at_most(expr).reshape(-1), (channels,)).copy()


def _result(site: Site, **fields: Any) -> SiteResult:
    names = tuple(norm.name for norm in site.absorbed)
    return SiteResult(site.linear.name, names, site.weight, bounds.fan_in(site.linear), **fields)
