"""Fold-readiness: whether a trained network will be easy to fold and to deploy, told where it was trained.

measuring.py   numbers of each norm, on samples that training never saw     verdicts.py   what they mean, in words
outlook.py     what is coming, while it trains                              trend_curves.py  that on the page
page.py        readiness.html                                               writing.py    readiness.json, and both files
"""

from __future__ import annotations

from bnfold.training.readiness.measuring import NormReadiness, Readiness, measure_readiness, measured_part
from bnfold.training.readiness.outlook import Forewarning, foresee, forewarnings
from bnfold.training.readiness.verdicts import Finding, judge
from bnfold.training.readiness.writing import write_readiness

__all__ = [
    "Finding", "Forewarning", "NormReadiness", "Readiness", "foresee", "forewarnings", "judge", "measure_readiness",
    "measured_part", "write_readiness",
]  # fmt: skip
