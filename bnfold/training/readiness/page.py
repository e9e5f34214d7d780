"""readiness.html: one file without script and without network, for a screen or for paper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import bnfold
from bnfold.pages.parity_plots import Axis, bar, log_axis, scale
from bnfold.pages.parity_style import STYLE
from bnfold.pages.parity_values import facts, figure, table
from bnfold.pages.text import escaped
from bnfold.training.readiness.measuring import NormReadiness, Readiness
from bnfold.training.readiness.outlook import forewarnings
from bnfold.training.readiness.trend_curves import trend_legend, trend_sections
from bnfold.training.readiness.verdicts import AMPLIFICATION, FACTOR, HALF, MEANINGS, ROOM, SHIFT, Word, judge, word_of
from bnfold.training.trends import Trends

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# The classes of the style for a state that is good, bad, or to be looked at.
_CLASSES: Mapping[str, str] = {"ready": "holds", "broken": "fails"}
_SIGNS: Mapping[str, str] = {"ready": "✓", "broken": "✕"}
_MOST_NAMES = 6


def readiness_page(name: str, meta: Mapping[str, Any], found: Readiness, trends: Trends | None = None) -> str:
    """The page as HTML. meta: of the checkpoint; name: its. trends: of the training that ended with these weights."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Fold-readiness of {escaped(name)}</title>",
        f"<style>{STYLE}</style></head><body>",
        '<header><p class="kicker">bnfold fold-readiness: will this network fold and deploy well?</p>',
        f"<h1>{escaped(name)}</h1></header><main>",
        _verdict(found),
        _about(meta, found),
        *_findings(found),
        *_norms(found),
        *_statistics(found),
        *(trend_sections(trends, forewarnings(trends)) if trends is not None else ()),
        *_legend(found),
        f"</main><footer>bnfold {escaped(bnfold.__version__)}. The proof that a folded network computes what the "
        "unfolded one does is that of <code>bnfold fold-and-export</code>; this page looks ahead. No script, no "
        "network: all that it shows is in it.</footer></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _words(found: Readiness) -> Counter[Word]:
    return Counter(word_of(judge(row)) for row in found.norms)


def _verdict(found: Readiness) -> str:
    words, count = _words(found), len(found.norms)
    if found.untraced:
        return _box("cannot-tell", "? It cannot be told what will fold:", found.untraced)
    if not count:
        return _box("holds", "✓ Ready:", "there is no batch norm in this network, and nothing to fold.")
    norms = "the one norm" if count == 1 else f"all {count} norms"
    if words["ready"] == count:
        return _box("holds", "✓ Ready:", f"{norms} will fold, and nothing stands out in the numbers.")
    rest = ", ".join(f"{word}: {words[word]}" for word in MEANINGS if word != "ready" and words[word])
    says = f"{words['ready']} of {count} norm{'' if count == 1 else 's'} ready; {rest}."
    if words["broken"]:
        return _box("fails", "✕ Not ready:", says)
    return _box("cannot-tell", "? Look at it before it is deployed:", says)


def _box(state: str, head: str, says: str) -> str:
    return f'<div class="verdict {state}" role="status"><b>{escaped(head)}</b> {escaped(says)}</div>'


def _about(meta: Mapping[str, Any], found: Readiness) -> str:
    network, metrics = meta.get("network", {}), meta.get("metrics", {})
    accuracy = metrics.get("held_out_accuracy")
    folded = sum(row.outcome == "folded" for row in found.norms)
    pairs = [
        ("network", escaped(network.get("kind", "–"))),
        ("data", escaped(meta.get("data", "–"))),
        ("held-out accuracy", "–" if accuracy is None else f"{accuracy:.2%}"),
        ("norms that will fold", f"{folded} of {len(found.norms)}"),
        ("samples measured", figure(found.images)),
    ]
    return facts(pairs)


def _findings(found: Readiness) -> Iterator[str]:
    """What a person must know, by kind, the worst first."""
    said = [(finding, row) for row in found.norms for finding in judge(row)]
    if not said:
        return
    yield '<section id="findings"><h2>Findings</h2>'
    for word in MEANINGS:
        those = [(finding, row) for finding, row in said if finding.word == word]
        if not those:
            continue
        yield f"<h3>{_chip(word)} {len(those)} norm{'' if len(those) == 1 else 's'}</h3><ul>"
        for finding, row in those[:_MOST_NAMES]:
            yield f"<li><code>{escaped(row.name)}</code>: {escaped(finding.sentence)}</li>"
        if len(those) > _MOST_NAMES:
            yield f"<li>and {len(those) - _MOST_NAMES} more, in the table</li>"
        yield "</ul>"
    yield "</section>"


