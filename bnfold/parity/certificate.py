"""T1, the weight certificate: the shipped graph is the fold of its reference, every number the nearest there is.

It needs no data. The plan says which tensors a fold of the reference must replace; their exact values come from the
reference's constants in the arithmetic of `bnfold.parity.exact`, never from the fold's own. Structure: node for node
what the fold leaves. Numbers: |shipped - exact| <= 0.5 ulp for every element of every folded tensor.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.errors import ParityError
from bnfold.folding.edits import Edit, SetWeights
from bnfold.folding.expressions import Array
from bnfold.folding.facts import Graph, Linear, Norm
from bnfold.folding.moves import MOVES
from bnfold.folding.onnx_edits import FoldMap
from bnfold.folding.onnx_graph import carry_out, read
from bnfold.folding.plan import Plan, make_plan
from bnfold.folding.report import FoldReport
from bnfold.parity.exact import Interval, evaluate, exact_array
from bnfold.parity.nearest import Distances, measure_product, measure_vector
from bnfold.parity.structure import differences


@dataclass(frozen=True)
class Site:
    """One linear of the reference and the norms that it absorbs, with the names of its two tensors in the fold."""

    linear: Linear
    absorbed: tuple[Norm, ...]
    weight: str
    bias: str

    @property
    def norms(self) -> str:
        """The norms as a sentence names them."""
        return " and ".join(f"'{norm.name}'" for norm in self.absorbed)


@dataclass(frozen=True)
class Expectation:
    """What a fold of the reference must look like: its graph (folded tensors zero), its sites, what contradicts."""

    model: ir.Model
    sites: tuple[Site, ...]
    problems: tuple[str, ...]
    fold_map: FoldMap


@dataclass(frozen=True)
class TensorVerdict:
    """One folded tensor against its exact value. worst_channel: the output channel of the worst element."""

    tensor: str
    role: str
    linear: str
    norms: tuple[str, ...]
    distances: Distances
    worst_channel: int

    @property
    def nearest(self) -> bool:
        """True when every element is the nearest float to its exact value."""
        return self.distances.not_nearest == 0

    def sentence(self) -> str:
        """What is wrong with the tensor, for a person."""
        found = self.distances
        return (
            f"tensor '{self.tensor}' ({self.role} of '{self.linear}', folded with {', '.join(self.norms)}): "
            f"{found.not_nearest} of {found.elements} values are not the nearest to the exact fold; the worst, at "
            f"{list(found.worst_index)} in channel {self.worst_channel}, is {found.worst_ulp:.4g} ulp off; "
            "expected at most 0.5"
        )


@dataclass(frozen=True)
class Certificate:
    """The verdict on a folded model. structure: differences from the expected graph, one sentence each."""

    tensors: tuple[TensorVerdict, ...]
    structure: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True when the graph is the expected one and every number the nearest."""
        return not self.structure and all(tensor.nearest for tensor in self.tensors)

    @property
    def worst_ulp(self) -> float:
        """The largest distance of any element from its exact value, in ulp; 0 when nothing was folded."""
        return max((tensor.distances.worst_ulp for tensor in self.tensors), default=0.0)

    def findings(self) -> tuple[str, ...]:
        """Everything that is wrong, one sentence each."""
        return self.structure + tuple(tensor.sentence() for tensor in self.tensors if not tensor.nearest)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready numbers, one object a tensor."""
        rows = [
            {
                "tensor": tensor.tensor, "role": tensor.role, "linear": tensor.linear, "norms": list(tensor.norms),
                "elements": tensor.distances.elements, "not_nearest": tensor.distances.not_nearest,
                "worst_ulp": tensor.distances.worst_ulp, "worst_index": list(tensor.distances.worst_index),
                "worst_channel": tensor.worst_channel,
            }
            for tensor in self.tensors
        ]  # fmt: skip
        return {"tensors": rows, "structure": list(self.structure)}


def certify(expectation: Expectation, folded: ir.Model) -> Certificate:
    """Certify a folded model against what `expect` makes of its reference. The model is not changed."""
    names = [name for site in expectation.sites for name in (site.weight, site.bias)]
    structure = expectation.problems + differences(expectation.model, folded, recomputed=names)
    verdicts: list[TensorVerdict] = []
    for site in expectation.sites:
        verdicts += judge(site, folded)
    return Certificate(tuple(verdicts), structure)


def expect(reference: ir.Model, report: FoldReport | None = None) -> Expectation:
    """The graph that a fold of the reference must be, and the sites whose tensors must be recomputed.

    report: the fold report that came with the fold; the norms that it calls folded are those that must be gone, all
    others those that must be there. None: every norm that can be folded must be. The reference is not changed.
    """
    graph = read(reference)
    plan = plan_of(graph, report)
    problems: tuple[str, ...] = ()
    if report is not None:
        claimed = {row.name: row.outcome for row in report.norms}
        left = [glob.escape(row.name) for row in plan.report.norms if claimed.get(row.name) != "folded"]
        plan = make_plan(graph, keep=left, moves=_moves_of(graph, report))
        problems = tuple(_contradictions(report, plan.report))
    edits: list[Edit] = [_Blank(e.linear, e.map, e.absorbed) if isinstance(e, SetWeights) else e for e in plan.edits]
    model, fold_map = carry_out(reference, edits)
    changed = [edit for edit in edits if isinstance(edit, SetWeights)]
    by_role: dict[str, list[str]] = {"weight": [], "bias": []}
    for entry in fold_map:
        by_role[entry["role"]].append(entry["tensor"])
    sites = tuple(
        Site(edit.linear, edit.absorbed, weight, bias)
        for edit, weight, bias in zip(changed, by_role["weight"], by_role["bias"], strict=True)
    )
    return Expectation(model, sites, problems, fold_map)


def plan_of(graph: Graph, report: FoldReport | None) -> Plan:
    """The plan of a graph with the moves that a report was made with, so that its norms bear the report's names."""
    return make_plan(graph, moves=_moves_of(graph, report))


