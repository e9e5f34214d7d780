"""The gate before serving.

The weights must be the certified fold, and on this host the answers as near to the truth as the unfolded network's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bnfold.bundle import Bundle
from bnfold.errors import BnfoldError
from bnfold.parity.evidence import Evidence
from bnfold.parity.report import plain
from bnfold.parity.triangle import worst_corner
from bnfold.runtime import Device


@dataclass(frozen=True)
class GateResult:
    """What the gate found. reasons: why a bundle may not be served, a sentence each; empty when passed.

    Errors are root mean squares against the stored float64 truth, ratio is folded by unfolded, of the worst output.
    agreeing: rows
    of the golden vectors with the same top-1 as the reference, out of rows; both 0 where outputs are no decisions.
    """

    passed: bool
    reasons: tuple[str, ...]
    worst_ulp: float = math.nan
    folded_error: float = math.nan
    unfolded_error: float = math.nan
    ratio: float = math.nan
    rows: int = 0
    agreeing: int = 0
    provider: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        document: dict[str, Any] = plain(self.__dict__)
        return document


def check_gate(bundle: Bundle, *, device: Device = "cpu", threads: int = 1) -> GateResult:
    """Decide whether a bundle may be served on this host.

    device, threads: those that the server will run it with. The folded model runs as it is served, the reference with
    graph optimisations off. Never raises for what is wrong with the bundle: that is a reason.
    """
    evidence = Evidence(bundle, device=device, threads=threads)
    try:
        findings = evidence.certificate.findings()
    except BnfoldError as problem:
        return GateResult(False, (f"the weight certificate cannot be made: {problem}",))
    if findings:
        return GateResult(False, findings, worst_ulp=evidence.certificate.worst_ulp)
    try:
        return _run_goldens(evidence)
    except BnfoldError as problem:
        return GateResult(False, (str(problem),), worst_ulp=evidence.certificate.worst_ulp)


def _run_goldens(evidence: Evidence) -> GateResult:
    corners = evidence.corners
    reasons = [corner.sentence() for corner in corners if not corner.holds]
    rows = agreeing = 0
    if evidence.decided is not None:
        found = evidence.decisions(range(len(evidence.goldens)))
        rows, agreeing = found.rows, found.rows - len(found.disagreements)
        if not found.holds:
            reasons += found.sentences()
    worst = worst_corner(corners)
    return GateResult(
        passed=not reasons,
        reasons=tuple(reasons),
        worst_ulp=evidence.certificate.worst_ulp,
        folded_error=worst.folded_rms,
        unfolded_error=worst.unfolded_rms,
        ratio=worst.ratio,
        rows=rows,
        agreeing=agreeing,
        provider=evidence.folded_session.get_providers()[0],
    )
