"""The report as JUnit XML, as continuous integration reads it: a suite a tier, a case for the tier and one a row.

The layout is the one that GitHub's and GitLab's readers and Jenkins' JUnit plugin agree on: `testsuites`, `testsuite`,
`properties`, `testcase` with at most one of `failure`, `error`, `skipped`. A tier that fails is a failure; one that
cannot tell is an error, so that no consumer takes it for a pass; what is measured but not claimed is skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from bnfold.folding.table import plain
from bnfold.parity.report import ParityReport, TierResult
from bnfold.parity.rows import judged

# XML 1.0, production 2 (Char): whatever is none of these may not stand in a document, not even escaped.
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Case:
    """One test case. kind: failure, error or skipped, empty when it passed."""

    name: str
    kind: str = ""
    message: str = ""
    text: str = ""


_KINDS = {"fails": "failure", "cannot tell": "error", "measured": "skipped", "holds": ""}

# A document without a case is green everywhere.
_NOTHING = TierResult("none", "no tier", "cannot tell", "no tier was run")


def to_junit(report: ParityReport) -> str:
    """The report as one XML document. A suite has a failure or an error if and only if its tier does not hold."""
    label = report.name if report.version is None else f"{report.name}/{report.version}"
    root = ElementTree.Element("testsuites", {"name": _clean(f"bnfold verify {label}")})
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for tier in report.tiers or (_NOTHING,):
        suite = _suite(tier, label, report)
        root.append(suite)
        totals = {key: count + int(suite.attrib[key]) for key, count in totals.items()}
    root.attrib.update({key: str(count) for key, count in totals.items()} | {"time": _sum(report.tiers)})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(tier: TierResult, label: str, report: ParityReport) -> ElementTree.Element:
    cases = [_verdict(tier), *_rows(tier)]
    kinds = [case.kind for case in cases]
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": _clean(f"{tier.tier} {tier.title}"), "tests": str(len(cases)),
            "failures": str(kinds.count("failure")), "errors": str(kinds.count("error")),
            "skipped": str(kinds.count("skipped")), "time": _time(tier),
        },
    )  # fmt: skip
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(report, tier):
        ElementTree.SubElement(properties, "property", {"name": _clean(name), "value": _clean(value)})
    for case in cases:
        place = {"name": _clean(case.name), "classname": _clean(f"bnfold.{label}.{tier.tier}"), "time": "0"}
        place |= {"time": _time(tier)} if case is cases[0] else {}  # the tier's own case has its time, its rows none
        element = ElementTree.SubElement(suite, "testcase", place)
        if case.kind:
            kept = {"message": _clean(case.message)}
            told = kept if case.kind == "skipped" else kept | {"type": _clean(tier.tier)}
            ElementTree.SubElement(element, case.kind, told).text = _clean(case.text, keep="\n") or None
    return suite


def _time(tier: TierResult) -> str:
    """Seconds, as JUnit has them; 0 where they were not measured."""
    return f"{tier.seconds or 0:.3f}"


def _sum(tiers: Sequence[TierResult]) -> str:
    return f"{sum(tier.seconds or 0 for tier in tiers):.3f}"


def _verdict(tier: TierResult) -> _Case:
    """The case of the tier itself, with everything that was found."""
    kind = _KINDS[tier.status]
    return (
        _Case("verdict", kind, f"{tier.title}: {tier.headline}", "\n".join(tier.findings)) if kind else _Case("verdict")
    )


def _rows(tier: TierResult) -> Iterator[_Case]:
    """A case a row. What a row shows is an error at most where the tier itself does not fail."""
    for found in judged(tier.details):
        kind = _KINDS[found.state]
        if kind == "failure" and tier.status != "fails":
            kind = "error" if tier.status == "cannot tell" else "skipped"
        elif kind == "error" and tier.status == "holds":
            kind = "skipped"
        bare = found.state == "measured" and not found.sentence  # no claim, and no reason why there is none: it ran
        yield _Case(found.name, "" if bare else kind, found.sentence or tier.headline, found.sentence)


def _properties(report: ParityReport, tier: TierResult) -> Iterator[tuple[str, str]]:
    yield "schema_version", str(report.schema_version)
    yield "status", tier.status
    yield "headline", tier.headline
    yield from ((f"environment.{name}", _told(value)) for name, value in report.environment.items())
    yield from ((f"summary.{name}", _told(value)) for name, value in tier.to_dict()["summary"].items())
    yield from ((f"note.{at}", note) for at, note in enumerate(report.notes))


def _told(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple) or value is None or isinstance(value, bool):
        return json.dumps(value, default=str, sort_keys=True)
    return str(value)


def _clean(text: str, keep: str = "") -> str:
    """Text that XML 1.0 can hold: controls and marks of direction spelt out, other forbidden characters left out."""
    return _FORBIDDEN.sub("", plain(text, keep))
