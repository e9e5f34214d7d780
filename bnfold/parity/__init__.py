"""The parity suite: a proof that a folded model is its reference, not a tolerance.

    weights/    T1, the weight certificate                verification.py   verify, prove; request.py  what is asked
    local/      T2, the rounding bound of each place      tiers/            each tier on a bundle
    triangle.py, rerounding.py  T3                        evidence.py       models, goldens, answers
    hard_inputs.py, hard_rule.py, search/  T3h            oracle.py, float64_operators.py, torch_float64/, truth.py
    decisions.py, distributions.py  T4                                      the float64 truth
    runtimes/   T5, other runtimes, a server              gate.py           before serving
    mutants/    T6, wrong folds                           report.py, rows.py, schema.py, junit.py   what is said of it
    hypotheses/ likely causes                             audit/            folds by others

docs/parity.md says what each tier catches, and what it cannot see.
"""

from __future__ import annotations

from bnfold.parity.report import ParityReport, TierResult
from bnfold.parity.verification import TIERS, prove, verify

__all__ = ["ParityReport", "TIERS", "TierResult", "prove", "verify"]
