"""Names out of files that may be hostile, made safe to stand in a page."""

from __future__ import annotations

import html

from bnfold.folding.table import plain


def escaped(text: object) -> str:
    """Text for the body or an attribute of a page: markup escaped, controls and marks of direction spelt out."""
    return html.escape(plain(str(text)), quote=True)


def shortened(text: str, length: int) -> str:
    """The text with its middle left out where it is longer than `length`; both ends of a name tell it apart."""
    text = plain(text)
    if len(text) <= length:
        return text
    tail = (length - 1) * 2 // 3
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"
