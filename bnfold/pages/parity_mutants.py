"""T6 on the parity page: the kill table, and every wrong fold that passes T1 and T2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bnfold.pages.parity_rows import LONG, said_of
from bnfold.pages.parity_values import table
from bnfold.pages.text import escaped, shortened
from bnfold.parity.rows import Judged, text_in, texts_in


def is_mutant(row: Judged) -> bool:
    """Whether a row is a wrong fold and what caught it."""
    return {"mutant", "killed_by"} <= row.row.keys()


def kills(rows: Sequence[Judged]) -> Iterator[str]:
    """How many of each kind each tier caught, then those that survive, by name."""
    survivors = [row for row in rows if row.state == "fails"]
    if survivors:
        yield f"<h3>Wrong folds that pass: {len(survivors):,}</h3>"
        names = (
            (f'<span class="name">{escaped(shortened(row.name, LONG))}</span>{said_of(row)}', row) for row in survivors
        )
        yield table(("wrong fold", "caught by"), [("fails", [name, _by(row)]) for name, row in names])
    tiers = sorted({tier for row in rows for tier in _caught(row)})
    groups: dict[str, list[Judged]] = {}
    for row in rows:
        kind = text_in(row.row, "kind").replace("_", " ").lower()
        groups.setdefault(kind or text_in(row.row, "mutant") or row.name, []).append(row)
    lines = [("", _counts(escaped(shortened(name, LONG)), tiers, some)) for name, some in groups.items()]
    if len(groups) > 1:
        lines.append(("", _counts("<b>all</b>", tiers, rows)))
    yield table(("wrong fold, caught of how many", *(f"#{tier}" for tier in tiers)), lines)


def _counts(name: str, tiers: Sequence[str], rows: Sequence[Judged]) -> list[str]:
    found = [_caught(row) for row in rows]
    cells = []
    for tier in tiers:
        seen = [caught[tier] for caught in found if tier in caught]
        cells.append(f"{sum(seen):,} of {len(seen):,}" if seen else "–")
    return [name, *cells]


def _caught(row: Judged) -> dict[str, bool]:
    """Whether each tier that was run caught it."""
    by, run = set(texts_in(row.row, "killed_by")), row.row.get("tiers")
    names = {str(name) for name in run} if isinstance(run, Mapping) else set()
    return {name: name in by for name in names | by}


def _by(row: Judged) -> str:
    return escaped(", ".join(texts_in(row.row, "killed_by"))) or "none"
