"""The page of a study: what was found, a sentence each, and the curves behind it. One file, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bnfold.pages.text import escaped
from bnfold.training.study.findings import FAILS, HOLDS, OPEN, SEEN
from bnfold.training.study.plots import curves, dots, final, sweep

_SIGNS = {HOLDS: "&#10003;", FAILS: "&#10007;", OPEN: "?", SEEN: "&#8226;"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; --fg: #1d2026; --dim: #5a6272; --line: #c9ced8; --card: #f6f7f9; }
body { margin: 0 auto; max-width: 60rem; padding: 1.2rem 1.5rem 3rem; background: #fff; color: var(--fg);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .4rem 0; } .dim, footer { color: var(--dim); font-size: .9rem; }
ul { list-style: none; padding: 0; } li { margin: .6rem 0; padding: .5rem .8rem; border-left: 4px solid var(--line);
  background: var(--card); break-inside: avoid; }
li.holds { border-color: #1a7f47; } li.fails { border-color: #b3202c; } li.open { border-color: #9a5b00; }
li b { display: block; } .verdict { float: right; margin-left: 1rem; color: var(--dim); font-size: .9rem; }
svg { max-width: 100%; height: auto; } section { break-inside: avoid; }
table { border-collapse: collapse; font-size: .85rem; } th, td { padding: .15rem .7rem .15rem 0; text-align: left;
  border-bottom: 1px solid var(--line); } td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; }
code { overflow-wrap: anywhere; }
"""
_KINDS = {HOLDS: "holds", FAILS: "fails", OPEN: "open", SEEN: "seen"}


def render(study: Mapping[str, Any]) -> str:
    """The whole page as HTML. study: what `Study.to_dict` gives."""
    title = f"{escaped(study['name'])}: what batch norm does here"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        *_about(study),
        *_findings(study["findings"]),
        *(part for experiment in study["experiments"] for part in _experiment(study, experiment)),
        f"<footer>bnfold {escaped(study['about']['bnfold'])}</footer></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _about(study: Mapping[str, Any]) -> Iterator[str]:
    about, count = study["about"], len(study["runs"])
    train = about["recipe"]["train"]
    yield (
        f'<p class="dim">{count} trainings of {train["epochs"]} epochs, {about["seeds"]} seeds each; device '
        f"{escaped(about['device'])}, torch {escaped(about['torch'])}, Python {escaped(about['python'])}, "
        f"{escaped(about['machine'])}. <code>{escaped(about['command'])}</code></p>"
    )
    yield '<p class="dim">Intervals: 95%, Student&rsquo;s t over the seeds. A training that failed counts as 0%.</p>'


def _findings(findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "<h2>Findings</h2><ul>"
    for finding in findings:
        verdict = finding["verdict"]
        yield (
            f'<li class="{_KINDS[verdict]}"><span class="verdict">{_SIGNS[verdict]} {escaped(verdict)}</span>'
            f"<b>{escaped(finding['claim'])}</b>{escaped(finding['sentence'])}</li>"
        )
    yield "</ul>"


def _experiment(study: Mapping[str, Any], experiment: Mapping[str, Any]) -> Iterator[str]:
    runs = [run for run in study["runs"] if run["experiment"] == experiment["name"]]
    yield f"<section><h2>{escaped(experiment['title'])}</h2>"
    if experiment["axis"]:
        yield sweep(runs, experiment["axis"])
        yield from _table(runs, experiment["axis"])
    elif experiment["name"] == "speed":
        yield curves(runs)
    else:
        yield dots(runs)
    failed = {f"{run['label']}{_at(run)}": run["failure"] for run in runs if run["failure"]}
    if failed:
        count = sum(1 for run in runs if run["failure"])
        listed = "; ".join(f"{arm}: {failure}" for arm, failure in failed.items())
        yield f'<p class="dim">Trainings that did not come to their end: {count} of {len(runs)}. {escaped(listed)}</p>'
    yield "</section>"


def _at(run: Mapping[str, Any]) -> str:
    return f" at {run['place']:g}" if run["place"] else ""


def _table(runs: Sequence[Mapping[str, Any]], axis: str) -> Iterator[str]:
    """The means of a sweep as numbers."""
    places = sorted({run["place"] for run in runs})
    yield f"<table><tr><th>{escaped(axis)}</th>{''.join(f'<th class=num>{place:g}</th>' for place in places)}</tr>"
    for label in dict.fromkeys(run["label"] for run in runs):
        cells = (_cell([run for run in runs if (run["label"], run["place"]) == (label, place)]) for place in places)
        yield f"<tr><td>{escaped(label)}</td>{''.join(f'<td class=num>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _cell(arm: Sequence[Mapping[str, Any]]) -> str:
    """The mean accuracy of an arm, where a training that failed counts as 0, and how many failed."""
    failed = sum(1 for run in arm if run["failure"])
    if failed == len(arm):
        return "cannot be trained"
    mean = sum(final(run) for run in arm) / len(arm)
    return f"{mean:.1%}" + (f" ({failed} failed)" if failed else "")
