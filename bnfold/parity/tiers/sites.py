"""T2: the local bound of every site of a bundle."""

from __future__ import annotations

import dataclasses

from bnfold.parity.evidence import Evidence
from bnfold.parity.local import SiteResult, check_sites
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request

_LOCAL_ROWS = 32  # of each golden vector: a site's bound needs no more to show a gross fault
_NO_BOUND = "measured, not bounded: no local bound is derived for this move yet"


def check(evidence: Evidence, _: Request) -> TierResult:
    """T2: the local bound, site by site, on the first rows of every golden vector."""
    free = all(spec.shape[:1] == (-1,) for spec in evidence.bundle.manifest.inputs)
    rows = slice(0, _LOCAL_ROWS if free else None)
    batches = [{name: array[rows] for name, array in golden.inputs.items()} for golden in evidence.goldens]
    found = check_sites(
        evidence.reference, evidence.folded, evidence.expectation.sites, batches, threads=evidence.threads
    )
    others = tuple(SiteResult(label, (), "", 0, note=_NO_BOUND) for label in evidence.expectation.others)
    bad = [site for site in found if site.bad]
    unbounded = [site for site in found if site.problem]
    status: Status = "fails" if bad else "cannot tell" if unbounded else "holds"
    worst = max((site.worst_ratio for site in found), default=0.0)
    headline = f"{len(found)} sites, worst difference {worst:.2g} times its rounding bound"
    headline += f"; {len(bad)} sites beyond it" if bad else ""
    headline += f"; {len(unbounded)} sites not bounded" if unbounded else ""
    headline += f"; {len(others)} other edits measured by T3, not bounded" if others else ""
    summary = {
        "sites": len(found), "bad_sites": len(bad), "unbounded_sites": len(unbounded), "unbounded_edits": len(others),
        "worst_ratio": worst,
    }  # fmt: skip
    findings = tuple(site.sentence() for site in found if not site.holds)
    details = tuple(dataclasses.asdict(site) for site in (*found, *others))
    return TierResult("T2", "local bound", status, headline, summary, findings, details)
