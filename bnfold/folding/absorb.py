"""Where can a map go? Upstream into what writes a value, or downstream into what reads it: all of it, or not at all.

`upstream` asks the writer of a value for a map, passes carriers backward and ends at linears and norms; `downstream`
gives the readers of a value a map, passes carriers forward and ends likewise. Both visit a value when all that is
asked of it is known, so that branches which part and meet again are seen as what they are: every reader must want
the same. Nothing is changed before everything is known to be legal; `commit` then changes it at once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bnfold.folding import transport
from bnfold.folding.affine import IDENTITY, AffineMap, after, is_one, is_zero, take, values, vector
from bnfold.folding.bench import Bench, LinearState, NormState, Slot
from bnfold.folding.carriers import Select
from bnfold.folding.edits import SetSlope
from bnfold.folding.expressions import Expr
from bnfold.folding.facts import GRAPH_OUTPUT, Carrier, Linear, Norm, Opaque, Reason
from bnfold.folding.weights import Weights, mapped_before, mapped_behind

TRIES = 16  # ways to share a shift out among the terms of sums that are looked at, before giving up


@dataclass
class Changes:
    """What an attempt would change: linears by id (new numbers, largest factor, bound on what the bias gains)."""

    linears: dict[str, tuple[Weights, float, float]] = field(default_factory=dict)
    norms: dict[str, AffineMap] = field(default_factory=dict)
    passed: list[Norm] = field(default_factory=list)  # elementwise maps that went along
    slopes: list[SetSlope] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """The ids of what takes the map in."""
        return [*self.linears, *self.norms]


# ------------------------------------------------------------------------------------------------------- upstream


def upstream(bench: Bench, norm: NormState, moving: AffineMap) -> Changes | Reason:
    """Give the map to what writes the norm's input; the changes that take, or why it cannot be."""
    value = bench.input_of(norm.norm)
    choices: list[int] = []
    first: Reason | None = None
    for _ in range(TRIES):
        attempt = _Upstream(bench, norm.norm, choices)
        problem = attempt.run(value, moving)
        if problem is None:
            return attempt.changes
        first = first or problem
        following = _next_choice(attempt.taken, attempt.counts)
        if following is None:
            return first
        choices = following
    return first or Reason("NO_LINEAR_BEFORE", "no way to share its shift out among sums was found")


def _next_choice(taken: list[int], counts: list[int]) -> list[int] | None:
    """The choices after these, the last one first; None when all have been tried."""
    for at in reversed(range(len(taken))):
        if taken[at] + 1 < counts[at]:
            return [*taken[:at], taken[at] + 1]
    return None


