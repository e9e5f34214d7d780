"""Where can a map go upstream? Into what writes a value: all of it, or not at all.

The writer of a value is asked for a map; carriers are passed backward, linears and norms are the end. A value is
visited when all that is asked of it is known, so that branches which part and meet again are seen as what they are:
every reader must want the same.
"""

from __future__ import annotations

import heapq

from bnfold.folding import transport
from bnfold.folding.absorb import Changes, behind_problem, norm_problem, taken_in
from bnfold.folding.affine import IDENTITY, AffineMap, after, is_one, is_zero, take
from bnfold.folding.bench import Bench, NormState, Slot
from bnfold.folding.carriers import Select
from bnfold.folding.edits import SetSlope
from bnfold.folding.expressions import Expr
from bnfold.folding.facts import GRAPH_OUTPUT, Carrier, Linear, Norm, Opaque, Reason

TRIES = 16  # ways to share a shift out among the terms of sums that are looked at, before giving up


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
        # Who else reads it is no question where nothing could take a map in anyway.
        if isinstance(wanted, Reason) and isinstance(node, Linear | Norm | Carrier):
            return wanted
        if isinstance(wanted, AffineMap) and wanted.is_identity:
            return None
        match node:
            case Linear() if isinstance(wanted, AffineMap):
                return self._into_linear(node, wanted)
            case Norm() if isinstance(wanted, AffineMap):
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
        return taken_in(self.bench, self.changes, state, behind_problem(state, wanted), wanted, behind=True)

    def _into_norm(self, node: Norm, wanted: AffineMap) -> Reason | None:
        state = self.bench.norms[node.id]
        blocked = norm_problem(state, wanted)
        if blocked or state.map is None:
            return blocked
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
        may_turn = "per_channel_slope" in self.bench.allowed and node.id not in self.bench.sloped
        usable = [passage for passage in passages if passage.slope is None or may_turn]
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
            like = _some_linear(self.bench)
            if like is None:
                return Reason("COSTS_MORE", f"no linear layer gives the slopes of {node.label} their dtype")
            self.changes.slopes.append(SetSlope(node, passage.slope, passage.axis, like, (self.norm,)))
        for slot, (value, moving) in enumerate(zip(self.bench.inputs(node), passage.maps, strict=True)):
            self._ask(value, (node.id, slot), moving)
        return None


def _rows(part: Expr, axis: int, indices: tuple[int, ...]) -> Expr:
    return take(part, axis, indices) if part.shape else part


def _some_linear(bench: Bench) -> Linear | None:
    states = list(bench.linears.values())
    return states[0].linear if states else None
