"""T2: the local bound of everything that a fold changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

from bnfold.parity.evidence import Array, Evidence
from bnfold.parity.local.checking import ASSUMPTIONS, Local, check_local
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request

_ROWS = 32  # of each golden vector: a bound needs no more to show a gross fault
_FIRST = 4  # of them that are looked at whatever the budget
_SECONDS = 60.0  # for the others, whatever the budget: a large network has sites enough


def check(evidence: Evidence, request: Request) -> TierResult:
    """T2: on the first rows of every golden vector, site by site and region by region."""
    is_free = all(spec.shape[:1] == (-1,) for spec in evidence.bundle.manifest.inputs)
    found, rows = _within(evidence, request, is_free)
    bad = [one for one in found.results if one.bad]
    sites = [one for one in found.results if one.kind == "site"]
    regions = [one for one in found.results if one.kind == "region" and not one.note]
    open_ = [one for one in found.results if one.problem]
    others = [one for one in (*found.results, *found.unbounded) if one.note]
    apart = tuple(_not_exact(name, distance) for name, distance in found.apart.items())
    status: Status = "fails" if bad or apart else "cannot tell" if open_ else "holds"
    worst = max((one.worst_ratio for one in found.results), default=0.0)
    headline = f"{len(sites)} sites" + (f" and {len(regions)} regions" if regions else "")
    headline += f" on {rows} inputs, worst difference {worst:.2g} times its rounding bound"
    headline += f"; {len(bad)} beyond it, the first '{bad[0].linear}'" if bad else ""
    headline += f"; {len(open_)} not bounded" if open_ else ""
    headline += f"; {len(others)} other edits measured by T3, not bounded" if others else ""
    headline += "; the fold is not exact" if apart else ""
    summary = {
        "sites": len(sites), "regions": len(regions), "bad_sites": len(bad), "unbounded_sites": len(open_),
        "unbounded_edits": len(others), "worst_ratio": worst, "rows": rows,
    }  # fmt: skip
    findings = (*apart, *(one.sentence() for one in found.results if not one.holds))
    details = tuple(dataclasses.asdict(one) for one in (*found.results, *found.unbounded))
    return TierResult("T2", "local bound", status, headline, summary, findings, details, ASSUMPTIONS)


def _within(evidence: Evidence, request: Request, is_free: bool) -> tuple[Local, int]:
    """A few rows first; the others where the budget lasts for them."""
    begun = time.monotonic()
    few, rest = (_batches(evidence, is_free, rows) for rows in (slice(0, _FIRST), slice(_FIRST, _ROWS)))
    found = _on(evidence, few, is_free)
    rows, more = (sum(len(next(iter(batch.values()))) for batch in batches) for batches in (few, rest))
    spent = time.monotonic() - begun
    if not is_free or not more or spent * more / max(1, rows) > min(_SECONDS, request.left):
        return found, rows
    return found.and_on(_on(evidence, rest, is_free)), rows + more


def _batches(evidence: Evidence, is_free: bool, rows: slice) -> list[Mapping[str, Array]]:
    """The same rows of every golden vector; all of them where the batch size is fixed."""
    if not is_free:
        return [golden.inputs for golden in evidence.goldens]
    cut: list[Mapping[str, Array]] = [
        {name: array[rows] for name, array in golden.inputs.items()} for golden in evidence.goldens
    ]
    return [batch for batch in cut if len(next(iter(batch.values())))] if rows.start else cut


def _on(evidence: Evidence, batches: list[Mapping[str, Array]], is_free: bool) -> Local:
    return check_local(
        evidence.reference, evidence.folded, evidence.expectation, batches, is_free=is_free, threads=evidence.threads
    )


def _not_exact(name: str, distance: float) -> str:
    return (
        f"output '{name}': the fold, carried out in float64 with nothing rounded, differs from the reference by "
        f"{distance:.3g} of its size; expected at most 1e-09; the fold is not exact"
    )
