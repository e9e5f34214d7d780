"""T1, T2 and T3 on the parity page: a distance, a ratio or two errors a row, each beside what it may be."""

from __future__ import annotations

from collections.abc import Iterator

from bnfold.pages.parity_plots import PAIR_KEY, Axis, Bar, bar, log_axis, overview, pair, scale
from bnfold.pages.parity_rows import (
    LONG,
    MOST_ROWS,
    Rows,
    choose,
    colour,
    folded_with,
    name_cell,
    region,
    remainder,
    row_table,
    worst_at,
)
from bnfold.pages.parity_values import measured, shown
from bnfold.pages.text import escaped, shortened
from bnfold.parity.rows import Judged, corner_of, number_in, text_in

_NEAREST = "Up to 0.5 ulp, the line, no other number of the dtype is closer to the exact value."
_BOUND = (
    "1, the line, is the bound of running error analysis. Its reach falls with fan-in, since it takes the worst case: "
    "a small ratio does not prove single coefficients; T1 does."
)
_WEIGHT = frozenset(
    {"tensor", "role", "linear", "norms", "elements", "not_nearest", "worst_ulp", "worst_index", "worst_channel"}
    | {"bad_channels", "bad_channel_count"}
)


def weights(rows: Rows) -> Iterator[str]:
    """T1: the worst element of each tensor beside half an ulp; those that are wrong first."""
    values = [number_in(row.row, "worst_ulp") for row in rows]
    wrong = any(row.state == "fails" for row in rows)
    axis = log_axis(values, 0.5, 1e-3) if wrong else Axis(0.0, 0.6, 0.5, log=False)
    if len(rows) > MOST_ROWS:
        yield overview(
            _bars(rows, "worst_ulp", "ulp"), axis, "Worst distance from the exact value in ulp, tensor by tensor."
        )
    heads = ("tensor", "#values", "#not the nearest", "#worst ulp", scale(axis, "worst distance, ulp"))
    chosen, left = choose(rows, "worst_ulp")
    yield from row_table(heads, [(row, _weight_cells(row, axis)) for row in chosen], rows, _WEIGHT)
    yield from remainder(left, "tensor", "hold", _NEAREST)


def _weight_cells(row: Judged, axis: Axis) -> list[str]:
    value = number_in(row.row, "worst_ulp")
    distance = measured(value) if value is None or value >= 10 else f"{value:.4f}"
    role, linear = text_in(row.row, "role"), text_in(row.row, "linear")
    about = [f"{role} of {linear}" if role and linear else linear, *folded_with(row), *worst_at(row)]
    return [
        name_cell(row, about), shown(row.row.get("elements")), shown(row.row.get("not_nearest")), distance,
        bar(axis, value, colour(row), f"{distance} ulp"),
    ]  # fmt: skip


_SITE = frozenset(
    {"linear", "norms", "tensor", "fan_in", "elements", "bad", "worst_ratio", "worst_difference", "worst_channel"}
    | {"bad_channels", "kind"}
)


def sites(rows: Rows) -> Iterator[str]:
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
    chosen, left = choose(rows, "worst_ratio", in_order=True)
    yield from row_table(heads, [(row, _site_cells(row, axis)) for row in chosen], rows, _SITE)
    notes = _BOUND
    yield from remainder(left, "site", "hold, or are measured without a bound", notes)


def _site_cells(row: Judged, axis: Axis) -> list[str]:
    told = row.state in ("fails", "holds")
    value = number_in(row.row, "worst_ratio")
    numbers = [shown(row.row.get("bad")), measured(number_in(row.row, "worst_difference")), measured(value)]
    return [
        name_cell(row, [region(row), *folded_with(row), *worst_at(row)], text_in(row.row, "linear")),
        shown(row.row.get("fan_in") or None), shown(row.row.get("elements") or None),
        *(numbers if told else ["–"] * 3),
        bar(axis, value, colour(row), f"{measured(value)} times its bound") if told else "",
    ]  # fmt: skip


_CORNER = frozenset(
    {"output", "elements", "unfolded_error", "folded_error", "unfolded_rms", "folded_rms", "scale", "truth_rms"}
    | {"factor", "unit", "smallest", "rms_limit", "error_limit"}
    | {"kind", "ratio", "rows", "left_out", "scatter_rms", "scatter_error"}
)


def corners(rows: Rows) -> Iterator[str]:
    """T3: both errors against the truth, output by output, and what the folded one may be."""
    chosen, left = choose(rows, "folded_rms", in_order=True)
    lines = [(row, *line) for row in chosen for line in _errors(row) if not _is_brief(row) or line[0] == "rms"]
    axis = log_axis(value for _, _, *line in lines for value in line)
    cells = []
    for row, name, unfolded, folded, limit in lines:
        said = f"unfolded {measured(unfolded)}, folded {measured(folded)}, at most {measured(limit)}"
        ratio = folded / unfolded if folded is not None and unfolded else None
        label = _label(row) if name == "rms" else f'<span class="quiet">{escaped(shortened(row.name, LONG))}</span>'
        numbers = [*map(measured, (unfolded, folded, limit)), "–" if ratio is None else measured(ratio)]
        drawn = pair(axis, unfolded, folded, limit, colour(row), said)
        cells.append((row, [label, f'<span class="kind">{name}</span>', *numbers, drawn]))
    heads = ("output", "error", "#unfolded", "#folded", "#at most", "#times", scale(axis, "distance from the truth"))
    yield from row_table(heads, cells, rows, _CORNER)
    yield PAIR_KEY
    yield from remainder(left, "output", "hold", "")


def _is_brief(row: Judged) -> bool:
    """A kind of hard input takes one line, unless something is wrong with it."""
    return "kind" in row.row and row.state in ("holds", "measured")


def _label(row: Judged) -> str:
    output, kind = text_in(row.row, "output"), text_in(row.row, "kind")
    values = f"{shown(row.row.get('elements'))} values"
    return name_cell(row, [output, values] if kind else [values], kind)


def _errors(row: Judged) -> Iterator[tuple[str, float | None, float | None, float | None]]:
    """Name, unfolded, folded, limit: of the root mean squares and of the largest errors."""
    corner = corner_of(row.row)
    limits: tuple[float | None, float | None] = (
        (None, None) if corner is None else (corner.rms_limit, corner.error_limit)
    )
    if "rms_limit" in row.row:
        limits = number_in(row.row, "rms_limit"), number_in(row.row, "error_limit")
    for name, kind, limit in zip(("rms", "largest"), ("rms", "error"), limits, strict=True):
        finite = limit if limit is not None and limit == limit else None
        yield name, number_in(row.row, f"unfolded_{kind}"), number_in(row.row, f"folded_{kind}"), finite


def _bars(rows: Rows, key: str, unit: str) -> list[Bar]:
    values = [number_in(row.row, key) for row in rows]
    return [
        Bar(value, colour(row), f"{shortened(row.name, LONG)}: {measured(value)} {unit}")
        for row, value in zip(rows, values, strict=True)
    ]