class _Upstream:
    def __init__(self, bench: Bench, norm: Norm, choices: list[int]) -> None:
        self.bench = bench
        self.norm = norm
        self.choices = choices
        self.taken: list[int] = []
        self.counts: list[int] = []
        self.changes = Changes()
        self.asked: dict[str, dict[Slot, AffineMap]] = {}
        self.queue: list[tuple[int, str]] = []

    def run(self, value: str, moving: AffineMap) -> Reason | None:
        self._ask(value, (self.norm.id, 0), moving)
        while self.queue:
            _, value = heapq.heappop(self.queue)
            node = self.bench.producer(value)
            if isinstance(node, Carrier) and not self.bench.is_gone(node.id):
                problem = self._through(node)
            else:
                problem = self._at(value, node)
            if problem:
                return problem
        return None

    def _ask(self, value: str, reader: Slot, moving: AffineMap) -> None:
        if value not in self.asked:
            self.asked[value] = {}
            node = self.bench.producer(value)
            heapq.heappush(self.queue, (-self.bench.position[node.id] if node else 1, value))
        self.asked[value][reader] = moving

    def _wanted(self, value: str) -> AffineMap | Reason:
        """The one map that all readers of a value want."""
        asked = self.asked.get(value, {})
        maps = list(asked.values())
        if all(moving.is_identity for moving in maps):
            return IDENTITY
        wanted = next(moving for moving in maps if not moving.is_identity)
        who = self._label(value)
        if value in self.bench.sealed:
            return Reason("OTHER_READER", f"{who} has a constant channel that the map would change")
        others = [slot for slot in self.bench.readers(value) if slot not in asked and not self._ignores(slot, wanted)]
        if others:
            name = self.bench.label(others[0][0])
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            return Reason("OTHER_READER", f"the output of {who} is also read by {name}{more}, unnormalised")
        if not all(moving.equals(wanted) for moving in maps):
            return Reason("OTHER_READER", f"the readers of the output of {who} would need different maps of it")
        return wanted

    def _ignores(self, reader: Slot, wanted: AffineMap) -> bool:
        """True for a reader that takes only channels which the map leaves alone."""
        node = self.bench.graph.by_id.get(reader[0]) if reader[0] != GRAPH_OUTPUT else None
        if not isinstance(node, Carrier) or not isinstance(node.rule, Select):
            return False
        for axis, indices in node.rule.axes:
            if indices is None or axis not in wanted.axes:
                continue
            left = AffineMap(_rows(wanted.scale, axis, indices), _rows(wanted.shift, axis, indices))
            if is_one(left.scale) and is_zero(left.shift):
                return True
        return False

    def _label(self, value: str) -> str:
        node = self.bench.producer(value)
        return "the graph input" if node is None else node.label

    def _at(self, value: str, node: object) -> Reason | None:
        wanted = self._wanted(value)
        if isinstance(wanted, Reason):
            return wanted
        if wanted.is_identity:
            return None
        match node:
            case Linear():
                return self._into_linear(node, wanted)
            case Norm():
                return self._into_norm(node, wanted)
            case Opaque() if node.why:
                return node.why
            case None:
                source = "an input of the graph or a constant"
            case _:
                source = f"{self._label(value)}, which is no linear layer"
        return Reason(
            "NO_LINEAR_BEFORE", f"its input comes from {source}; upstream, only a linear layer or a norm can take it in"
        )

    def _into_linear(self, node: Linear, wanted: AffineMap) -> Reason | None:
        state = self.bench.linears[node.id]
        return _checked(self.bench, self.changes, state, behind_problem(state, wanted), wanted, behind=True)

    def _into_norm(self, node: Norm, wanted: AffineMap) -> Reason | None:
        state = self.bench.norms[node.id]
        blocked = norm_problem(state, self.norm)
        if blocked:
            return blocked
        if state.map is None:
            return Reason("AXIS_UNKNOWN", f"the rank of the input of {node.label} is not known")
        together = after(wanted, state.map)
        if node.is_norm:
            self.changes.norms[node.id] = together
        else:  # a bias or a factor of its own goes along
            self.changes.passed.append(node)
            self._ask(self.bench.input_of(node), (node.id, 0), together)
        return None

    def _through(self, node: Carrier) -> Reason | None:
        """Pass a carrier once all of its outputs that were asked for have been visited."""
        maps: list[AffineMap | None] = []
        for output in node.outputs:
            wanted = self._wanted(output) if output in self.asked else None
            if isinstance(wanted, Reason):
                return wanted
            maps.append(wanted)
        waiting = {value for _, value in self.queue}
        self.queue = [entry for entry in self.queue if entry[1] not in node.outputs]
        if len(self.queue) != len(waiting):
            heapq.heapify(self.queue)
        if all(moving is None or moving.is_identity for moving in maps):
            return None
        passages = transport.backward(node, tuple(maps), self.bench.shapes)
        if isinstance(passages, Reason):
            return passages
        usable = [passage for passage in passages if passage.slope is None or "per_channel_slope" in self.bench.allowed]
        if not usable:
            return Reason("COSTS_MORE", f"{node.label} would need a slope for each channel (moves: per_channel_slope)")
        chosen = 0
        if len(usable) > 1:
            at = len(self.taken)
            chosen = self.choices[at] if at < len(self.choices) else 0
            self.taken.append(chosen)
            self.counts.append(len(usable))
        passage = usable[chosen]
        if passage.slope is not None:
            like = _some_linear(self.bench, self.norm)
            if like is None:
                return Reason("COSTS_MORE", f"no linear layer gives the slopes of {node.label} their dtype")
            self.changes.slopes.append(SetSlope(node, passage.slope, passage.axis, like, (self.norm,)))
        for slot, (value, moving) in enumerate(zip(self.bench.inputs(node), passage.maps, strict=True)):
            self._ask(value, (node.id, slot), moving)
        return None


