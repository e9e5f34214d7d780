"""T3: the oracle triangle of a bundle."""

from __future__ import annotations

import dataclasses

from bnfold.parity.evidence import Evidence
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request
from bnfold.parity.triangle import distances, worst_corner


def check(evidence: Evidence, _: Request) -> TierResult:
    """T3: the oracle triangle, for what the models answer now and for the stored outputs."""
    corners = evidence.corners
    stored = evidence.judged([golden.outputs for golden in evidence.goldens])
    findings = [found.sentence() for found in corners if not found.holds]
    findings += [f"the stored outputs: {found.sentence()}" for found in stored if not found.holds]
    every = (*corners, *stored)
    wrong = any(not found.holds and not found.doubt for found in every)
    status: Status = "fails" if wrong else "cannot tell" if any(found.doubt for found in every) else "holds"
    worst = worst_corner(corners)
    headline = f"from the float64 truth: {distances(worst, _times(worst.ratio))}"
    summary = {
        "unfolded_error": worst.unfolded_error, "folded_error": worst.folded_error, "unfolded_rms": worst.unfolded_rms,
        "folded_rms": worst.folded_rms, "ratio": worst.ratio, "factor": worst.factor,
        "goldens": len(evidence.goldens), "elements": worst.elements,
    }  # fmt: skip
    details = tuple(dataclasses.asdict(found) for found in corners)
    return TierResult("T3", "oracle triangle", status, headline, summary, tuple(findings), details)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.3g}"
