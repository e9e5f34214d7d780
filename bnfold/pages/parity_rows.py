"""Rows of a tier on the parity page: which of them are shown, and the cells that all have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from bnfold.documents import is_list
from bnfold.pages.parity_values import columns, facts, shown, table
from bnfold.pages.parity_words import words
from bnfold.pages.text import escaped, shortened
from bnfold.parity.rows import Judged, State, number_in, text_in, texts_in

Rows: TypeAlias = Sequence[Judged]

MOST_ROWS = 40  # of a table that shows all of its rows
_FEW = 12  # rows of a longer one, besides all those that do not hold
_CHANNELS = 8  # that are named
LONG = 160  # characters of a name
_ORDER: Sequence[State] = ("fails", "cannot tell", "holds", "measured")
IN_WORDS = frozenset(
    {"sentence", "problem", "doubt", "note", "cause", "holds", "status"}
)  # told in words, not in columns


def choose(rows: Rows, key: str, *, in_order: bool = False) -> tuple[Rows, int]:
    """The rows to show, and how many more there are: all that do not hold, and of many others the largest few.

    in_order: keep the order of the graph where all are shown.
    """
    if in_order and len(rows) <= MOST_ROWS:
        return rows, 0
    worst = sorted(rows, key=lambda row: _ORDER.index(row.state))
    bad = [row for row in worst if row.state in ("fails", "cannot tell")]
    rest = worst[len(bad) :]
    if len(rows) <= MOST_ROWS:
        return worst, 0
    if key:
        rest.sort(key=lambda row: (_ORDER.index(row.state), -(number_in(row.row, key) or 0.0)))
    return [*bad, *rest[:_FEW]], max(len(rest) - _FEW, 0)


def remainder(left: int, noun: str, holds: str, note: str) -> Iterator[str]:
    """How many rows are not shown, and a note."""
    if left:
        which = f" that {holds}" if holds else ""
        plural = "" if left == 1 else "s"
        yield f'<p class="lead">… and {left:,} more {noun}{plural}{which}; parity.json has them all.</p>'
    if note:
        yield f'<p class="note">{escaped(note)}</p>'


def row_table(
    heads: Sequence[str], cells: Sequence[tuple[Judged, list[str]]], rows: Rows, known: frozenset[str]
) -> Iterator[str]:
    """A table of rows of a known kind, with the fields that are not known in words below the name, or once for all."""
    extra = columns([{key: value for key, value in row.row.items() if key not in known | IN_WORDS} for row in rows])
    shared = {
        field: rows[0].row.get(field)
        for field in extra
        if len(rows) > 1 and all(row.row.get(field) == rows[0].row.get(field) for row in rows)
    }
    own = [field for field in extra if field not in shared]
    done: set[int] = set()
    lines = []
    for row, line in cells:
        told = [f"{escaped(words(field))}: {shown(row.row[field], field)}" for field in own if _has(row.row, field)]
        if told and id(row) not in done:
            line = [f'{line[0]}<br><span class="note">{"; ".join(told)}</span>', *line[1:]]
        done.add(id(row))
        lines.append((row_class(row), line))
    yield table(heads, lines)
    if shared:
        yield "<p>In every row:</p>" + facts(
            ((words(field), shown(value, field)) for field, value in shared.items()), "wide"
        )


def _has(row: Mapping[str, Any], field: str) -> bool:
    return row.get(field) not in (None, "", [], {})


def name_cell(row: Judged, about: Sequence[str] = (), name: str = "") -> str:
    """The cell of a name, with what the row is about below it. What the columns say already is not said again."""
    quiet = ", ".join(escaped(shortened(part, LONG)) for part in about if part)
    below = f'<br><span class="quiet">{quiet}</span>' if quiet else ""
    said = said_of(row) if not about or row.state != "fails" or _given(row) else ""
    return f'<span class="name">{escaped(shortened(name or row.name, LONG))}</span>{below}{said}'


def folded_with(row: Judged) -> Iterator[str]:
    """The norms that went into a tensor or a site."""
    norms = texts_in(row.row, "norms")
    if norms:
        yield f"folded with {', '.join(norms)}"


def region(row: Judged) -> str:
    """What a place of T2 is, where it is not a linear with the norms behind it."""
    kind = text_in(row.row, "kind")
    return "" if kind == "site" else kind


def worst_at(row: Judged) -> Iterator[str]:
    """Where the worst element of a row that fails is, and the likely cause."""
    if row.state != "fails":
        return
    index, channel, wrong = (row.row.get(key) for key in ("worst_index", "worst_channel", "bad_channels"))
    if is_list(wrong) and wrong:
        count = number_in(row.row, "bad_channel_count") or len(wrong)
        more = f" and {count - _CHANNELS:,.0f} more" if count > _CHANNELS else ""
        yield f"wrong in channel{'s' if count > 1 else ''} {shown(wrong[:_CHANNELS])}{more}"
    place = [f"at [{shown(index)}]"] if index else []
    place += [] if channel is None or wrong else [f"in channel {shown(channel)}"]
    if place:
        yield f"worst {' '.join(place)}"
    if cause := text_in(row.row, "cause"):
        yield f"likely cause: {cause}"


def _given(row: Judged) -> bool:
    """True where the document has a sentence of its own for a row."""
    return any(text_in(row.row, key) for key in ("sentence", "problem", "doubt", "note"))


def said_of(row: Judged) -> str:
    """The sentence of a row, to stand below its name."""
    return f'<br><span class="note">{escaped(row.sentence)}</span>' if row.sentence else ""


def row_class(row: Judged) -> str:
    """The class of the table's row: only what needs to be seen has one."""
    return row.state.replace(" ", "-") if row.state in ("fails", "cannot tell") else ""


def colour(row: Judged) -> str:
    """The class of a bar or a point."""
    return row.state.replace(" ", "-")
