"""Rows of text under one another, wrapped to the width of a terminal. Cells may come out of a hostile file."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

Paint: TypeAlias = Callable[[str, str], str]  # (text, what it means) -> the text in colour
Row: TypeAlias = tuple[Sequence[str], str]  # the cells, and what the row means

WIDTH = 110  # where nobody says how wide it may be
_NARROW = 72  # below this, what does not fit beside the other columns goes below them
_GAP = "  "
_PROSE = 36  # columns that prose needs beside the others
_LONGEST = 0.28  # of the width, for a column of names
_LEAST = 8
_MEANING = 2  # the column in colour
# Controls, marks that reverse or hide text, and separators: none of them may break a row.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def draw(heads: Sequence[str], rows: Sequence[Row], *, width: int | None = None, paint: Paint | None = None) -> str:
    """A table of three short columns and one of prose; the third is what the row means and takes its colour.

    Where the prose has no room beside the others it stands below them.
    """
    width = max(24, width or WIDTH)
    cells = [[*map(plain, row[:-1]), plain(row[-1], keep="\n")] for row, _ in rows]
    sizes = _sizes(heads, cells, width)
    beside = len([size for size in sizes if size])
    lines = [*_lines(heads[:beside], sizes, None), _GAP.join("-" * size for size in sizes[:beside])]
    for row, (_, meaning) in zip(cells, rows, strict=True):
        lines += _lines(row[:beside], sizes, None if paint is None else functools.partial(_painted, paint, meaning))
        if beside < len(row) and row[-1]:
            lines += [f"    {line}" for line in _wrapped(row[-1], width - 4)]
    return "\n".join(lines)


def paragraph(text: str, *, width: int | None = None) -> str:
    """A text wrapped to a width, its further lines indented."""
    width = max(24, width or WIDTH)
    lines = _wrapped(plain(text), width - 4)
    return "\n".join([lines[0], *(f"    {line}" for line in lines[1:])])


def _painted(paint: Paint, meaning: str, text: str) -> str:
    return paint(text, meaning) if text else text


def _sizes(heads: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide each column is; 0 for prose that goes below the row, or that there is none of."""
    longest = [max([len(head), *(len(row[at]) for row in cells)]) for at, head in enumerate(heads)]
    longest[-1] = max(len(line) for row in cells for line in row[-1].split("\n"))
    names = max(_LEAST, int(width * _LONGEST))
    sizes = [min(longest[0], names), min(longest[1], names), longest[2]]
    rest = width - sum(sizes) - len(_GAP) * len(sizes)
    if not longest[-1]:
        return [*_narrowed(sizes, rest + len(_GAP)), 0]
    if rest >= _PROSE and width >= _NARROW:
        return [*sizes, max(len(heads[-1]), min(rest, longest[-1]))]
    return [*_narrowed(sizes, rest + len(_GAP)), 0]


def _narrowed(sizes: list[int], rest: int) -> list[int]:
    """The sizes with the two columns of names made narrower until there is no lack of room."""
    while rest < 0 and max(sizes[:2]) > _LEAST:
        sizes[0 if sizes[0] >= sizes[1] else 1] -= 1
        rest += 1
    return sizes


def _lines(row: Sequence[str], sizes: Sequence[int], paint: Callable[[str], str] | None) -> list[str]:
    columns = [_wrapped(cell, size) for cell, size in zip(row, sizes, strict=False)]
    lines = []
    for at in range(max(map(len, columns))):
        parts = [column[at] if at < len(column) else "" for column in columns]
        shown = [paint(part) if paint and column == _MEANING else part for column, part in enumerate(parts)]
        padding = [" " * (size - len(part)) for part, size in zip(parts, sizes, strict=False)]
        lines.append(_GAP.join(text + blank for text, blank in zip(shown, padding, strict=True)).rstrip())
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, broken at spaces, else behind a dot, slash or underscore, else anywhere."""
    lines = []
    for part in text.split("\n"):
        rest = part.rstrip()
        while len(rest) > width:
            at = rest.rfind(" ", 1, width + 1)
            if at < width // 3:
                found = max(rest.rfind(mark, 1, width) for mark in "./_:-,")
                at = found + 1 if found > width // 3 else width
            lines.append(rest[:at].rstrip())
            rest = rest[at:].lstrip()
        lines.append(rest)
    return lines


def plain(text: str, keep: str = "") -> str:
    """The text with controls, and marks that hide or reverse text, spelt out, but for those to keep."""
    return _UNPRINTABLE.sub(lambda match: match[0] if match[0] in keep else _spelt(match[0]), text)


def _spelt(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
