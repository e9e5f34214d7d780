"""Values of a document that may be of any kind, as cells, lists and tables of the page."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bnfold.documents import is_list
from bnfold.pages.parity_words import MEASURED, SHARES, SIGNS, words
from bnfold.pages.text import escaped

_DEEP = 4  # objects in objects that are opened; what lies deeper is named by its size
_SHORT = 16  # characters of a value that is not broken
_UNBROKEN = ' class="n"'
_MOST = 200  # items of one list in one cell


def shown(value: Any, field: str = "", deep: int = 0) -> str:
    """A value as escaped text: numbers in three digits, lists with commas, objects as `key: value`."""
    if value is None:
        return "not finite" if field in MEASURED else "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(value, field)
    if isinstance(value, str):
        return escaped(value) or "–"
    if deep >= _DEEP:
        return escaped(f"({type(value).__name__})")
    if isinstance(value, Mapping):
        parts = [f"{escaped(words(str(key)))}: {shown(item, str(key), deep + 1)}" for key, item in value.items()]
    elif is_list(value):
        parts = [shown(item, field, deep + 1) for item in value]
    else:
        return escaped(value)
    more = f", and {len(parts) - _MOST:,} more" if len(parts) > _MOST else ""
    return ", ".join(parts[:_MOST]) + more or "–"


def figure(value: float, field: str = "") -> str:
    """A number: whole ones with separators, shares in percent, others in three digits."""
    if isinstance(value, int):
        if abs(value) < 10**15:
            return f"{value:,}"
        value = float(value) if abs(value) <= sys.float_info.max else math.inf
    if not math.isfinite(value):
        return "not finite"
    if field in SHARES and 0 <= value <= 1:
        return f"{100 * value:.4g}%"
    if value.is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:,.0f}"
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(power)}"


def measured(value: float | None) -> str:
    """A number that was measured; one that is not finite, null in a document, says so."""
    return "not finite" if value is None else figure(value)


def chip(state: object) -> str:
    """A state as a coloured sign with its word; a word that is no state stays plain."""
    word = state if isinstance(state, str) else "cannot tell"
    kind = word.replace(" ", "-") if word in SIGNS else "measured"
    sign = f"{SIGNS[word]} " if word in SIGNS else ""
    return f'<span class="chip {kind}">{sign}{escaped(word)}</span>'


def table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], kind: str = "") -> str:
    """A table of cells that are HTML already. rows: the class of each, and its cells. A cell knows its column's name,

    so that a narrow screen can show each row as a card.
    """
    labels = [_text(head) for head in heads]
    head = "".join(f'<th scope="col"{_numeric(head)}>{_body(head)}</th>' for head in heads)
    body = "".join(
        f'<tr class="{escaped(state)}">'
        + "".join(
            f'<td{_numeric(head)} data-label="{label}">{cell}</td>'
            for head, label, cell in zip(heads, labels, cells, strict=True)
        )
        + "</tr>\n"
        for state, cells in rows
    )
    return f'<table class="{escaped(kind)}"><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>'


def facts(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    """Names and values, side by side as they fit. values: HTML. kind: "wide" for one a line."""
    body = "".join(
        f"<div><dt>{escaped(name)}</dt><dd{_UNBROKEN if len(value) < _SHORT else ''}>{value}</dd></div>"
        for name, value in pairs
    )
    return f'<dl class="facts {kind}">{body}</dl>' if body else ""


def columns(rows: Sequence[Mapping[str, Any]], most: int = 12) -> list[str]:
    """The fields of rows of an unknown kind, in the order in which they come, but for those that are empty."""
    fields: dict[str, None] = {}
    for row in rows:
        fields.update(dict.fromkeys(str(key) for key, value in row.items() if value not in (None, "", [], {})))
    return list(fields)[:most]


def _numeric(head: str) -> str:
    """A head that starts with # is that of numbers; one that starts with < is HTML, of a column of bars."""
    return ' class="num"' if head.startswith("#") else ' class="bars"' if head.startswith("<") else ""


def _body(head: str) -> str:
    return head if head.startswith("<") else escaped(head.removeprefix("#"))


def _text(head: str) -> str:
    return "" if head.startswith("<") else escaped(head.removeprefix("#"))
