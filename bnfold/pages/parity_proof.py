"""What the parity page says around the tiers: norms and reasons, files and hashes, environment, how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bnfold.documents import is_list
from bnfold.pages.parity_rows import MOST_ROWS
from bnfold.pages.parity_values import facts, figure, shown, table
from bnfold.pages.parity_words import words
from bnfold.pages.text import escaped
from bnfold.parity.rows import number_in, text_in

_NUMBERS = ("max_scale", "eps_share", "amplification")


def norms(report: Mapping[str, Any] | None) -> Iterator[str]:
    """Every norm with its outcome and the reason, from the document of fold.json; folded ones up to a limit."""
    rows = _mappings(report, "norms")
    if report is None or not rows:
        return
    yield '<section id="norms"><h2>Norms</h2>'
    counts = report.get("counts")
    if isinstance(counts, Mapping):
        told = ", ".join(f"{shown(value)} {escaped(key)}" for key, value in counts.items())
        yield f"<p>{len(rows):,} norms: {told}.</p>"
    left = [row for row in rows if row.get("outcome") != "folded"]
    folded = [row for row in rows if row.get("outcome") == "folded"]
    chosen = rows if len(rows) <= MOST_ROWS else [*left, *folded[:MOST_ROWS]]
    heads = ("norm", "outcome", "why", "#max |a|", "#share of eps", "#amplification")
    yield table(heads, [("", _norm(row)) for row in chosen], "norms")
    if len(rows) > len(chosen):
        yield f'<p class="lead">… and {len(rows) - len(chosen):,} more that are folded; fold.json has them all.</p>'
    yield (
        '<p class="note">max |a|: the largest scale of the norm. share of eps: eps in variance + eps, at most; near 1 '
        "the channel hardly varied in training. amplification: how many times larger the terms of the shift are than "
        "their difference, at most.</p></section>"
    )


def _norm(row: Mapping[str, Any]) -> list[str]:
    numbers = row.get("numbers")
    values = [number_in(numbers, name) if isinstance(numbers, Mapping) else None for name in _NUMBERS]
    reason = f" <code>{escaped(text_in(row, 'reason'))}</code>" if text_in(row, "reason") else ""
    needs = f'<br><span class="note">{escaped(text_in(row, "needs"))}</span>' if text_in(row, "needs") else ""
    where = text_in(row, "where")
    place = f'<br><span class="quiet">{escaped(where)}</span>' if where else ""
    return [
        f'<span class="name">{escaped(text_in(row, "name"))}</span>{place}',
        _outcome(text_in(row, "outcome")),
        f"{escaped(text_in(row, 'detail'))}{reason}{needs}",
        *("–" if value is None else figure(value) for value in values),
    ]


def _outcome(outcome: str) -> str:
    signs = {"folded": "✓", "reduced": "◐", "kept": "■", "refused": "✕"}
    kind = outcome if outcome in signs else "measured"
    return f'<span class="chip {kind}">{signs.get(outcome, "")} {escaped(outcome)}</span>'


def bundle(manifest: Mapping[str, Any] | None) -> Iterator[str]:
    """What was proven: the source, inputs and outputs, and the hash of every file, from the manifest."""
    if manifest is None:
        return
    yield '<section id="bundle"><h2>Bundle</h2>'
    fields = ("source", "inputs", "outputs", "output_kind", "created", "tool_versions")
    yield facts(((words(field), shown(manifest[field])) for field in fields if manifest.get(field)), "wide")
    files = manifest.get("files")
    if isinstance(files, Mapping) and files:
        lines = [
            ("", [escaped(path), f'<span class="hash">{escaped(digest)}</span>']) for path, digest in files.items()
        ]
        yield table(("file", "sha256"), lines)
    yield "</section>"


def environment(document: Mapping[str, Any]) -> Iterator[str]:
    """Where the suite ran, field by field."""
    found = document.get("environment")
    yield '<section id="environment"><h2>Environment</h2>'
    pairs = found.items() if isinstance(found, Mapping) else ()
    yield (
        facts((words(str(key)), shown(value)) for key, value in pairs)
        or "<p>The document does not say where it ran.</p>"
    )
    yield "</section>"


def again(document: Mapping[str, Any], command: str | None) -> Iterator[str]:
    """The command that gives this document, and what its exit codes mean."""
    name, version = text_in(document, "name"), document.get("version")
    where = f"{name}/{version}" if isinstance(version, int) else name
    told = command or f"bnfold verify {shlex.quote(where or 'BUNDLE')}"
    yield '<section id="again"><h2>Run it again</h2>'
    yield f"<pre>{escaped(told)}</pre>"
    yield (
        "<p>Exit code 0: parity holds; 1: it does not; 2: it cannot be told. With <code>--json</code> it prints the "
        "document that this page was made from, every row of it. This page is not signed: whoever must rely on it runs "
        "the command on the bundle itself.</p></section>"
    )


def others(document: Mapping[str, Any]) -> Iterator[str]:
    """Fields of the document that this page does not know."""
    known = {"schema_version", "name", "version", "holds", "tiers", "environment", "notes"}
    rest = [(words(str(key)), shown(value)) for key, value in document.items() if key not in known]
    if rest:
        yield f'<section id="more"><h2>More</h2>{facts(rest)}</section>'


def _mappings(document: Mapping[str, Any] | None, key: str) -> Sequence[Mapping[str, Any]]:
    value = None if document is None else document.get(key)
    return [item for item in value if isinstance(item, Mapping)] if is_list(value) else []