def _rows(part: Expr, axis: int, indices: tuple[int, ...]) -> Expr:
    return take(part, axis, indices) if part.shape else part


def _some_linear(bench: Bench, norm: Norm) -> Linear | None:
    states = list(bench.linears.values())
    return states[0].linear if states else None


# ----------------------------------------------------------------------------------------------------- downstream


def downstream(bench: Bench, norm: NormState, moving: AffineMap) -> Changes | Reason:
    """Give the map to all that reads the norm's output; the changes that takes, or why it cannot be."""
    changes = Changes()
    given: dict[str, AffineMap] = {norm.norm.output: moving}
    queue: list[int] = []
    waiting: set[int] = set()

    def spread_out(value: str) -> Reason | None:
        if given[value].is_identity:
            return None
        readers = bench.readers(value)
        if not readers:
            return Reason("NO_LINEAR_BEHIND", "nobody reads it")
        for id, _ in readers:
            if id == GRAPH_OUTPUT:
                return Reason("GRAPH_OUTPUT", "its output is an output of the graph; nothing behind it can take it in")
            at = bench.position[id]
            if at not in waiting:
                waiting.add(at)
                heapq.heappush(queue, at)
        return None

    problem = spread_out(norm.norm.output)
    while queue and problem is None:
        node = bench.graph.nodes[heapq.heappop(queue)]
        match node:
            case Linear():
                state = bench.linears[node.id]
                wanted = given[bench.input_of(node)]
                problem = _checked(bench, changes, state, before_problem(state, wanted), wanted, behind=False)
            case Norm():
                problem = _downstream_norm(bench, changes, norm.norm, node, given, spread_out)
            case Carrier():
                maps = tuple(given.get(value) for value in bench.inputs(node))
                found = transport.forward(node, maps, bench.shapes)
                if isinstance(found, Reason):
                    problem = found
                    continue
                for output, passed in zip(node.outputs, found, strict=True):
                    given[output] = passed
                    if problem is None and bench.readers(output):
                        problem = spread_out(output)
            case Opaque():
                problem = node.why or Reason(
                    "NO_LINEAR_BEHIND", f"its output is read by {node.label}, which is no linear layer"
                )
    return problem or changes


def _downstream_norm(
    bench: Bench, changes: Changes, norm: Norm, node: Norm, given: dict[str, AffineMap],
    spread_out: Callable[[str], Reason | None],
) -> Reason | None:  # fmt: skip
    """Give a map to a norm behind: it takes it in; a bias or factor alone goes along."""
    state = bench.norms[node.id]
    blocked = norm_problem(state, norm)
    if blocked:
        return blocked
    if state.map is None:
        return Reason("AXIS_UNKNOWN", f"the rank of the input of {node.label} is not known")
    together = after(state.map, given[bench.input_of(node)])
    if node.is_norm:
        changes.norms[node.id] = together
        return None
    changes.passed.append(node)
    given[node.output] = together
    return spread_out(node.output)


# ------------------------------------------------------------------------------------------------------ conditions


def norm_problem(state: NormState, asking: Norm) -> Reason | None:
    """Why a norm cannot take another map in: it is kept by name, or is no fixed affine map."""
    if state.norm.refusal or state.norm.obstacle:
        return Reason("NO_LINEAR_BEFORE", f"{state.norm.label} is beside it, and may not be touched")
    return None


def behind_problem(state: LinearState, wanted: AffineMap) -> Reason | None:
    """Why a linear cannot take in a map of its output: it must vary along the channels alone."""
    return _axis_problem(state, wanted, state.weights.channels)


def before_problem(state: LinearState, wanted: AffineMap) -> Reason | None:
    """Why a linear cannot take in a map of its input: the axis, or a shift that meets zeros of the border."""
    problem = _axis_problem(state, wanted, state.weights.in_channels)
    if problem is None and not is_zero(wanted.shift) and meets_zeros(state):
        return Reason(
            "PAD_SHIFT",
            f"its shift would have to pass the zero padding of {state.linear.label}, where there is nothing to shift",
        )
    return problem


