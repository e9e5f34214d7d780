"""Where the parts of a graph stand: chains are cards, cards stand in layers and columns, long edges run in lanes.

A chain of nodes without forks is one card, one row a node. A card's layer is one more than that of the latest card it
reads from, so that every edge points down; layers keep the topological order. An edge that passes a layer runs down a
lane at the left, one lane a value; between two layers, edges cross over on tracks of their own. Sizes in pixels.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.folding.facts import Graph, Linear, Node, Norm, read_by, written_by

ROW = 19
WIDTH = 272
COLUMN = WIDTH + 26
LANE = 11
TRACK = 8
_PAD = 4  # of a card, above and below its rows
_GAP = 22  # between layers, without tracks
_LONGEST_RUN = 3  # nodes in a row that are neither linear nor norm, before they are drawn as one


@dataclass(frozen=True)
class Row:
    """A line of a card: one node, or several dull ones in a row. name: of an input or output of the graph."""

    nodes: tuple[Node, ...]
    name: str = ""


@dataclass
class Card:
    """A chain of nodes. layer, column: where it stands. reads: the values that come from other cards, in order."""

    rows: list[Row]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    layer: int = 0
    column: int = 0
    x: float = 0.0
    y: float = 0.0
    is_end: bool = False

    @property
    def height(self) -> float:
        """The height that its rows take."""
        return len(self.rows) * ROW + 2 * _PAD

    def row_top(self, at: int) -> float:
        """Where a row begins."""
        return self.y + _PAD + at * ROW


@dataclass(frozen=True)
class Edge:
    """A line from a card to all that read one of its values: polylines of (x, y), those with an arrow marked so."""

    value: str
    lines: tuple[tuple[tuple[float, float], ...], ...]
    arrows: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Layout:
    """All cards and edges, and the size of the whole."""

    cards: tuple[Card, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float


def arrange(graph: Graph) -> Layout:
    """Give every node of a graph its place. Takes time about linear in nodes and edges."""
    cards = _cards(graph)
    if not cards:
        return Layout((), (), 1.0, 1.0)
    writer = {value: card for card in cards for value in card.writes}
    readers: dict[str, list[Card]] = {}
    for card in cards:
        for value in card.reads:
            readers.setdefault(value, []).append(card)
    layers = _layered(cards, writer)
    _columns(layers, writer)
    spans = {
        value: (card.layer, max(reader.layer for reader in readers[value]))
        for value, card in writer.items()
        if value in readers
    }
    lanes = _lanes(spans)
    left = LANE * (max(lanes.values(), default=-1) + 2)
    for card in cards:
        card.x = left + card.column * COLUMN
    router = _Router(layers, writer, readers, spans, {value: left - LANE * (at + 1.5) for value, at in lanes.items()})
    edges, bottom = router.route()
    width = left + (max(card.column for card in cards) + 1) * COLUMN
    return Layout(tuple(cards), edges, width, bottom)


def _cards(graph: Graph) -> list[Card]:
    """The chains of a graph, in topological order, with a card for each input and output that is used."""
    of_value: dict[str, list[Node]] = {}  # the chain that a value is the end of
    chains: list[list[Node]] = []
    for node in graph.nodes:
        read = tuple(dict.fromkeys(read_by(node)))
        chain = of_value.pop(read[0], None) if len(read) == 1 and len(graph.readers[read[0]]) == 1 else None
        if chain is None:
            chain = []
            chains.append(chain)
        chain.append(node)
        used = [value for value in written_by(node) if value in graph.readers]
        if len(used) == 1:
            of_value[used[0]] = chain
    inputs = [
        Card([Row((), name)], (), (name,), is_end=True) for name in dict.fromkeys(graph.inputs) if name in graph.readers
    ]
    outputs = [Card([Row((), name)], (name,), (), is_end=True) for name in dict.fromkeys(graph.outputs)]
    known = {value for card in inputs for value in card.writes}
    known.update(value for node in graph.nodes for value in written_by(node))
    return [*inputs, *(_card(chain, known) for chain in chains), *(card for card in outputs if card.reads[0] in known)]


def _card(chain: Sequence[Node], known: set[str]) -> Card:
    inside = {value for node in chain for value in written_by(node)}
    reads = dict.fromkeys(value for node in chain for value in read_by(node) if value not in inside and value in known)
    return Card(_rows(chain), tuple(reads), written_by(chain[-1]))


def _rows(chain: Sequence[Node]) -> list[Row]:
    rows: list[Row] = []
    run: list[Node] = []
    for node in [*chain, None]:
        if node is not None and not isinstance(node, Linear | Norm):
            run.append(node)
            continue
        rows += [Row(tuple(run))] if len(run) > _LONGEST_RUN else [Row((dull,)) for dull in run]
        run = []
        if node is not None:
            rows.append(Row((node,)))
    return rows


def _layered(cards: Sequence[Card], writer: Mapping[str, Card]) -> list[list[Card]]:
    """The cards by layer. A chain is listed where it begins, but may read from a card that is listed later."""
    position = {id(card): at for at, card in enumerate(cards)}
    waiting = {id(card): len({id(writer[value]) for value in card.reads}) for card in cards}
    followers: dict[int, dict[int, Card]] = {}
    for card in cards:
        for value in card.reads:
            followers.setdefault(id(writer[value]), {})[id(card)] = card
    ready = [(at, card) for at, card in enumerate(cards) if not waiting[id(card)]]
    layers: list[list[Card]] = []
    while ready:
        _, card = heapq.heappop(ready)
        card.layer = max((writer[value].layer + 1 for value in card.reads), default=0)
        while len(layers) <= card.layer:
            layers.append([])
        layers[card.layer].append(card)
        for follower in followers.get(id(card), {}).values():
            waiting[id(follower)] -= 1
            if not waiting[id(follower)]:
                heapq.heappush(ready, (position[id(follower)], follower))
    return layers


def _columns(layers: Sequence[Sequence[Card]], writer: Mapping[str, Card]) -> None:
    """Each card below the leftmost card that it reads from, or in the next column that is free."""
    for layer in layers:
        taken: set[int] = set()
        for card in layer:
            column = min((writer[value].column for value in card.reads), default=0)
            while column in taken:
                column += 1
            card.column = column
            taken.add(column)


def _lanes(spans: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """A lane for each value that passes a layer; a lane is used again once it is free."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (last layer, lane)
    lanes: dict[str, int] = {}
    count = 0
    for value, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if end <= start + 1:
            continue
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, count)
            count += 1
        lanes[value] = heapq.heappop(free)
        heapq.heappush(busy, (end, lanes[value]))
    return lanes


