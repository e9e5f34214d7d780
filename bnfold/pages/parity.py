"""The page of a parity report: one file to send to a reviewer, made from the JSON document of `bnfold verify`.

It needs no network and no script, and is read on a screen, a narrow one too, or on paper. The document may come out of
a bundle that somebody else wrote: every name is escaped, and a tier or a field that is not known is shown as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import bnfold
from bnfold.documents import is_list
from bnfold.pages.parity_decisions import TOLD, margins
from bnfold.pages.parity_proof import again, bundle, environment, norms, others
from bnfold.pages.parity_sections import rows_of
from bnfold.pages.parity_style import STYLE
from bnfold.pages.parity_values import chip, facts, figure, shown, table
from bnfold.pages.parity_words import ABOUT, SIGNS, UNKNOWN, words
from bnfold.pages.text import escaped
from bnfold.parity.report import PROOF
from bnfold.parity.rows import Judged, judged, number_in, text_in, texts_in

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_MOST_FINDINGS = 6  # of a tier, above the tables; the rest stand with the tier
_VERDICTS = {
    "holds": "Parity holds",
    "fails": "Parity does not hold",
    "cannot tell": "It cannot be told whether parity holds",
}
_STATES = ("holds", "fails", "cannot tell")


@dataclass(frozen=True)
class _Tier:
    """A tier of the document, whatever it was made of."""

    at: int
    tier: str
    title: str
    status: str
    headline: str
    summary: Mapping[str, Any]
    findings: Sequence[str]
    assumptions: Sequence[str]
    rows: Sequence[Judged]
    seconds: float | None = None

    @property
    def label(self) -> str:
        return f"{self.tier} {self.title}".strip()


def parity_page(
    document: Mapping[str, Any],
    *,
    fold_report: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> str:
    """The page as HTML. document: of `ParityReport.to_dict()`, or parity.json.

    fold_report: the document of fold.json, for the norms and their reasons. manifest: that of manifest.json, for the
    source and the hashes of the files. command: what gave the document, where it was more than `bnfold verify`.
    """
    tiers = _tiers(document)
    version = document.get("version")
    name = text_in(document, "name") or "a bundle without a name"
    label = f"{name}/{version}" if isinstance(version, int) else name
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Parity of {escaped(label)}</title>",
        f"<style>{STYLE}</style></head><body>",
        '<header><p class="kicker">bnfold parity report: folded network against unfolded</p>',
        f"<h1>{escaped(label)}</h1></header><main>",
        *_verdict(document, tiers),
        *_overview(document, tiers),
        *_findings(tiers),
        *(part for tier in tiers for part in _section(tier)),
        *norms(fold_report),
        *bundle(manifest),
        *environment(document),
        *others(document),
        *again(document, command),
        f"</main><footer>bnfold {escaped(bnfold.__version__)}, document of schema version ",
        f"{shown(document.get('schema_version'))}. No script, no network: all that this page shows is in it.</footer>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _tiers(document: Mapping[str, Any]) -> list[_Tier]:
    listed = document.get("tiers")
    found = [tier for tier in listed if isinstance(tier, Mapping)] if is_list(listed) else []
    return [_tier(at, tier) for at, tier in enumerate(found)]


def _tier(at: int, tier: Mapping[str, Any]) -> _Tier:
    status, summary = text_in(tier, "status"), tier.get("summary")
    return _Tier(
        at,
        text_in(tier, "tier"),
        text_in(tier, "title"),
        status if status in _STATES else "cannot tell",
        text_in(tier, "headline"),
        summary if isinstance(summary, Mapping) else {},
        texts_in(tier, "findings"),
        texts_in(tier, "assumptions"),
        judged(tier.get("details")),
        number_in(tier, "seconds"),
    )


def _verdict(document: Mapping[str, Any], tiers: Sequence[_Tier]) -> Iterator[str]:
    """The sentence at the top. It is that of the tiers, and never better than what the document says of itself."""
    state, why = _judgement(tiers)
    claimed = document.get("holds")
    partial = [name for name in PROOF if name not in {tier.tier for tier in tiers}]
    if state == "holds" and partial and claimed is True:
        holds = "holds" if len(tiers) == 1 else "hold"
        why = f"{', '.join(tier.tier for tier in tiers)} {holds}; {', '.join(partial)} not run."
        says = f"<b>? Parity is not proven by this run:</b> {escaped(why)}"
        yield f'<div class="verdict cannot-tell" role="status">{says}</div>'
        return
    contradicts = claimed is not {"holds": True, "fails": False}.get(state)
    if contradicts and state == "holds":
        state, why = "cannot tell", "the document contradicts itself."
    says = f"<b>{SIGNS[state]} {_VERDICTS[state]}:</b> {escaped(why)}"
    yield f'<div class="verdict {state.replace(" ", "-")}" role="status">{says}</div>'
    if contradicts:
        yield f"<p>The document says <code>holds: {shown(claimed)}</code>, which is not what its tiers say.</p>"


def _judgement(tiers: Sequence[_Tier]) -> tuple[str, str]:
    """The state of all tiers together, and why."""
    failing = [tier.label for tier in tiers if tier.status == "fails"]
    unsure = [tier.label for tier in tiers if tier.status == "cannot tell"]
    count = f"{len(tiers)} tier{'' if len(tiers) == 1 else 's'}"
    open_ = f"{len(unsure)} of {count} cannot tell: {', '.join(unsure)}."
    if failing:
        rest = f" {open_}" if unsure else ""
        return "fails", f"{len(failing)} of {count} fail: {', '.join(failing)}.{rest}"
    if unsure or not tiers:
        return "cannot tell", open_ if unsure else "no tier was run."
    run = "the one tier that was run" if len(tiers) == 1 else f"all {count} that were run"
    return "holds", f"the folded model computes what the unfolded one does, by {run}."


def _overview(document: Mapping[str, Any], tiers: Sequence[_Tier]) -> Iterator[str]:
    """A line a tier: claim, verdict, numbers, and what it cannot see; then what was not run, and notes."""
    lines = []
    for tier in tiers:
        about = ABOUT.get(tier.tier, UNKNOWN)
        claim = f'<br><span class="quiet">{escaped(about.claim)}</span>' if about.claim else ""
        link = f'<a href="#tier-{tier.at}">{escaped(tier.tier) or "–"}</a>'
        cells = [
            link,
            f"{escaped(tier.title)}{claim}",
            chip(tier.status),
            escaped(tier.headline),
            escaped(about.blind) or "–",
        ]
        lines.append(("", cells))
    if lines:
        yield table(("tier", "claim", "verdict", "numbers", "what it cannot see"), lines, "tiers")
    missing = [f"{name} ({about.claim[:1].lower()}{about.claim[1:].rstrip('.')})" for name, about in ABOUT.items()
               if name not in {tier.tier for tier in tiers}]  # fmt: skip
    if missing:
        yield f'<p class="note">Not claimed here, since it was not run: {escaped("; ".join(missing))}.</p>'
    yield from (f'<p class="note">{escaped(note)}</p>' for note in texts_in(document, "notes"))


def _findings(tiers: Sequence[_Tier]) -> Iterator[str]:
    """What a person must know, tier by tier, those that do not hold first."""
    speaking = sorted((tier for tier in tiers if tier.findings), key=lambda tier: tier.status == "holds")
    if not speaking:
        return
    yield '<section id="findings"><h2>Findings</h2>'
    for tier in speaking:
        yield f"<h3>{escaped(tier.label)} {chip(tier.status)}</h3><ul>"
        yield from (f"<li>{escaped(finding)}</li>" for finding in tier.findings[:_MOST_FINDINGS])
        left = len(tier.findings) - _MOST_FINDINGS
        if left > 0:
            yield f'<li>and {left:,} more, <a href="#tier-{tier.at}">with the tier</a></li>'
        yield "</ul>"
    yield "</section>"


def _section(tier: _Tier) -> Iterator[str]:
    """Everything that a tier has to say."""
    yield f'<section id="tier-{tier.at}"><h2>{escaped(tier.label)} {chip(tier.status)}</h2>'
    took = "" if tier.seconds is None else f' <span class="quiet">({figure(tier.seconds)} s)</span>'
    yield f'<p class="lead">{escaped(tier.headline)}{took}</p>'
    decided = "margin_quantiles" in tier.summary or "smallest_margin" in tier.summary
    if decided:
        yield from margins(tier.summary)
    yield facts(
        (words(str(key), tier.tier), shown(value, str(key)))
        for key, value in tier.summary.items()
        if not (decided and key in TOLD)
    )
    yield from rows_of(tier.rows)
    if tier.assumptions:
        yield "<h3>Assumed</h3><ul>" + "".join(f"<li>{escaped(text)}</li>" for text in tier.assumptions) + "</ul>"
    if rest := tier.findings[_MOST_FINDINGS:]:
        yield f"<h3>Further findings</h3><ul>{''.join(f'<li>{escaped(finding)}</li>' for finding in rest)}</ul>"
    yield "</section>"
