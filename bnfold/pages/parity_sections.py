"""The sections of the parity page, one a tier: its numbers, its plot, its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bnfold.pages.parity_errors import corners, sites, weights
from bnfold.pages.parity_mutants import is_mutant, kills
from bnfold.pages.parity_rows import IN_WORDS, Rows, choose, remainder, row_class, said_of
from bnfold.pages.parity_runtimes import cells, invariances, is_cell, is_invariance
from bnfold.pages.parity_values import chip, columns, shown, table
from bnfold.pages.parity_words import words
from bnfold.pages.text import escaped
from bnfold.parity.rows import Judged, corner_of


def rows_of(rows: Rows) -> Iterator[str]:
    """The plot and the tables of the rows of a tier; rows are taken by the fields that they have."""
    kinds: dict[Callable[[Rows], Iterator[str]], list[Judged]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    for render, found in kinds.items():
        yield from render(found)


def _kind(row: Judged) -> Callable[[Rows], Iterator[str]]:
    if is_mutant(row):
        return kills
    if is_cell(row):
        return cells
    if is_invariance(row):
        return invariances
    if {"tensor", "worst_ulp"} <= row.row.keys():
        return weights
    if {"worst_ratio", "bad"} <= row.row.keys():
        return sites
    return corners if corner_of(row.row) is not None else others


def others(rows: Rows) -> Iterator[str]:
    """Rows of a kind that is not known here: a column for each of their fields."""
    fields = columns([{key: value for key, value in row.row.items() if key not in IN_WORDS} for row in rows])
    told = any(row.state != "measured" for row in rows)
    heads = [f"#{words(field)}" if _is_numeric(rows, field) else words(field) for field in fields]
    chosen, left = choose(rows, "")
    lines = []
    for row in chosen:
        line = [shown(row.row.get(field), field) for field in fields] or [escaped(row.name)]
        line[0] += said_of(row)
        lines.append((row_class(row), [chip(row.state), *line] if told else line))
    yield table([*(["verdict"] if told else []), *(heads or ["row"])], lines)
    yield from remainder(left, "row", "hold" if told else "", "")


def _is_numeric(rows: Rows, field: str) -> bool:
    values = [row.row.get(field) for row in rows if row.row.get(field) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