@dataclass
class _Router:
    """Draws the edges from layer to layer, and finds out how high the gaps between layers have to be."""

    layers: Sequence[Sequence[Card]]
    writer: Mapping[str, Card]
    readers: Mapping[str, Sequence[Card]]
    spans: Mapping[str, tuple[int, int]]
    lane_x: Mapping[str, float]
    _lines: dict[str, list[tuple[tuple[float, float], ...]]] = field(default_factory=dict)
    _arrows: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def route(self) -> tuple[tuple[Edge, ...], float]:
        """All edges, and where the drawing ends; cards get their y on the way."""
        top, before = float(_PAD), 0.0
        alive: list[str] = []
        for at, layer in enumerate(self.layers):
            ports = self._entries(layer)
            if at:
                crossing = self._crossings(at, alive, ports)
                tracks = _tracks(crossing)
                top = before + _GAP + TRACK * (max(tracks.values(), default=-1) + 1)
                self._draw(crossing, tracks, before, top, ports)
            for card in layer:
                card.y = top
            alive = [value for value in alive if self.spans[value][1] > at]
            alive += [value for card in layer for value in card.writes if value in self.spans]
            bottom = top + max(card.height for card in layer)
            self._descend(alive, at, top, bottom)
            before = bottom
        names = self._lines.keys() | self._arrows.keys()
        edges = tuple(
            Edge(name, tuple(self._lines.get(name, ())), tuple(self._arrows.get(name, ()))) for name in sorted(names)
        )
        return edges, before + _PAD

    def _entries(self, layer: Iterable[Card]) -> dict[str, list[float]]:
        """Where each value enters the cards of a layer: straight down if it can, else in the order they come from."""
        entries: dict[str, list[float]] = {}
        for card in layer:
            centre = card.x + WIDTH / 2
            sources = sorted((self._x(value, card.layer - 1), value) for value in card.reads)
            straight = [value for x, value in sources if x == centre][:1]
            lefts = [value for x, value in sources if value not in straight and x < centre]
            rights = [value for x, value in sources if value not in straight and x >= centre]
            if not straight and len(sources) == 1:
                straight, lefts, rights = [sources[0][1]], [], []
            for side, start, values in (("left", card.x, lefts), ("right", centre, rights)):
                step = WIDTH / 2 / (len(values) + 1)
                for place, value in enumerate(values):
                    entries.setdefault(value, []).append(start + step * (place + 1) - (3 if side == "left" else -3))
            for value in straight:
                entries.setdefault(value, []).append(centre)
        return entries

    def _x(self, value: str, gap: int) -> float:
        """Where a value comes from in the gap below a layer: its card, or its lane."""
        card = self.writer[value]
        return self._exit(card, value) if card.layer == gap else self.lane_x[value]

    def _exit(self, card: Card, value: str) -> float:
        used = [name for name in card.writes if name in self.spans]
        return card.x + WIDTH * (used.index(value) + 1) / (len(used) + 1)

    def _crossings(self, at: int, alive: Sequence[str], ports: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """The values in the gap above a layer, with every x that they have to get to; the first is their own."""
        found = {}
        for value in alive:
            targets = list(ports.get(value, ()))
            if self.spans[value][1] > at:
                targets.append(self.lane_x[value])
            found[value] = [self._x(value, at - 1), *targets]
        return found

    def _draw(
        self,
        crossing: Mapping[str, list[float]],
        tracks: Mapping[str, int],
        above: float,
        below: float,
        ports: Mapping[str, list[float]],
    ) -> None:
        for value, (start, *targets) in crossing.items():
            lines = self._lines.setdefault(value, [])
            y = above + _GAP / 2 + TRACK * tracks.get(value, 0)
            for x in targets:
                lines.append(
                    ((start, above), (start, below)) if x == start else ((start, above), (start, y), (x, y), (x, below))
                )
            self._arrows.setdefault(value, []).extend((x, below) for x in ports.get(value, ()))

    def _descend(self, alive: Iterable[str], at: int, top: float, bottom: float) -> None:
        """Lines beside or below the cards of a layer: lanes pass it, outputs of its shorter cards reach its end."""
        for value in alive:
            card = self.writer[value]
            if card.layer < at:
                self._lines.setdefault(value, []).append(((self.lane_x[value], top), (self.lane_x[value], bottom)))
            elif card.y + card.height < bottom:
                x = self._exit(card, value)
                self._lines.setdefault(value, []).append(((x, card.y + card.height), (x, bottom)))


def _tracks(crossing: Mapping[str, list[float]]) -> dict[str, int]:
    """A track for each value that moves sideways; values that do not overlap share one."""
    ends: list[float] = []
    found: dict[str, int] = {}
    for value, xs in sorted(crossing.items(), key=lambda item: (min(item[1]), item[0])):
        if len(set(xs)) < 2:
            continue
        low, high = min(xs), max(xs)
        track = next((at for at, end in enumerate(ends) if end < low), len(ends))
        ends[track : track + 1] = [high]
        found[value] = track
    return found
