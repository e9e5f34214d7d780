"""T5 on the parity page: a row for each place and batch size, and how much a row depends on its batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bnfold.pages.parity_plots import PAIR_KEY, log_axis, pair, scale
from bnfold.pages.parity_rows import colour, row_class
from bnfold.pages.parity_values import chip, measured, shown, table
from bnfold.pages.text import escaped, shortened
from bnfold.parity.rows import Judged, number_in, text_in

_LONG = 200  # characters of a configuration


def is_cell(row: Judged) -> bool:
    """Whether a row is the folded model in one place."""
    return {"configuration", "door"} <= row.row.keys()


def is_invariance(row: Judged) -> bool:
    """Whether a row says how much answers depend on their batch."""
    return {"configuration", "identical", "difference"} <= row.row.keys()


def cells(rows: Sequence[Judged]) -> Iterator[str]:
    """Every cell of the matrix, those that are not present too."""
    keys = ("unfolded_rms", "folded_rms", "rms_limit")
    axis = log_axis(number_in(row.row, key) for row in rows for key in keys)
    lines = []
    for row in rows:
        unfolded, folded, limit = (number_in(row.row, key) for key in keys)
        said = f"unfolded {measured(unfolded)}, folded {measured(folded)}, at most {measured(limit)}"
        run = "folded_rms" in row.row
        numbers = [measured(folded), measured(number_in(row.row, "ratio")), measured(limit)] if run else ["–"] * 3
        drawn = pair(axis, unfolded, folded, limit, colour(row), said) if run else ""
        lines.append(
            (row_class(row), [_place(row), shown(row.row.get("rows") or None), _agreeing(row), *numbers, drawn])
        )
    heads = (
        "where",
        "#samples",
        "#same top-1",
        "#folded, rms",
        "#times",
        "#at most",
        scale(axis, "rms from the truth"),
    )
    yield table(heads, lines)
    yield PAIR_KEY


def invariances(rows: Sequence[Judged]) -> Iterator[str]:
    """How far a row's answers are apart over batch sizes and places in the batch."""
    lines = []
    for row in rows:
        ulp = measured(number_in(row.row, "difference_ulp"))
        numbers = [measured(number_in(row.row, key)) for key in ("difference", "limit")]
        same = "bit for bit" if row.row.get("identical") is True else "–"
        lines.append((row_class(row), [_place(row), shown(row.row.get("sizes")), same, numbers[0], ulp, numbers[1]]))
    yield "<h3>One sample in batches of several sizes</h3>"
    yield table(("where", "batches of", "the same", "#largest difference", "#in ulp", "#at most"), lines)


def _place(row: Judged) -> str:
    """The configuration, its provider, and what is said of it but for the name that stands there already."""
    sentence = row.sentence.removeprefix(f"{row.name}: ")
    said = f'<br><span class="note">{escaped(sentence)}</span>' if sentence else ""
    provider = text_in(row.row, "provider")
    below = f'<br><span class="quiet">{escaped(provider)}</span>' if provider else ""
    sign = "" if row.state == "holds" else f" {chip(text_in(row.row, 'status') or row.state)}"
    return f'<span class="name">{escaped(shortened(row.name, _LONG))}</span>{sign}{below}{said}'


def _agreeing(row: Judged) -> str:
    agreeing, of = number_in(row.row, "agreeing"), number_in(row.row, "rows")
    return "–" if agreeing is None or not of else f"{100 * agreeing / of:.4g}%"
