"""The parity suite: a proof that a folded model is its reference, not a tolerance.

    exact.py, nearest.py     exact arithmetic; is every float the nearest?      structure.py   two graphs that are one
    certificate.py           T1, the weight certificate                         report.py      verdicts, table, JSON
    bounds.py, spans.py,
    local.py                 T2, the rounding bound of each site                evidence.py    models, goldens, answers
    oracle.py,
    float64_operators.py     the float64 truth                                  tiers.py       each tier on a bundle
    triangle.py              T3, errors against the truth                       verification.py  verify, prove
    decisions.py             T4, the same answers                               gate.py        before serving

docs/parity.md says what each tier catches, and what it cannot see.
"""

from __future__ import annotations

from bnfold.parity.report import ParityReport, TierResult
from bnfold.parity.verification import TIERS, prove, verify

__all__ = ["ParityReport", "TIERS", "TierResult", "prove", "verify"]
