"""An affine map and pooling, resizing and padding: what runs over space and leaves the channels apart.

Algebra: an average of `a * x + b` is `a * average(x) + b` where its weights add up to 1; a maximum is that where
a >= 0; interpolation has weights that add up to 1; a border of mirrored or repeated data is made of data.
Condition: the map does not vary along the axes that are pooled, resized or padded. A shift does not pass an average
that counts zeros of the border or divides by another number, nor points outside the data that get a constant; a
constant border passes where the map leaves that constant as it is; a maximum whose places are read passes nothing.
Source: ONNX AveragePool-19, MaxPool-12, Resize-19, Pad-19.
"""

from __future__ import annotations

from bnfold.folding.affine import AffineMap, is_one, is_zero
from bnfold.folding.carriers import Pad, Pool, Resize
from bnfold.folding.expressions import view
from bnfold.folding.facts import Carrier, Reason
from bnfold.folding.transport.activations import is_negative_somewhere
from bnfold.folding.transport.passage import Passage, Shapes, crossing, only


def pool_backward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[Passage, ...] | Reason:
    """The same map on the input, with the axes that went away put back."""
    asked = only(maps)
    rule = carrier.rule
    if isinstance(rule, Pool) and not rule.keepdims:
        asked = asked.each(lambda part: view(part, _with_axes(part.shape, rule.axes)))
    return pool_problem(carrier, asked) or (Passage((asked,)),)


def pool_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """The same map on the output, without the axes that go away."""
    given = only(maps)
    problem = pool_problem(carrier, given)
    if problem:
        return problem
    rule = carrier.rule
    if isinstance(rule, Pool) and not rule.keepdims:
        given = given.each(lambda part: view(part, tuple(s for at, s in enumerate(part.shape) if at not in rule.axes)))
    return (given,)


def pool_problem(carrier: Carrier, moving: AffineMap) -> Reason | None:
    """Why a map on the input of a pool is not that map on its output; None when it is."""
    rule = carrier.rule
    if not isinstance(rule, Pool):
        return None
    problem = crossing(carrier, [moving], rule.axes, "pools")
    if problem:
        return problem
    if rule.mode == "max":
        if rule.gives_indices:
            return Reason("OTHER_READER", f"the indices of {carrier.label} are read, and ties may move them")
        if is_negative_somewhere(moving.scale):
            return Reason(
                "NEGATIVE_SCALE_THROUGH_MAXPOOL",
                f"its scale is negative in some channels; there the maximum of {carrier.label} would become a minimum",
            )
        return None
    if is_weighted_unevenly(rule) and not is_zero(moving.shift):
        return Reason(
            "COUNTED_PADDING",
            f"{carrier.label} counts zeros of the border, or divides by a number of its own, so a shift changes there",
        )
    return None


def is_weighted_unevenly(rule: Pool) -> bool:
    """True when the weights of an average may not add up to 1 everywhere."""
    if rule.has_divisor:
        return True
    # With ceil, implementations differ in whether the part of a window beyond the border counts as padding.
    return rule.counts_padding and (rule.window is None or rule.window.is_padded or rule.window.ceil)


def resize_backward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[Passage, ...] | Reason:
    """The same map on the input."""
    return resize_problem(carrier, only(maps)) or (Passage((only(maps),)),)


def resize_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """The same map on the output."""
    return resize_problem(carrier, only(maps)) or (only(maps),)


def resize_problem(carrier: Carrier, moving: AffineMap) -> Reason | None:
    """Why a map does not pass interpolation; None when it does."""
    rule = carrier.rule
    if not isinstance(rule, Resize):
        return None
    problem = crossing(carrier, [moving], rule.axes, "interpolates")
    if problem is None and rule.extrapolates and not leaves_constant(moving, rule.outside):
        return Reason("EXTRAPOLATION", f"{carrier.label} gives points outside the data a constant, which would change")
    return problem


def pad_backward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[Passage, ...] | Reason:
    """The same map on the input."""
    return pad_problem(carrier, only(maps)) or (Passage((only(maps),)),)


def pad_forward(carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes) -> tuple[AffineMap, ...] | Reason:
    """The same map on the output."""
    return pad_problem(carrier, only(maps)) or (only(maps),)


def pad_problem(carrier: Carrier, moving: AffineMap) -> Reason | None:
    """Why a map does not pass a border; None when it does."""
    rule = carrier.rule
    if not isinstance(rule, Pad):
        return None
    problem = crossing(carrier, [moving], rule.axes, "pads")
    if problem is None and rule.mode == "constant" and rule.axes and not leaves_constant(moving, rule.value):
        return Reason("PAD_VALUE", f"{carrier.label} makes a border of {rule.value:g}, which the map would change")
    return problem


def leaves_constant(moving: AffineMap, value: float) -> bool:
    """True when it is certain that the map of every channel sends a number to itself.

    For a number other than zero that is certain of the identity alone: `a * v + b = v` is no question for rounding.
    """
    return is_zero(moving.shift) and (value == 0 or is_one(moving.scale))


def _with_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    rest = iter(shape)
    return tuple(1 if at in axes else next(rest) for at in range(len(shape) + len(axes)))
