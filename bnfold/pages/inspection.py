"""The page of `bnfold inspect --html`: the graph before and after, norms by outcome, every reason and number."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping

import bnfold
from bnfold.folding.edits import Edit, SetWeights
from bnfold.folding.facts import Graph, Linear, Norm
from bnfold.folding.plan import Plan
from bnfold.folding.report import OUTCOMES, FoldReport, NormOutcome
from bnfold.pages.drawing import SIGNS, Mark, draw
from bnfold.pages.style import SCRIPT, STYLE
from bnfold.pages.text import escaped, number

_MEANING = {
    "folded": "gone, nothing left of it",
    "reduced": "a smaller remainder stays",
    "kept": "correct as it is, nothing may absorb it",
    "refused": "no fixed, finite affine map",
}


def render(source: str, report: FoldReport, plan: Plan, before: Graph, after: Graph) -> str:
    """The whole page as HTML. report: that of the plan, perhaps with error bounds. after: the graph as folded."""
    script = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    drawings = (
        ("before", "before", draw(before, marks_before(report, plan, before), "b-", f"{source} before folding")),
        ("after", "after", draw(after, marks_after(report, plan, before, after), "a-", f"{source} after folding")),
    )
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escaped(source)}: what folds</title>",
        f"<style>{STYLE}</style></head><body>",
        *_head(source, report),
        '<div class="graphs">',
        *(_drawing(name, title, svg, before if name == "before" else after) for name, title, svg in drawings),
        "</div>",
        *_table(report),
        *_declined(report),
        *_bounds(report),
        f"<footer>bnfold {escaped(bnfold.__version__)}</footer>",
        f"<script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def marks_before(report: FoldReport, plan: Plan, graph: Graph) -> dict[str, Mark]:
    """The outcome of each norm, and what each linear takes in, by id of a node of the source."""
    marks = {}
    row_of = {id: at for at, norm in enumerate(plan.norms) for id in (norm.id, *norm.nodes)}
    for node in graph.norms:
        at = next((row_of[id] for id in (node.id, *node.nodes) if id in row_of), None)
        if at is not None:
            row = report.norms[at]
            marks[node.id] = Mark(row.outcome, f"{row.outcome}: {row.detail}", f"n{at}")
    return marks


def marks_after(report: FoldReport, plan: Plan, before: Graph, after: Graph) -> dict[str, Mark]:
    """The norms that are left, and the linears that took others in, by id of a node of the folded graph."""
    rows: dict[str, int] = {row.name: at for at, row in enumerate(report.norms) if row.outcome != "folded"}
    known = {id for node in before.norms for id in (node.id, *node.nodes)}
    inner = marks_before(report, plan, before)
    taken = _taken(plan.edits)
    marks: dict[str, Mark] = {}
    for node in after.nodes:
        if isinstance(node, Linear) and (names := taken.get(node.id) or taken.get(node.name)):
            marks[node.id] = Mark("took", f"took in {', '.join(names)}")
        elif isinstance(node, Norm) and node.id in inner and inner[node.id].kind in ("kept", "refused"):
            marks[node.id] = inner[node.id]
        elif isinstance(node, Norm) and node.name in rows:
            row = report.norms[rows[node.name]]
            marks[node.id] = Mark(row.outcome, f"{row.outcome}: {row.detail}", f"n{rows[node.name]}")
        elif isinstance(node, Norm) and not known.intersection((node.id, *node.nodes)):
            marks[node.id] = Mark("reduced", "what is left of a norm that was reduced, or moved here")
    return marks


def _taken(edits: tuple[Edit, ...]) -> Mapping[str, list[str]]:
    taken: dict[str, list[str]] = {}
    for edit in edits:
        if isinstance(edit, SetWeights) and edit.norms:
            names = list(dict.fromkeys(norm.name for norm in edit.norms))
            taken[edit.linear.id] = names
            taken.setdefault(edit.linear.name, names)
    return taken


def _head(source: str, report: FoldReport) -> Iterator[str]:
    moves = report.moves if isinstance(report.moves, str) else ", ".join(report.moves)
    keep = f" · kept by name: {escaped(', '.join(report.keep))}" if report.keep else ""
    yield f"<header><h1>{escaped(source)}</h1>"
    yield f"<p>{escaped(report.summary())} · moves: {escaped(moves)}{keep}</p>"
    yield '<p class="legend">'
    for outcome in OUTCOMES:
        count = report.counts[outcome]
        says = f"{SIGNS[outcome]} {outcome} <b>{count}</b>"
        yield f'<button type="button" class="chip {outcome}" data-outcome="{outcome}"'
        yield f' title="{_MEANING[outcome]}">{says}</button>'
    yield '<span class="chip took">linear that took norms in</span>'
    yield '<span class="chip carrier">passes affine maps</span><span class="chip opaque">nothing known of it</span></p>'
    yield '<p class="tools"><input type="search" id="q" placeholder="search a name or a kind" aria-label="search">'
    yield '<span id="hits" role="status"></span>'
    yield '<button type="button" id="next">next that is not folded</button></p></header>'


def _drawing(name: str, title: str, svg: str, graph: Graph) -> str:
    norms = sum(node.is_norm for node in graph.norms)
    count = f"{len(graph.nodes)} nodes, {norms} norm{'' if norms == 1 else 's'}"
    head = f"<h2>{title} <small>{count}</small></h2>"
    return f'<section class="graph">{head}<div class="pane" id="{name}">{svg}</div></section>'


_HEADS = ("norm", "where", "outcome", "why", "what it would take", "max|a|", "share of eps", "amplification")


def _table(report: FoldReport) -> Iterator[str]:
    if not report.norms:
        yield '<p class="note">No norm was found.</p>'
        return
    yield '<section><h2>norms</h2><table id="norms"><thead><tr>'
    yield "".join(f"<th>{escaped(head)}</th>" for head in _HEADS) + "</tr></thead><tbody>"
    for at, row in enumerate(report.norms):
        yield _row(at, row)
    yield "</tbody></table>"
    yield (
        '<p class="note">max|a|: the largest scale of the norm. share of eps: eps in variance + eps, at most; near 1 '
        "the channel hardly varied in training. amplification: how many times larger the terms of the shift are than "
        "their difference, at most.</p></section>"
    )


def _row(at: int, row: NormOutcome) -> str:
    place = f"into {row.target}" if row.target else row.where
    why = (
        escaped(row.detail) if row.outcome == "folded" else f"{escaped(row.detail)} <code>{escaped(row.reason)}</code>"
    )
    numbers = row.numbers
    values = (None,) * 3 if numbers is None else (numbers.max_scale, numbers.eps_share, numbers.amplification)
    cells = [
        f'<td><a href="#b-n{at}">{escaped(row.name)}</a></td>',
        f"<td>{escaped(place)}</td>",
        f'<td><span class="chip {row.outcome}">{SIGNS[row.outcome]} {row.outcome}</span></td>',
        f"<td>{why}</td><td>{escaped(row.needs)}</td>",
        *(f'<td class="num">{number(value)}</td>' for value in values),
    ]
    name = escaped(f"{row.kind} {row.name} {row.target} {row.reason}".lower())
    return f'<tr id="n{at}" class="{row.outcome}" data-outcome="{row.outcome}" data-name="{name}">{"".join(cells)}</tr>'


def _declined(report: FoldReport) -> Iterator[str]:
    if report.declined:
        yield "<section><h2>declined</h2><p>Exact moves that were not made because of what they cost "
        yield "(<code>--moves all</code> makes them):</p><ul>"
        yield from (f"<li>{escaped(note)}</li>" for note in report.declined_notes())
        yield "</ul></section>"


def _bounds(report: FoldReport) -> Iterator[str]:
    if report.bounds:
        x = f"{report.bounds[0].x:g}"
        yield "<section><h2>rounding</h2>"
        yield f"<p>How far rounding once moves the outputs of a linear, for inputs with |x| ≤ {x}:</p>"
        yield "<table><thead><tr><th>linear</th><th>dtype</th><th>took in</th><th>at most</th></tr></thead><tbody>"
        for bound in report.bounds:
            cells = (bound.linear, bound.dtype, ", ".join(bound.norms), number(bound.largest))
            yield "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in cells) + "</tr>"
        yield "</tbody></table></section>"