def _norms(found: Readiness) -> Iterator[str]:
    """A row a norm: what the fold makes of it and the numbers that it makes."""
    if not found.norms:
        return
    heads = (
        "norm", "verdict", "fold", "#channels", "#dead", "#smallest variance", "#max|a|", "#amplification",
        "#largest number",
    )  # fmt: skip
    yield '<section id="norms"><h2>Norms</h2>'
    yield table(heads, ((_state(row), _cells(row)) for row in found.norms), "norms")
    yield "</section>"


def _state(row: NormReadiness) -> str:
    word = word_of(judge(row))
    return "" if word == "ready" else _CLASSES.get(word, "cannot-tell")


def _cells(row: NormReadiness) -> list[str]:
    fold = f'<span class="chip {escaped(row.outcome)}">{escaped(row.outcome)}</span>' if row.outcome else "–"
    return [
        f'{escaped(row.name)} <span class="quiet">{escaped(row.kind)}</span>',
        _chip(word_of(judge(row))),
        fold,
        _number(row.channels),
        "–" if row.channels is None else str(len(row.dead)),
        *(_number(value) for value in (row.smallest_variance, row.max_scale, row.amplification, row.half_largest)),
    ]


def _statistics(found: Readiness) -> Iterator[str]:
    """A row a norm: how far its running statistics are from what it sees, as bars on one scale."""
    rows = [row for row in found.norms if row.mean_shift is not None and row.variance_factor is not None]
    if not rows:
        return
    shift = log_axis((row.mean_shift for row in rows), SHIFT, 1e-4)
    factor = log_axis((row.variance_factor for row in rows), FACTOR, 1.0)
    heads = (
        "norm", scale(shift, 'means off by'), "#worst mean", scale(factor, 'variances off by'), "#worst variance",
    )  # fmt: skip
    yield '<section id="statistics"><h2>Running statistics against what is seen</h2>'
    yield table(
        heads,
        (
            (
                "",
                [
                    escaped(row.name),
                    _bar(shift, row.mean_shift, SHIFT),
                    _number(row.worst_mean_shift),
                    _bar(factor, row.variance_factor, FACTOR),
                    _number(row.worst_variance_factor),
                ],
            )
            for row in rows
        ),
        "statistics",
    )
    yield "</section>"


def _number(value: float | None) -> str:
    return "–" if value is None else escaped(figure(value))


def _bar(axis: Axis, value: float | None, most: float) -> str:
    if value is None:
        return "–"
    return bar(axis, value, "" if value <= most else "cannot-tell", figure(value))


def _chip(word: Word) -> str:
    return f'<span class="chip {_CLASSES.get(word, "cannot-tell")}">{_SIGNS.get(word, "!")} {escaped(word)}</span>'


def _legend(found: Readiness) -> Iterator[str]:
    yield "<section><h2>What it means</h2>"
    yield facts(((word, escaped(meaning)) for word, meaning in MEANINGS.items()), "wide")
    columns = (
        ("max|a|", "The largest scale of the norm, gamma / sqrt(variance + eps)."),
        (
            "amplification",
            f"How many roundoffs a folded output may be off by at worst, against its usual size; {AMPLIFICATION:,.0f} "
            "or less is taken for good. Of norms that stand right behind the linear that takes them in.",
        ),
        (
            "largest number",
            f"Of what flows in and out and of the folded weights, for half precision; up to {HALF / ROOM:g} has room.",
        ),
        (
            "means off by",
            f"Standard deviations between what is seen and running_mean, over all channels; the line is at {SHIFT:g}.",
        ),
        ("variances off by", f"A factor between what is seen and running_var; 1 is none, the line is at {FACTOR:g}."),
    )
    yield "<h3>Columns</h3>" + facts(((name, escaped(says)) for name, says in columns), "wide")
    yield trend_legend()
    seen = f"Seen: on {figure(found.images)} samples that training never saw, by the network in eval mode."
    yield f'<p class="note">{escaped(seen)}</p></section>'
