"""T6: the suite itself, put to the test on wrong folds of the bundle."""

from __future__ import annotations

from bnfold.parity.evidence import Evidence
from bnfold.parity.mutants import self_test
from bnfold.parity.mutants.trials import TIERS
from bnfold.parity.report import Status, TierResult
from bnfold.parity.request import Request


def check(evidence: Evidence, request: Request) -> TierResult:
    """T6: every known way to get this fold wrong; which tier notices. Run only when it is asked for."""
    found = self_test(evidence, progress=request.say)
    status: Status = "holds" if found.holds else "fails" if found.trials or found.alarms else "cannot tell"
    summary = {
        "mutants": len(found.trials), "survivors": len(found.survivors), "identical": len(found.identical),
        **{f"caught_by_{tier}": found.killed(tier)[0] for tier in TIERS},
    }  # fmt: skip
    findings = (*(f"survives: {trial.label}" for trial in found.survivors), *found.alarms)
    details = tuple(trial.to_dict() for trial in found.trials)
    return TierResult("T6", "mutants", status, found.verdict(), summary, findings, details)
