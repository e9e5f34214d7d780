"""What a fold does to the numbers: how far a norm stretches, how much of it cancels, what rounding may cost.

All of it is for a person to judge by, in plain float64; nothing here decides whether a norm folds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.errors import FoldError
from bnfold.folding import algebra
from bnfold.folding.edits import Edit, SetWeights
from bnfold.folding.expressions import Array, Expr, Leaf
from bnfold.folding.facts import Norm
from bnfold.folding.report import ErrorBound, NormNumbers
from bnfold.folding.statistics import statistics_of

# IEEE 754 (bfloat16: 8 bits of significand): unit roundoff u, and half the distance of subnormals, by dtype.
_ROUNDOFF = {
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
    "float32": (2.0**-24, 2.0**-150),
    "float64": (2.0**-53, 0.0),  # 2**-1075 is no float64
}
_BLOCK = 1 << 20  # weights at a time
_MOST = 2.0**53  # an amplification from here on: float64 sees nothing but cancellation


def numbers_of(norm: Norm) -> NormNumbers | None:
    """max|a|, the share of eps, and the amplification of a norm `y = a * x + b`; None for one that is no finite map.

    max_scale = max |a|, a = gamma / sqrt(variance + eps).
    eps_share = max eps / (variance + eps): near 1, a channel hardly varied in training, and a is large for no reason.
    amplification = max (|a * mean| + |beta|) / |beta - a * mean|: how many times larger the roundings of the unfolded
    network are, which subtracts the two, than that of the folded bias. At most 2**53; channels of zeros do not count.
    The last two are None where the statistics cannot be told apart.
    """
    if norm.refusal is not None or not norm.nodes:
        return None
    parts = statistics_of(norm)
    with np.errstate(all="ignore"):
        if parts is None:
            return NormNumbers(_finite(np.abs(algebra.magnitude(norm.scale))))
        gamma, beta, mean = (_values(part) for part in (parts.gamma, parts.beta, parts.mean))
        eps = _values(parts.eps)
        total = _values(parts.variance) + eps
        scale = gamma / np.sqrt(total)
        moved = scale * mean
        terms = np.abs(moved) + np.abs(beta)
        ratio = np.where(terms > 0, np.minimum(terms / np.abs(beta - moved), _MOST), 1.0)
        return NormNumbers(_finite(np.abs(scale)), _finite(eps / total), _finite(ratio))


def error_bounds(edits: Sequence[Edit], x: float = 1.0) -> tuple[ErrorBound, ...]:
    """For each linear that changes, how far rounding its weight and bias once moves each output channel.

    For inputs with |x_i| <= x: `|y'_o - y_o| <= u * (x * sum |W'_o| + |c'_o|)`, with u the unit roundoff of the dtype
    (and half the smallest subnormal for each weight, where that is more). Every weight is read and rounded, so this
    takes as long as folding. Raises FoldError for an x that is no finite number from 0.
    """
    if not _is_bound(x):
        raise FoldError(f"the bound on the inputs is {x!r}; expected a finite number from 0, as 1.0")
    return tuple(_bound(edit, float(x)) for edit in edits if isinstance(edit, SetWeights))


def _values(expr: Expr) -> Array:
    """The values of a part of the statistics, (C,) or (1,), float64; nearly all of them are stored as they are."""
    if isinstance(expr, Leaf):
        return expr.tensor.load().astype(np.float64).reshape(-1)
    return algebra.magnitude(expr).reshape(-1)


def _is_bound(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) and x >= 0


def _bound(edit: SetWeights, x: float) -> ErrorBound:
    unit, least = _ROUNDOFF[edit.weight_dtype]
    weight = edit.weight_values()
    sums = _sums(weight, edit)
    bound = x * (unit * sums + least * (weight.size / max(1, sums.size)))
    bias = edit.bias_values()
    if bias is not None:
        unit, least = _ROUNDOFF[edit.bias_dtype]
        bound = bound + unit * np.abs(bias.astype(np.float64)) + least
    channels = tuple(_upwards(value) for value in bound.tolist())
    names = tuple(dict.fromkeys(norm.name for norm in edit.norms))
    return ErrorBound(edit.linear.name, edit.weight_dtype, names, x, max(channels, default=0.0), channels)


def _sums(weight: Array, edit: SetWeights) -> Array:
    """sum |W| over all that an output channel is made of: (O,), float64. A few rows at a time: it may be huge."""
    apart = weight if edit.linear.out_first else weight.reshape(edit.groups, -1, *weight.shape[1:])
    axes = tuple(range(1, apart.ndim)) if edit.linear.out_first else (1, *range(3, apart.ndim))
    rows = max(1, _BLOCK // max(1, apart[:1].size))
    parts = [np.abs(apart[at : at + rows].astype(np.float64)).sum(axis=axes) for at in range(0, apart.shape[0], rows)]
    return np.concatenate(parts).reshape(-1) if parts else np.zeros(0)


def _upwards(value: float) -> float:
    """Three digits, not less than the value."""
    return float(f"{value * 1.00501:.2e}") if math.isfinite(value) else algebra.LARGEST["float64"]


def _finite(values: Array) -> float | None:
    """The largest, None where it is not a finite number."""
    largest = float(values.max(initial=0.0))
    return largest if math.isfinite(largest) else None