def meets_zeros(state: LinearState) -> bool:
    """True when some output of a linear is made from fewer inputs than others, so that a shift is no constant there.

    A transposed convolution has that at its borders and, with stride, between them, unless kernel and stride are 1.
    """
    window = state.weights.window
    if window is None:
        return False
    if state.linear.is_transposed:
        is_pointwise = all(size == 1 for size in (*window.kernel, *window.stride))
        return not is_pointwise or window.is_padded or any(window.output_padding)
    return window.is_padded


def _axis_problem(state: LinearState, wanted: AffineMap, channels: int) -> Reason | None:
    linear = state.linear
    if linear.obstacle:
        return linear.obstacle
    if not wanted.axes:
        return None
    if linear.axis is None:
        return Reason("AXIS_UNKNOWN", f"the rank of the data of {linear.label} is not known, nor its channel axis")
    others = sorted(wanted.axes - {linear.axis})
    if others:
        return Reason(
            "AXIS_MISMATCH", f"it runs over axis {others[0]}, the channels of {linear.label} are axis {linear.axis}"
        )
    if wanted.size(linear.axis) != channels:
        return Reason("AXIS_MISMATCH", f"it has {wanted.size(linear.axis)} channels, {linear.label} has {channels}")
    return None


def _checked(
    bench: Bench, changes: Changes, state: LinearState, problem: Reason | None, wanted: AffineMap, *, behind: bool
) -> Reason | None:
    """Note what a linear becomes by a map behind or before it, or say why it cannot."""
    problem = problem or sharing_problem(bench, state)
    if problem:
        return problem
    linear, weights = state.linear, state.weights
    channels = weights.channels if behind else weights.in_channels
    scale = wanted.scale if not wanted.scale.shape else vector(wanted.scale, linear.axis or 0, channels)
    shift = wanted.shift if not wanted.shift.shape else vector(wanted.shift, linear.axis or 0, channels)
    new = (mapped_behind if behind else mapped_before)(weights, scale, shift)
    grown, moved = (float(np.max(np.abs(values(part)), initial=0.0)) for part in (scale, shift))
    added = moved
    if not behind:
        bench.measure(state)
        added = moved * (state.peak or 0.0) * bench.fan_in(state)
    problem = bench.range_problem(state, new, max(grown, 0.0 if behind else 1.0), added)
    if problem is None:
        changes.linears[linear.id] = (new, max(grown, 0.0 if behind else 1.0), added)
    return problem


def sharing_problem(bench: Bench, state: LinearState) -> Reason | None:
    """Why a shared weight may not be changed: a copy of it would make the model larger."""
    key = state.linear.weight.key
    if key in bench.tied:
        count = bench.graph.tensor_readers.get(key, 1)
        return Reason(
            "COSTS_MORE",
            f"the weight '{state.linear.weight.name}' of {state.linear.label} has {count} users, and each would need "
            "a copy of its own (moves: copy_shared_weight)",
        )
    return None


# ---------------------------------------------------------------------------------------------------------- commit


def commit(bench: Bench, norm: Norm, changes: Changes, *, is_gone: bool, is_right_behind: bool) -> None:
    """Make the changes of an attempt. is_gone: the norm leaves; is_right_behind: it stood right behind a linear."""
    taken = [*bench.norms[norm.id].taken, norm]
    for id, (weights, grown, added) in changes.linears.items():
        state = bench.linears[id]
        bench.grow(state, grown, added)
        state.weights = weights
        state.norms += taken
        if is_right_behind and state.behind is not None:
            state.behind = [*state.behind, norm]
        else:
            state.behind = None
    for id, moving in changes.norms.items():
        other = bench.norms[id]
        other.map, other.is_changed = moving, True
        other.taken += taken
    for passed in changes.passed:
        bench.bypass(passed, changes.targets)
    for slope in changes.slopes:
        bench.set_slope(slope)
    if is_gone:
        bench.bypass(norm, changes.targets)
