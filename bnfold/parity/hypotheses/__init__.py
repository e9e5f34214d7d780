"""Hypotheses: the known ways in which a fold is got wrong, a closed list of codes.

rewriting.py  expressions with some nodes exchanged; where a norm's statistics stand in one
formulas.py   the formula of batch norm, got wrong
layouts.py    axes, groups, biases, branches, borders, constant channels, slopes
arrays.py     right numbers in wrong places, or scaled
terms.py      numbers with the size of their terms, and what rounding explains
causes.py     which of them explains a wrong tensor
"""

from __future__ import annotations

from bnfold.parity.hypotheses.causes import ENOUGH, Cause, likely_cause, rewrites
from bnfold.parity.hypotheses.channels import shown
from bnfold.parity.hypotheses.rewriting import Rewrite

__all__ = ["ENOUGH", "Cause", "Rewrite", "likely_cause", "rewrites", "shown"]
