"""The sections of the parity page, one a tier: its numbers, its plot, its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from bnfold.pages.parity_plots import Axis, Bar, bar, log_axis, overview, pair, scale
from bnfold.pages.parity_values import chip, columns, facts, measured, shown, table
from bnfold.pages.parity_words import words
from bnfold.pages.text import escaped, shortened
from bnfold.parity.rows import Judged, State, corner_of, number_in, text_in, texts_in

Rows: TypeAlias = Sequence[Judged]

MOST_ROWS = 40  # of a table that shows all of its rows
_FEW = 12  # rows of a longer one, besides all those that do not hold
_LONG = 160  # characters of a name
_ORDER: Sequence[State] = ("fails", "cannot tell", "holds", "measured")
_NEAREST = "Up to 0.5 ulp, the line, no other number of the dtype is closer to the exact value."
_BOUND = (
    "1, the line, is the bound of running error analysis. Its reach falls with fan-in, since it takes the worst case: "
    "a small ratio does not prove single coefficients; T1 does."
)
_NAMED = frozenset(
    {"sentence", "problem", "doubt", "note", "cause", "holds", "status"}
)  # told in words, not in columns


def rows_of(rows: Rows) -> Iterator[str]:
    """The plot and the tables of the rows of a tier; rows are taken by the fields that they have."""
    kinds: dict[Callable[[Rows], Iterator[str]], list[Judged]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    for render, found in kinds.items():
        yield from render(found)


def _kind(row: Judged) -> Callable[[Rows], Iterator[str]]:
    if {"tensor", "worst_ulp"} <= row.row.keys():
        return _weights
    if {"worst_ratio", "bad"} <= row.row.keys():
        return _sites
    return _corners if corner_of(row.row) is not None else _others


_WEIGHT = frozenset(
    {"tensor", "role", "linear", "norms", "elements", "not_nearest", "worst_ulp", "worst_index", "worst_channel"}
)


def _weights(rows: Rows) -> Iterator[str]:
    """T1: the worst element of each tensor beside half an ulp; those that are wrong first."""
    values = [number_in(row.row, "worst_ulp") for row in rows]
    wrong = any(row.state == "fails" for row in rows)
    axis = log_axis(values, 0.5, 1e-3) if wrong else Axis(0.0, 0.6, 0.5, log=False)
    if len(rows) > MOST_ROWS:
        yield overview(
            _bars(rows, "worst_ulp", "ulp"), axis, "Worst distance from the exact value in ulp, tensor by tensor."
        )
    heads = ("tensor", "#values", "#not the nearest", "#worst ulp", scale(axis, "worst distance, ulp"))
    chosen, left = _chosen(rows, "worst_ulp")
    yield from _table(heads, [(row, _weight_cells(row, axis)) for row in chosen], rows, _WEIGHT)
    yield from _more(left, "tensor", "hold", _NEAREST)


def _weight_cells(row: Judged, axis: Axis) -> list[str]:
    value = number_in(row.row, "worst_ulp")
    distance = measured(value) if value is None or value >= 10 else f"{value:.4f}"
    role, linear = text_in(row.row, "role"), text_in(row.row, "linear")
    about = [f"{role} of {linear}" if role and linear else linear, *_folded_with(row), *_worst_at(row)]
    return [
        _name(row, about), shown(row.row.get("elements")), shown(row.row.get("not_nearest")), distance,
        bar(axis, value, _colour(row), f"{distance} ulp"),
    ]  # fmt: skip


_SITE = frozenset(
    {"linear", "norms", "tensor", "fan_in", "elements", "bad", "worst_ratio", "worst_difference", "worst_channel"}
)


def _sites(rows: Rows) -> Iterator[str]:
    """T2: the difference of each site beside its bound, in the order of the graph."""
    bounded = [row for row in rows if row.state in ("fails", "holds")]
    axis = log_axis((number_in(row.row, "worst_ratio") for row in bounded), 1.0, 1e-12)
    if len(rows) > MOST_ROWS and bounded:
        title = "Largest difference over its rounding bound, site by site in the order of the graph; below 1 it holds."
        yield overview(_bars(bounded, "worst_ratio", "times its bound"), axis, title)
    heads = (
        "site", "#fan-in", "#outputs", "#beyond the bound", "#worst difference", "#of its bound",
        scale(axis, "worst difference / bound"),
    )  # fmt: skip
    chosen, left = _chosen(rows, "worst_ratio", in_order=True)
    yield from _table(heads, [(row, _site_cells(row, axis)) for row in chosen], rows, _SITE)
    notes = _BOUND
    yield from _more(left, "site", "hold, or are measured without a bound", notes)


def _site_cells(row: Judged, axis: Axis) -> list[str]:
    told = row.state in ("fails", "holds")
    value = number_in(row.row, "worst_ratio")
    numbers = [shown(row.row.get("bad")), measured(number_in(row.row, "worst_difference")), measured(value)]
    return [
        _name(row, [*_folded_with(row), *_worst_at(row)], text_in(row.row, "linear")),
        shown(row.row.get("fan_in") or None), shown(row.row.get("elements") or None),
        *(numbers if told else ["–"] * 3),
        bar(axis, value, _colour(row), f"{measured(value)} times its bound") if told else "",
    ]  # fmt: skip


_CORNER = frozenset(
    {"output", "elements", "unfolded_error", "folded_error", "unfolded_rms", "folded_rms", "scale", "truth_rms"}
    | {"factor", "unit", "smallest"}
)


def _corners(rows: Rows) -> Iterator[str]:
    """T3: both errors against the truth, output by output, and what the folded one may be."""
    chosen, left = _chosen(rows, "folded_rms", in_order=True)
    lines = [(row, *line) for row in chosen for line in _errors(row)]
    axis = log_axis(value for _, _, *line in lines for value in line)
    cells = []
    for row, name, unfolded, folded, limit in lines:
        said = f"unfolded {measured(unfolded)}, folded {measured(folded)}, at most {measured(limit)}"
        ratio = folded / unfolded if folded is not None and unfolded else None
        label = (
            _name(row, [f"{shown(row.row.get('elements'))} values"])
            if name == "rms"
            else f'<span class="quiet">{escaped(shortened(row.name, _LONG))}</span>'
        )
        numbers = [measured(value) for value in (unfolded, folded, limit)]
        drawn = pair(axis, unfolded, folded, limit, _colour(row), said)
        cells.append(
            (
                row,
                [
                    label,
                    f'<span class="kind">{name}</span>',
                    *numbers,
                    "–" if ratio is None else measured(ratio),
                    drawn,
                ],
            )
        )
    heads = ("output", "error", "#unfolded", "#folded", "#at most", "#times", scale(axis, "distance from the truth"))
    yield from _table(heads, cells, rows, _CORNER)
    yield (
        '<p class="note"><span class="key ring"></span> unfolded &ensp; <span class="key"></span> folded &ensp; '
        '<span class="key bound"></span> the most that the folded one may be</p>'
    )
    yield from _more(left, "output", "hold", "")


def _errors(row: Judged) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    """Name, unfolded, folded, limit: of the root mean squares and of the largest errors."""
    corner = corner_of(row.row)
    limits = (None, None) if corner is None else (corner.rms_limit, corner.error_limit)
    for name, kind, limit in zip(("rms", "largest"), ("rms", "error"), limits, strict=True):
        finite = limit if limit is not None and limit == limit else None
        yield name, number_in(row.row, f"unfolded_{kind}"), number_in(row.row, f"folded_{kind}"), finite


def _others(rows: Rows) -> Iterator[str]:
    """Rows of a kind that is not known here: a column for each of their fields."""
    fields = columns([{key: value for key, value in row.row.items() if key not in _NAMED} for row in rows])
    told = any(row.state != "measured" for row in rows)
    heads = [f"#{words(field)}" if _is_numeric(rows, field) else words(field) for field in fields]
    chosen, left = _chosen(rows, "")
    lines = []
    for row in chosen:
        cells = [shown(row.row.get(field), field) for field in fields] or [escaped(row.name)]
        cells[0] += _said(row)
        lines.append((_state(row), [chip(row.state), *cells] if told else cells))
    yield table([*(["verdict"] if told else []), *(heads or ["row"])], lines)
    yield from _more(left, "row", "hold" if told else "", "")


def _is_numeric(rows: Rows, field: str) -> bool:
    values = [row.row.get(field) for row in rows if row.row.get(field) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _chosen(rows: Rows, key: str, *, in_order: bool = False) -> tuple[Rows, int]:
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


def _more(left: int, noun: str, holds: str, note: str) -> Iterator[str]:
    if left:
        which = f" that {holds}" if holds else ""
        plural = "" if left == 1 else "s"
        yield f'<p class="lead">… and {left:,} more {noun}{plural}{which}; parity.json has them all.</p>'
    if note:
        yield f'<p class="note">{escaped(note)}</p>'


def _table(
    heads: Sequence[str], cells: Sequence[tuple[Judged, list[str]]], rows: Rows, known: frozenset[str]
) -> Iterator[str]:
    """A table of rows of a known kind, with the fields that are not known in words below the name, or once for all."""
    extra = columns([{key: value for key, value in row.row.items() if key not in known | _NAMED} for row in rows])
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
        lines.append((_state(row), line))
    yield table(heads, lines)
    if shared:
        yield "<p>In every row:</p>" + facts(
            ((words(field), shown(value, field)) for field, value in shared.items()), "wide"
        )


def _has(row: Mapping[str, Any], field: str) -> bool:
    return row.get(field) not in (None, "", [], {})


def _bars(rows: Rows, key: str, unit: str) -> list[Bar]:
    values = [number_in(row.row, key) for row in rows]
    return [
        Bar(value, _colour(row), f"{shortened(row.name, _LONG)}: {measured(value)} {unit}")
        for row, value in zip(rows, values, strict=True)
    ]


def _name(row: Judged, about: Sequence[str] = (), name: str = "") -> str:
    """The cell of a name, with what the row is about below it. What the columns say already is not said again."""
    quiet = ", ".join(escaped(shortened(part, _LONG)) for part in about if part)
    below = f'<br><span class="quiet">{quiet}</span>' if quiet else ""
    said = _said(row) if not about or row.state != "fails" or _given(row) else ""
    return f'<span class="name">{escaped(shortened(name or row.name, _LONG))}</span>{below}{said}'


def _folded_with(row: Judged) -> Iterator[str]:
    norms = texts_in(row.row, "norms")
    if norms:
        yield f"folded with {', '.join(norms)}"


def _worst_at(row: Judged) -> Iterator[str]:
    """Where the worst element of a row that fails is, and the likely cause."""
    if row.state != "fails":
        return
    index, channel = row.row.get("worst_index"), row.row.get("worst_channel")
    place = [f"at [{shown(index)}]"] if index else []
    place += [] if channel is None else [f"in channel {shown(channel)}"]
    if place:
        yield f"worst {' '.join(place)}"
    if cause := text_in(row.row, "cause"):
        yield f"likely cause: {cause}"


def _given(row: Judged) -> bool:
    """True where the document has a sentence of its own for a row."""
    return any(text_in(row.row, key) for key in ("sentence", "problem", "doubt", "note"))


def _said(row: Judged) -> str:
    return f'<br><span class="note">{escaped(row.sentence)}</span>' if row.sentence else ""


def _state(row: Judged) -> str:
    """The class of the table's row: only what needs to be seen has one."""
    return row.state.replace(" ", "-") if row.state in ("fails", "cannot tell") else ""


def _colour(row: Judged) -> str:
    return row.state.replace(" ", "-")