def _moves_of(graph: Graph, report: FoldReport | None) -> str | tuple[str, ...]:
    """A report does not name its moves, but without composition each step of a hand-written norm is a norm."""
    if report is not None:
        apart = tuple(move.name for move in MOVES if move.name != "compose_affine")
        for moves in ("default", apart):
            if _names(make_plan(graph, moves=moves).report) == _names(report):
                return moves
    return "default"


def _contradictions(claimed: FoldReport, planned: FoldReport) -> Iterator[str]:
    """What a fold report says and the plan that its own rows ask for does not."""
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
    yield from (f"the fold report has no row for the norm '{name}'" for name in rows if name not in _names(claimed))


def _names(report: FoldReport) -> set[str]:
    return {row.name for row in report.norms}


def judge(site: Site, folded: ir.Model) -> tuple[TensorVerdict, ...]:
    """Both tensors of a site against their exact values; a tensor that is not there, or misshapen, has no verdict."""
    try:
        scale, shift = exact_map(site.absorbed, site.linear.channels)
    except ParityError as problem:
        raise ParityError(f"{site.linear.label} with {site.norms}: {problem}") from None
    linear = site.linear
    verdicts = []
    weight = linear.weight.load()
    shipped = _stored(folded, site.weight)
    if shipped is not None and (shipped.dtype, shipped.shape) == (weight.dtype, weight.shape):
        factors = [factor * Interval.of(linear.alpha) for factor in scale]
        channels = output_channels(linear)
        found = measure_product(weight, shipped, factors, channels)
        verdicts.append(_verdict(site, "weight", found, _channel_of(channels, found.worst_index)))
    stored = _stored(folded, site.bias)
    dtype = weight.dtype if linear.bias is None else linear.bias.load().dtype
    if stored is not None and (stored.dtype, stored.shape) == (dtype, (linear.channels,)):
        found = measure_vector(exact_bias(linear, scale, shift), stored)
        verdicts.append(_verdict(site, "bias", found, found.worst_index[0] if found.worst_index else 0))
    return tuple(verdicts)


def exact_map(norms: Sequence[Norm], channels: int) -> tuple[list[Interval], list[Interval]]:
    """Scale and shift of the norms applied one after the other, the first one first: `channels` intervals each."""
    scale, shift = [Interval.of(1.0)] * channels, [Interval.of(0.0)] * channels
    for norm in norms:
        outer_scale, outer_shift = _spread(evaluate(norm.scale), channels), _spread(evaluate(norm.shift), channels)
        shift = [a * t + b for a, t, b in zip(outer_scale, shift, outer_shift, strict=True)]
        scale = [a * s for a, s in zip(outer_scale, scale, strict=True)]
    return scale, shift


def output_channels(linear: Linear) -> Array:
    """The output channel of each weight element by its first two indices.

    int64, (O, 1), or (I, O/g) where the input channels come first. Source: the layouts of ONNX Conv-11 (O, I/g, *K),
    ConvTranspose-11 (I, O/g, *K), Gemm-13.
    """
    if linear.out_first:
        return np.arange(linear.channels, dtype=np.int64)[:, None]
    inputs, per_group = linear.weight.shape[:2]
    group = np.arange(inputs, dtype=np.int64) // max(1, inputs // linear.groups)
    return np.asarray(group[:, None] * per_group + np.arange(per_group, dtype=np.int64)[None, :])


def exact_bias(linear: Linear, scale: Sequence[Interval], shift: Sequence[Interval]) -> list[Interval]:
    """The folded bias, exactly: scale * beta * bias + shift, (O,)."""
    if linear.bias is None:
        return list(shift)
    bias = _spread(exact_array(linear.bias.load()), linear.channels)
    beta = Interval.of(linear.beta)
    return [a * beta * c + t for a, c, t in zip(scale, bias, shift, strict=True)]


def _spread(values: Array, channels: int) -> list[Interval]:
    """A scalar or a vector over the channels, as one interval a channel."""
    flat = values.reshape(-1).tolist()
    return flat * channels if len(flat) == 1 else flat


def _verdict(site: Site, role: str, found: Distances, channel: int) -> TensorVerdict:
    name = site.weight if role == "weight" else site.bias
    return TensorVerdict(name, role, site.linear.name, tuple(norm.name for norm in site.absorbed), found, channel)


def _channel_of(channels: Array, index: tuple[int, ...]) -> int:
    if not index:
        return 0
    return int(channels[index[0], 0 if channels.shape[1] == 1 else index[1]])


def _stored(model: ir.Model, name: str) -> Array | None:
    value = model.graph.initializers.get(name)
    return None if value is None or value.const_value is None else np.asarray(value.const_value.numpy())


class _Blank(SetWeights):
    """The edit without its numbers: the graph that a fold leaves is wanted here, not what the fold computes."""

    def weight(self) -> Array:
        return np.zeros(self.linear.weight.shape, self.linear.weight.load().dtype)

    def bias(self) -> Array:
        return np.zeros((self.linear.channels,), (self.linear.bias or self.linear.weight).load().dtype)
