"""The planner's bench: a graph under work. Norms leave it, linears change; nobody else sees it.

A value that is no longer written hands its readers on to another value. So every question (who writes this, who
reads it) is about the graph as it has become, while names stay those of the source.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.affine import AffineMap, map_of
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetSlope
from bnfold.folding.expressions import Expr, Leaf, size_of
from bnfold.folding.facts import GRAPH_OUTPUT, Carrier, Graph, Linear, Node, Norm, Opaque, Reason, read_by
from bnfold.folding.weights import Weights, weights_of

Slot = tuple[str, int]  # a reader: the id of a node, and which of its inputs


@dataclass
class LinearState:
    """A linear as it has become. peak: bound on max|W| of each output channel, once it is known."""

    linear: Linear
    weights: Weights
    norms: list[Norm] = field(default_factory=list)
    behind: list[Norm] | None = field(default_factory=list)
    merged: list[Linear] = field(default_factory=list)
    peak: float | None = None
    bias_peak: float | None = None

    @property
    def is_changed(self) -> bool:
        """True when an edit is due."""
        return bool(self.norms or self.merged or self.behind is None)


@dataclass
class NormState:
    """A norm that is still there. map: what it has become; taken: the norms that went into it."""

    norm: Norm
    map: AffineMap | None
    taken: list[Norm] = field(default_factory=list)
    is_changed: bool = False


class Bench:
    """A graph under work.

    allowed: the names of the moves that may be made. tied: keys of shared weights that must not be copied.
    """

    def __init__(
        self, graph: Graph, allowed: frozenset[str] = frozenset(), tied: frozenset[Hashable] = frozenset()
    ) -> None:
        self.graph = graph
        self.allowed = allowed
        self.tied = tied
        self.shapes = dict(graph.shapes)
        self.position = {node.id: at for at, node in enumerate(graph.nodes)}
        self.linears: dict[str, LinearState] = {}
        self.norms: dict[str, NormState] = {}
        self.removals: list[Edit] = []
        self.additions: list[Edit] = []
        self.fate: dict[str, list[str]] = {}  # of a norm that has gone: ids of what took it in
        self.reduced: dict[str, list[str]] = {}  # of a norm of which something is left: ids of what took the rest
        self.moved_by: dict[str, str] = {}  # of a norm that has gone or is reduced: the move that did it
        self.why: dict[str, list[Reason]] = {}  # of a norm that stays: what was tried
        self.sloped: set[str] = set()  # activations that have a slope for each channel
        self.sealed: set[str] = set()  # values that must not be asked for a map any more
        self._alias: dict[str, str] = {}
        self._readers: dict[str, list[Slot]] = {}
        self._gone: set[str] = set()
        for node in graph.nodes:
            for slot, value in enumerate(read_by(node)):
                self._readers.setdefault(value, []).append((node.id, slot))
            self._enter(node)
        self.measured = {value for node in graph.nodes if isinstance(node, Opaque) for value in node.measures}
        for slot, value in enumerate(graph.outputs):
            self._readers.setdefault(value, []).append((GRAPH_OUTPUT, slot))

    def _enter(self, node: Node) -> None:
        if isinstance(node, Linear):
            self.linears[node.id] = LinearState(node, weights_of(node))
            self._know_rank(node)
        elif isinstance(node, Norm):
            if node.output not in self.shapes and node.input in self.shapes:
                self.shapes[node.output] = self.shapes[node.input]
            if node.input not in self.shapes and node.output in self.shapes:
                self.shapes[node.input] = self.shapes[node.output]
            self.norms[node.id] = NormState(node, map_of(node, self.rank(node.input)))

    def _know_rank(self, node: Linear) -> None:
        """A convolution or a Gemm says how many axes its data has, also where no shape was inferred."""
        rank = len(node.weight.shape)
        if node.axis is None or node.axis >= rank or (node.window is None and node.kind != "Gemm"):
            return
        for value, channels in ((node.input, node.in_channels), (node.output, node.channels)):
            known = tuple(channels if axis == node.axis else None for axis in range(rank))
            self.shapes.setdefault(value, known)

    # What the graph has become

    def value(self, name: str) -> str:
        """The value that carries what this one was to carry."""
        while name in self._alias:
            name = self._alias[name]
        return name

    def rank(self, value: str) -> int | None:
        """The number of axes of a value, None where it is not known."""
        shape = self.shapes.get(value)
        return None if shape is None else len(shape)

    def producer(self, value: str) -> Node | None:
        """The node that writes a value; None for an input of the graph or a constant."""
        return self.graph.producers.get(value)

    def readers(self, value: str) -> list[Slot]:
        """Who reads a value now: (node id, slot), GRAPH_OUTPUT for a graph output."""
        return [slot for slot in self._readers.get(value, []) if slot[0] not in self._gone]

    def inputs(self, node: Carrier) -> tuple[str, ...]:
        """The values that a carrier reads now."""
        return tuple(self.value(name) for name in node.inputs)

    def input_of(self, node: Linear | Norm) -> str:
        """The value that a linear or norm reads now."""
        return self.value(node.input)

    def is_gone(self, id: str) -> bool:
        """True for a node that an edit removes."""
        return id in self._gone

    def sums(self) -> Iterator[Carrier]:
        """The carriers that are still there."""
        for node in self.graph.nodes:
            if isinstance(node, Carrier) and node.id not in self._gone:
                yield node

    def live_norms(self) -> list[NormState]:
        """The norms that are still there, in graph order."""
        return [state for id, state in self.norms.items() if id not in self._gone]

    def label(self, id: str) -> str:
        """A node, or the graph output, as a sentence names it."""
        return "a graph output" if id == GRAPH_OUTPUT else self.graph.by_id[id].label

    # Changes

    def bypass(self, norm: Norm, into: list[str]) -> None:
        """Remove a norm whose map went elsewhere. into: the ids of what took it in."""
        self._hand_on(norm.id, norm.output, self.value(norm.input))
        self.removals.append(Bypass(norm))
        self.fate[norm.id] = into

    def redirect(self, carrier: Carrier, to: str) -> None:
        """Remove a sum of two terms: what read it reads the value `to`."""
        self._hand_on(carrier.id, carrier.outputs[0], to)
        self.removals.append(Redirect(carrier, to))

    def drop(self, id: str, into: list[str] | None = None) -> None:
        """Note that nobody reads a node any more. into: what took a norm in."""
        self._gone.add(id)
        if into is not None:
            self.fate[id] = into

    def set_slope(self, edit: SetSlope) -> None:
        """Give an activation a slope for each channel. That is done once: its facts still have the old slope."""
        self.removals.append(edit)
        self.sloped.add(edit.carrier.id)

    def add_constant(self, edit: AddConstant) -> None:
        """Add a constant to a value."""
        self.additions.append(edit)

    def explain(self, norm: Norm, reason: Reason) -> None:
        """Note why a norm could not go one way."""
        self.why.setdefault(norm.id, []).append(reason)

    def _hand_on(self, id: str, old: str, new: str) -> None:
        self._gone.add(id)
        self._alias[old] = new
        self._readers.setdefault(new, []).extend(self._readers.pop(old, []))
        if new not in self.shapes and old in self.shapes:
            self.shapes[new] = self.shapes[old]

    # Numbers

    def range_problem(self, state: LinearState, after: Weights, grown: float, added: float) -> Reason | None:
        """Why a linear's new numbers do not fit their dtype; None when they do.

        grown: the largest factor on any weight; added: a bound on what is added to the bias, which is scaled by
        `grown` at most. Bounds come first; only where they are too large, the numbers themselves are looked at.
        """
        linear = state.linear
        dtypes = {linear.weight.dtype} | ({linear.bias.dtype} if linear.bias else set())
        if len(dtypes) != 1 or not dtypes <= algebra.LARGEST.keys():
            return Reason("DTYPE", f"{linear.label} has weights of dtype {' and '.join(sorted(dtypes))}")
        largest = algebra.LARGEST[dtypes.pop()]
        self.measure(state)
        if not (np.isfinite(state.peak or 0.0) and np.isfinite(state.bias_peak or 0.0)):
            return Reason("NON_FINITE_WEIGHT", f"the weight or bias of {linear.label} already holds NaN or infinity")
        peak = (state.peak or 0.0) * grown
        bias_peak = (state.bias_peak or 0.0) * grown + added
        if peak <= largest and bias_peak <= largest and not np.isnan(peak + bias_peak):
            return None
        exact = max(_peak(after.weight), 0.0 if after.bias is None else _peak(after.bias))
        if np.isfinite(exact) and exact <= largest:
            return None
        return Reason(
            "OVERFLOW", f"folded into {linear.label} it would reach {exact:.3g}, beyond the range of its dtype"
        )

    def measure(self, state: LinearState) -> None:
        """Look at a linear's numbers, where no bound on them is known."""
        if state.peak is None:
            state.peak = _peak(state.weights.weight)
        if state.bias_peak is None:
            state.bias_peak = 0.0 if state.weights.bias is None else _peak(state.weights.bias)

    def grow(self, state: LinearState, grown: float, added: float) -> None:
        """Carry the bounds of a linear's numbers on."""
        self.measure(state)
        peak = (state.peak or 0.0) * grown
        bias_peak = (state.bias_peak or 0.0) * grown + added
        is_loose = max(peak, bias_peak) > algebra.LARGEST.get(state.linear.weight.dtype, 0.0)
        state.peak, state.bias_peak = (None, None) if is_loose else (peak, bias_peak)

    def fan_in(self, state: LinearState) -> int:
        """How many terms a sum over a channel's weights has at most."""
        return max(1, math.prod(state.weights.weight.shape))


def _peak(part: Expr) -> float:
    if size_of(part) == 0:
        return 0.0
    if isinstance(part, Leaf):  # without a copy of a huge weight
        stored = part.tensor.load()
        return float(np.maximum(stored.max(), -stored.min()))
    with np.errstate(all="ignore"):
        found = np.abs(algebra.magnitude(part))
    return float("nan") if np.isnan(found).any() else float(found.max())
