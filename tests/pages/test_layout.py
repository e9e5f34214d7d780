"""Where the parts of a drawing stand: everything once, nothing on top of another, every line from a writer down."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from bnfold.folding.expressions import ONE, ZERO
from bnfold.folding.facts import Graph, Node, Norm, Opaque
from bnfold.pages.layout import WIDTH, Card, Layout, arrange


def graph_of(nodes: list[tuple[tuple[str, ...], int]], outputs: int = 1) -> Graph:
    """Opaque nodes n0, n1, ... by what they read and how many values they write; 'x' is the input."""
    made: list[Node] = [
        Opaque(f"n{at}", f"n{at}", "Op", reads, tuple(f"n{at}:{k}" for k in range(count)))
        for at, (reads, count) in enumerate(nodes)
    ]
    values = [value for node in made for value in node.outputs]  # type: ignore[union-attr]
    return Graph(tuple(made), ("x",), tuple(values[-outputs:]), {})


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    values, nodes = ["x"], []
    for at in range(draw(st.integers(0, 25))):
        reads = draw(st.lists(st.sampled_from(values[-6:]), max_size=3).map(tuple))
        count = draw(st.integers(1, 2))
        nodes.append((reads, count))
        values += [f"n{at}:{k}" for k in range(count)]
    return graph_of(nodes, draw(st.integers(1, 3)))


def boxes(layout: Layout) -> list[tuple[Card, float, float, float, float]]:
    return [(card, card.x, card.y, card.x + WIDTH, card.y + card.height) for card in layout.cards]


@given(graphs())
def test_every_node_is_drawn_once(graph: Graph) -> None:
    drawn = [node.id for card in arrange(graph).cards for row in card.rows for node in row.nodes]
    assert sorted(drawn) == sorted(node.id for node in graph.nodes)


@given(graphs())
def test_no_two_cards_overlap_and_all_are_inside(graph: Graph) -> None:
    layout = arrange(graph)
    for (_, left, top, right, bottom), (_, left2, top2, right2, bottom2) in itertools.combinations(boxes(layout), 2):
        assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
    for _, left, top, right, bottom in boxes(layout):
        assert left >= 0
        assert top >= 0
        assert right <= layout.width
        assert bottom <= layout.height


@given(graphs())
def test_every_reader_has_an_arrow_and_no_line_goes_up(graph: Graph) -> None:
    layout = arrange(graph)
    arrows = {edge.value: set(edge.arrows) for edge in layout.edges}
    for card in layout.cards:
        for value in card.reads:
            assert any(card.x <= x <= card.x + WIDTH and y == card.y for x, y in arrows[value])
    for edge in layout.edges:
        for line in edge.lines:
            assert all(first[1] <= second[1] for first, second in itertools.pairwise(line))


@given(graphs())
def test_every_line_hangs_together_from_its_writer_to_every_reader(graph: Graph) -> None:
    """Walking down the lines of a value from the card that writes it reaches every arrow."""
    layout = arrange(graph)
    writer = {value: card for card in layout.cards for value in card.writes}
    for edge in layout.edges:
        card = writer[edge.value]
        starts = {line[0] for line in edge.lines if line[0][1] == card.y + card.height}
        seen = {(x, y) for x, y in starts if card.x < x < card.x + WIDTH}
        assert len(seen) == 1
        for line in sorted(edge.lines, key=lambda line: line[0][1]):
            if line[0] in seen:
                seen.add(line[-1])
        assert set(edge.arrows) <= seen


@given(graphs())
def test_no_line_runs_through_a_card(graph: Graph) -> None:
    layout = arrange(graph)
    for edge in layout.edges:
        for line in edge.lines:
            for (x, y), (x2, y2) in itertools.pairwise(line):
                for _, left, top, right, bottom in boxes(layout):
                    crosses = min(x, x2) < right and max(x, x2) > left and min(y, y2) < bottom and max(y, y2) > top
                    assert not crosses


def test_a_chain_is_one_card_and_dull_nodes_in_a_row_are_one_line() -> None:
    nodes = [(("x",), 1), *(((f"n{at}:0",), 1) for at in range(6))]
    layout = arrange(graph_of(nodes))
    chain = [card for card in layout.cards if not card.is_end]
    assert [[len(row.nodes) for row in card.rows] for card in chain] == [[7]]


def test_norms_are_never_collapsed() -> None:
    norms = tuple(
        Norm(f"n{at}", f"n{at}", "BatchNorm", "x" if at == 0 else f"v{at - 1}", f"v{at}", ONE, ZERO, 1, (f"n{at}",))
        for at in range(9)
    )
    layout = arrange(Graph(norms, ("x",), ("v8",), {}))
    assert [len(card.rows) for card in layout.cards] == [1, 9, 1]


def test_a_graph_of_ten_thousand_nodes_is_laid_out_without_recursion() -> None:
    nodes: list[tuple[tuple[str, ...], int]] = [(("x",), 1)]
    for at in range(5000):
        nodes.append(((f"n{2 * at}:0",), 1))
        nodes.append(((f"n{2 * at}:0", f"n{2 * at + 1}:0"), 1))
    layout = arrange(graph_of(nodes))
    assert sum(len(row.nodes) for card in layout.cards for row in card.rows) == 10_001


def test_an_empty_graph_is_an_empty_drawing() -> None:
    assert arrange(Graph((), ("x",), (), {})).cards == ()
