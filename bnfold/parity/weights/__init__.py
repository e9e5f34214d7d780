"""T1, the weight certificate: every number of a fold is the float nearest to its exact value. It needs no data.

certificate.py  a model against what a fold of its reference must be      verdicts.py  what it says of each tensor
structure.py    two graphs that are one                                   nearest.py   is every float the nearest?
balls.py, enclosing.py      values with a bound on their error            exact.py, pointwise.py  integers, exactly
"""
