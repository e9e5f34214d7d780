"""Two networks side by side, from their outputs to their inputs, by structure alone.

Affine steps are set apart first: between two nodes that are none, each network has a chain of them, and a fold changes
chains and the linears before them. What is no affine step must be the same node for node.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.errors import ParityError
from bnfold.folding.facts import Carrier, Linear, Node, Norm, Opaque, written_by
from bnfold.parity.audit.nodes import compare_nodes
from bnfold.parity.audit.plain_nodes import COMMUTATIVE, Likeness, Stored, inputs_of
from bnfold.parity.audit.sides import Chain, Side, is_affine


@dataclass(frozen=True)
class Link:
    """One place in both networks: a source, and the affine steps between it and a reader.

    before, after: the nodes that write the source, None for a graph input. guessed: two linears that were not reached
    from the outputs, and are set side by side by what they are and by their order.
    """

    left: Chain
    right: Chain
    before: Node | None
    after: Node | None
    guessed: bool = False


@dataclass
class Matching:
    """What was found to be the same. pairs: node of the folded network -> node of the original one, by id.

    problems: where the two part; what lies before such a place is not compared.
    """

    links: list[Link] = field(default_factory=list)
    stored: list[tuple[Stored, Node]] = field(default_factory=list)
    pairs: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """True when every node of the original network that matters has its like."""
        return not self.problems


@dataclass(frozen=True)
class Ends:
    """Names of the inputs and outputs of the folded network by those of the original one."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @classmethod
    def by_place(cls, left: Side, right: Side) -> Ends:
        """The first with the first, whatever they are called. Raises ParityError for another number of outputs."""
        if len(left.outputs) != len(right.outputs):
            raise ParityError(
                f"FOLDED has {len(right.outputs)} outputs, ORIGINAL {len(left.outputs)}; expected the same: they are "
                "not one network"
            )
        inputs = zip(left.graph.inputs, right.graph.inputs, strict=False)
        return cls(dict(inputs), dict(zip(left.outputs, right.outputs, strict=True)))


def match(left: Side, right: Side, ends: Ends | None = None) -> Matching:
    """Walk both networks from their outputs. left: the original network, right: the folded one. ends: None by place."""
    return _Walk(left, right, ends or Ends.by_place(left, right)).run()


class _Walk:
    def __init__(self, left: Side, right: Side, ends: Ends) -> None:
        self.left, self.right, self.ends = left, right, ends
        self.found = Matching()
        self.seen: set[tuple[str, str]] = set()
        self.queue: list[tuple[str, str]] = []
        self.alike: dict[tuple[str, str], bool] = {}  # nodes by id; one of the folded network may stand for several
        self.inputs = {ends.inputs.get(name, name): name for name in left.graph.inputs}
        self.hashes = _skeleton(left, {name: name for name in left.graph.inputs}), _skeleton(right, self.inputs)

    def run(self) -> Matching:
        """Every output, then whatever they are made of."""
        pairs = [(self.left.outputs[name], self.right.outputs[have]) for name, have in self.ends.outputs.items()]
        self.queue = pairs[::-1]
        while self.queue:
            pair = self.queue.pop()
            if pair not in self.seen:
                self.seen.add(pair)
                self._values(*pair)
        if self.found.problems:
            self._guess()
        return self.found

    def _guess(self) -> None:
        """Linears that were not reached, side by side in topological order, with the steps right behind them."""
        reached = set(self.found.pairs.values())
        first = [linear for linear in self.left.linears if linear.id not in reached]
        second = [linear for linear in self.right.linears if linear.id not in self.found.pairs]
        kinds = [_kind(linear) for linear in first], [_kind(linear) for linear in second]
        for block in difflib.SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks():
            for at in range(block.size):
                before, after = first[block.a + at], second[block.b + at]
                likeness = compare_nodes(self.left, self.right, before, after)
                if not likeness.problem:
                    chains = self.left.behind(before), self.right.behind(after)
                    self.found.links.append(Link(*chains, before, after, guessed=True))

    def _values(self, want: str, have: str) -> None:
        before, after = self.left.chain(want), self.right.chain(have)
        first, second = self.left.producer(before.source), self.right.producer(after.source)
        if self._sources(before.source, after.source, first, second):
            self.found.links.append(Link(before, after, first, second))

    def _alike(self, want: str, have: str) -> bool:
        return self.hashes[0].get(want) == self.hashes[1].get(have)

    def _sources(self, want: str, have: str, first: Node | None, second: Node | None) -> bool:
        if first is None or second is None:
            if first is None and second is None and self.inputs.get(have) == want:
                return True
            self._problem(f"{_named(second, have)} stands where {_named(first, want)} is expected")
            return False
        outputs = written_by(first), written_by(second)
        if len(outputs[0]) != len(outputs[1]) or outputs[0].index(want) != outputs[1].index(have):
            self._problem(f"{second.label} has other outputs than {first.label}")
            return False
        known = self.alike.get((first.id, second.id))
        if known is not None:
            return known
        likeness = compare_nodes(self.left, self.right, first, second)
        self.alike[first.id, second.id] = not likeness.problem
        if likeness.problem:
            self._problem(likeness.problem)
            return False
        self.found.pairs.setdefault(second.id, first.id)
        self.found.stored += [(stored, second) for stored in likeness.stored]
        self.queue.extend(reversed(self._ordered(likeness, second)))
        return True

    def _ordered(self, likeness: Likeness, node: Node) -> Sequence[tuple[str, str]]:
        """The inputs in pairs; of an operation that commutes, in the order that fits."""
        pairs = likeness.inputs
        if node.kind not in COMMUTATIVE or len(pairs) != 2:
            return pairs
        (a, b), (c, d) = pairs
        crossed = self._alike(a, d) and self._alike(c, b)
        return [(a, d), (c, b)] if crossed and not (self._alike(a, b) and self._alike(c, d)) else pairs

    def _problem(self, sentence: str) -> None:
        if sentence not in self.found.problems:
            self.found.problems.append(sentence)


def _named(node: Node | None, value: str) -> str:
    return f"the graph input or constant '{value}'" if node is None else node.label


def _skeleton(side: Side, inputs: Mapping[str, str]) -> dict[str, str]:
    """For each value a digest of what it is made of, affine steps, borders and numbers left out.

    inputs: what the inputs are called in both networks.
    """
    found: dict[str, str] = {name: f"input {known}" for name, known in inputs.items()}
    for node in side.graph.nodes:
        parts = [found.get(value, "") for value in inputs_of(side, node)]
        is_step = isinstance(node, Norm) and is_affine(node)
        if is_step or node.kind == "Pad" or side.passed(node) is not None:
            found[written_by(node)[0]] = parts[0] if parts else ""
            continue
        if node.kind in COMMUTATIVE:
            parts.sort()
        for at, value in enumerate(written_by(node)):
            text = f"{_kind(node)} {at} {parts}"
            found[value] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _kind(node: Node) -> str:
    match node:
        case Linear(window=None):
            return f"dense {node.in_channels} {node.channels}"
        case Linear(window=window) if window is not None:
            return (
                f"{node.is_transposed} {node.in_channels} {node.channels} {window.kernel} {window.stride} {node.groups}"
            )
        case Carrier():
            return type(node.rule).__name__ + (node.rule.function if hasattr(node.rule, "function") else "")
        case Opaque() | Norm() | Linear():
            return node.kind
