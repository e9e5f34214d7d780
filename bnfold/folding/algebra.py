"""The numbers of expressions: evaluated in double-double, rounded once, or estimated in plain float64.

double_double.py  the arithmetic
evaluation.py     expressions in any arithmetic, whole or by rows
rounding.py       rounding to a dtype: large tensors in float64 with error bounds (bounded.py) after grouping small
                  factors (products.py), the few elements in doubt one by one in double-double (points.py)
"""

from __future__ import annotations

import numpy as np

from bnfold.folding.double_double import F64, DoubleDouble, add, div, exact, mul, negative, sqrt, sub, total
from bnfold.folding.evaluation import Memo, evaluate, magnitude
from bnfold.folding.expressions import Tensor
from bnfold.folding.rounding import LARGEST, round_to, rounded

__all__ = [
    "F64", "LARGEST", "DoubleDouble", "Memo",
    "evaluate", "is_finite_tensor", "magnitude", "round_to", "rounded",
    "add", "div", "exact", "mul", "negative", "sqrt", "sub", "total",
]  # fmt: skip

_BLOCK = 1 << 20  # elements looked at a time


def is_finite_tensor(tensor: Tensor) -> bool:
    """True when a constant of the source holds neither NaN nor infinity."""
    values = tensor.load().reshape(-1)
    if values.dtype.kind in "biu":
        return True
    blocks = (values[start : start + _BLOCK] for start in range(0, values.size, _BLOCK))
    return all(bool(np.isfinite(block).all()) for block in blocks)
