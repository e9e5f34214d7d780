"""T2, the local bound: wherever a fold changed something, both sides differ by no more than rounding can explain.

checking.py     all of it                           results.py   what was found at one place
at_sites.py     a linear and the norms behind it    bounds.py    its bound in closed form       sites.py   what it is
at_regions.py   whatever else an edit changed       running.py, running_rules.py   its error, operator by operator
                                                    interpolation.py   its rule for linear interpolation
points.py       where both graphs are equal         regions.py   what lies between               spans.py   cut out
"""
