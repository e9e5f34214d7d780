"""An affine map and an elementwise function.

Algebra: `a * relu(x) = relu(a * x)` for a > 0 (for a = 0 too); the same for LeakyReLU and PReLU with any slope. For
a < 0 and slope s > 0: `a * leaky(x; s) = leaky(a * s * x; 1 / s)`, which needs a slope for each channel.
Condition: no shift passes, since relu(x + b) is not relu(x) + b; scales are not negative. Other functions pass nothing.
Source: He et al. 2015 (arXiv 1502.01852), equation 1: the function is positively homogeneous.
"""

from __future__ import annotations

import numpy as np

from bnfold.folding.affine import AffineMap, is_zero, values, vector
from bnfold.folding.carriers import Activation
from bnfold.folding.expressions import ONE, ZERO, Expr, Given, Join, Scalar, Take, div, mul, view
from bnfold.folding.facts import Carrier, Reason
from bnfold.folding.transport.passage import Passage, Shapes, only

HOMOGENEOUS = ("relu", "leaky_relu", "prelu")


def backward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[Passage, ...] | Reason:
    """The scale on the input that gives this scale on the output."""
    asked = only(maps)
    problem = _problem(carrier, asked)
    if problem is None:
        return (Passage((AffineMap(asked.scale, ZERO),)),)
    turned = _turned(carrier, asked)
    return problem if turned is None else (turned,)


def forward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[AffineMap, ...] | Reason:
    """The same scale on the output."""
    given = only(maps)
    return _problem(carrier, given) or (AffineMap(given.scale, ZERO),)


def is_homogeneous(rule: object) -> bool:
    """True for a function with f(a * x) = a * f(x) for a >= 0."""
    return isinstance(rule, Activation) and rule.function in HOMOGENEOUS


def is_negative_somewhere(scale: Expr) -> bool:
    """True when a scale is below zero in any channel."""
    return bool((values(scale) < 0).any())


def _problem(carrier: Carrier, asked: AffineMap) -> Reason | None:
    if not is_homogeneous(carrier.rule):
        return Reason("NONLINEAR", f"no affine map passes {carrier.label}, which is not linear on any half-line")
    if not is_zero(asked.shift):
        return Reason("NONLINEAR", f"its shift cannot pass {carrier.label}: f(x + b) is not f(x) + b")
    if is_negative_somewhere(asked.scale):
        return Reason(
            "NEGATIVE_SCALE_THROUGH_ACTIVATION",
            f"its scale is negative in some channels, and only positive scales pass {carrier.label}",
        )
    return None


def _turned(carrier: Carrier, asked: AffineMap) -> Passage | None:
    """The passage of a scale that is negative somewhere, with a slope for each channel."""
    rule = carrier.rule
    is_leaky = isinstance(rule, Activation) and rule.function == "leaky_relu" and rule.slope is not None
    if not is_leaky or not is_zero(asked.shift) or len(asked.scale.shape) == 0 or len(asked.axes) != 1:
        return None
    slope = float(rule.slope)  # type: ignore[union-attr, arg-type]
    axis = next(iter(asked.axes))
    channels = asked.scale.shape[axis]
    if not 0 < slope < np.inf or (values(asked.scale) == 0).any():
        return None
    negative = [bool(flag) for flag in (values(vector(asked.scale, axis, channels)) < 0)]
    inverse: Expr = Take(Join((Given((slope,), (1,)), view(div(ONE, Scalar(slope)), (1,))), 0), 0, _picks(negative))
    factor = Given(tuple(slope if flag else 1.0 for flag in negative), (channels,))
    aligned = view(factor, asked.scale.shape)
    return Passage((AffineMap(mul(asked.scale, aligned), ZERO),), slope=inverse, axis=axis)


def _picks(negative: list[bool]) -> tuple[int, ...]:
    return tuple(int(flag) for flag in negative)
