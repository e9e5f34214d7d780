"""A graph as SVG: cards of nodes, norms coloured by outcome, lines from writers to readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bnfold.folding.facts import Carrier, Graph, Linear, Node, Norm
from bnfold.pages.layout import ROW, WIDTH, Card, Edge, Row, arrange
from bnfold.pages.text import escaped, shortened

MOST_NODES = 8000  # of a graph that is drawn; a browser is slow on more, and nobody reads it

SIGNS = {"folded": "✓", "reduced": "◐", "kept": "■", "refused": "✕"}
_CHARACTERS = 36  # of a row, in the font of the page


@dataclass(frozen=True)
class Mark:
    """What is special about a node: an outcome or "took", and a sentence. link: of a row of the page's table."""

    kind: str
    says: str
    link: str = ""


def draw(graph: Graph, marks: Mapping[str, Mark], prefix: str, title: str) -> str:
    """The SVG element of a graph. marks: by id of a node; prefix: of the ids in the page, for links."""
    if len(graph.nodes) > MOST_NODES:
        return f'<p class="note">{len(graph.nodes)} nodes are too many to draw (at most {MOST_NODES}).</p>'
    layout = arrange(graph)
    placed: set[str] = set()  # a norm that the source spells out in several nodes is linked to at the first
    width, height = round(layout.width), round(layout.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        f' role="img" aria-label="{escaped(title)}">',
        *(_edge(edge) for edge in layout.edges),
        *(part for card in layout.cards for part in _card(card, marks, prefix, placed)),
        "</svg>",
    ]
    return "\n".join(parts)


def _edge(edge: Edge) -> str:
    path = "".join(
        f"M{_n(line[0][0])} {_n(line[0][1])}" + "".join(f"L{_n(x)} {_n(y)}" for x, y in line[1:]) for line in edge.lines
    )
    heads = "".join(f"M{_n(x - 3)} {_n(y - 6)}L{_n(x)} {_n(y)}L{_n(x + 3)} {_n(y - 6)}z" for x, y in edge.arrows)
    return f'<g class="e"><title>{escaped(edge.value)}</title><path d="{path}"/><path class="h" d="{heads}"/></g>'


def _card(card: Card, marks: Mapping[str, Mark], prefix: str, placed: set[str]) -> Iterator[str]:
    kind = "c end" if card.is_end else "c"
    yield f'<rect class="{kind}" x="{_n(card.x)}" y="{_n(card.y)}" width="{WIDTH}" height="{_n(card.height)}" rx="5"/>'
    for at, row in enumerate(card.rows):
        mark = next((marks[node.id] for node in row.nodes if node.id in marks), None)
        place = ""
        if mark and mark.link and mark.link not in placed:
            placed.add(mark.link)
            place = f' id="{prefix}{escaped(mark.link)}"'
        yield _row(row, card.x, card.row_top(at), mark, place)


def _row(row: Row, x: float, y: float, mark: Mark | None, place: str) -> str:
    names = " ".join([row.name, *(f"{node.kind} {node.name}" for node in row.nodes)])
    kind = _kind(row)
    classes = f"r {kind}" + (f" {mark.kind}" if mark else "")
    link = f' data-row="{escaped(mark.link)}"' if mark and mark.link else ""
    shown = f"{SIGNS.get(mark.kind, '')} " if mark and mark.kind in SIGNS else ""
    body = (
        f'<rect x="{_n(x + 4)}" y="{_n(y + 1)}" width="{WIDTH - 8}" height="{ROW - 2}" rx="3"/>'
        f'<text x="{_n(x + 10)}" y="{_n(y + 13.5)}">{escaped(shown)}{_label(row, _CHARACTERS - len(shown))}</text>'
    )
    if mark and mark.kind == "took":
        body += f'<rect class="bar" x="{_n(x + 4)}" y="{_n(y + 1)}" width="3" height="{ROW - 2}"/>'
    attributes = f'class="{classes}" data-name="{escaped(names.lower())}"{link}{place}'
    return f"<g {attributes}><title>{_title(row, mark)}</title>{body}</g>"


def _kind(row: Row) -> str:
    if not row.nodes:
        return "io"
    match row.nodes[0]:
        case Linear():
            return "linear"
        case Norm() as norm:
            return "norm" if norm.is_norm else "step"
        case Carrier():
            return "carrier"
        case _:
            return "opaque"


def _label(row: Row, room: int) -> str:
    """What a row says, in at most `room` characters: a kind, and a name where there is room."""
    if len(row.nodes) > 1:
        counts = Counter(node.kind for node in row.nodes)
        listed = ", ".join(kind if count == 1 else f"{kind} ×{count}" for kind, count in counts.items())
        return escaped(shortened(f"… {len(row.nodes)} nodes: {listed}", room))
    if not row.nodes:
        return escaped(shortened(row.name, room))
    node = row.nodes[0]
    kind = shortened(node.kind, room)
    left = room - len(kind) - 1
    name = (
        f' <tspan class="n">{escaped(shortened(node.name, left))}</tspan>'
        if left > 4 and node.name != node.kind
        else ""
    )
    return f"<tspan>{escaped(kind)}</tspan>{name}"


def _title(row: Row, mark: Mark | None) -> str:
    """What the browser shows when the pointer rests on a row."""
    lines = [row.name] if row.name else [_described(node) for node in row.nodes]
    return "\n".join(escaped(line) for line in [*lines, *([mark.says] if mark else [])])


def _described(node: Node) -> str:
    match node:
        case Linear():
            window = node.window
            kernel = "" if window is None else f", kernel {_by(window.kernel)}, stride {_by(window.stride)}"
            groups = f", groups {node.groups}" if node.groups != 1 else ""
            return f"{node.label}: {node.in_channels} to {node.channels} channels{kernel}{groups}, {node.weight.dtype}"
        case Norm():
            return f"{node.label} over {'all axes' if node.axis is None else f'axis {node.axis}'}"
        case _:
            return node.label


def _by(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes))


def _n(value: float) -> str:
    """A coordinate, as short as it can be."""
    return f"{value:.1f}".removesuffix(".0")
