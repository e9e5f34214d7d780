"""`audit`: a network that something else folded, certified against the network that it was made of.

sides.py      one of the two networks: facts, constants, chains of affine steps
nodes.py      are two nodes the same computation? (plain_nodes.py: those of which only the operator is known)
matching.py   the two networks side by side, from outputs to inputs, never by name
demands.py    what that demands of every tensor (demand.py), as an expression over the original's constants
steps.py      affine steps that stay steps
settling.py   weights that the folded network computes in its graph
rounding.py   how far off a fold in the parameter's own dtype may be
verdicts.py   nearest, consistent with rounding, wrong
comparing.py  all of that (T1), against the original as it is, or as this package folds it
running.py    T3 and T4
opening.py    what may be audited
report.py     the report
"""

from bnfold.parity.audit.auditing import audit
from bnfold.parity.audit.report import AuditReport

__all__ = ["AuditReport", "audit"]
