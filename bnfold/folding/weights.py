"""Weight and bias of a linear as expressions, and what an affine map behind or before it makes of them.

Layouts: (O, I/g, *K) where the output channels come first (Conv, Linear, Gemm with transB), (I, O/g, *K) otherwise
(ConvTranspose, MatMul). Vectors over channels are (O,) and (I,), channel o of group o // (O/g).
Source: ONNX Conv-11, ConvTranspose-11, Gemm-13.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from bnfold.folding.carriers import Window
from bnfold.folding.expressions import ZERO, Expr, Leaf, Scalar, Total, add, mul, spread, view
from bnfold.folding.facts import Linear


@dataclass(frozen=True, eq=False)
class Weights:
    """A linear's numbers. weight: in its layout; bias: (O,) or None. channels: O, in_channels: I."""

    weight: Expr
    bias: Expr | None
    out_first: bool
    groups: int
    channels: int
    in_channels: int
    window: Window | None


def weights_of(linear: Linear) -> Weights:
    """The numbers of a linear as the source has them, alpha and beta multiplied in."""
    weight = mul(Leaf(linear.weight), Scalar(linear.alpha))
    bias = None
    if linear.bias is not None:
        stored = view(Leaf(linear.bias), (max(1, _size(linear.bias.shape)),))
        bias = mul(spread(stored, (linear.channels,)), Scalar(linear.beta))
    return Weights(
        weight, bias, linear.out_first, linear.groups, linear.channels, linear.in_channels, linear.window
    )  # fmt: skip


def mapped_behind(w: Weights, scale: Expr, shift: Expr) -> Weights:
    """`scale * (W . x + c) + shift = (scale[o] * W[o]) . x + (scale * c + shift)`; scale, shift: (O,) or ()."""
    bias = add(mul(w.bias or ZERO, scale), shift)
    return dataclasses.replace(w, weight=_times(over_outputs(w, scale), w), bias=_full(bias, w))


def mapped_before(w: Weights, scale: Expr, shift: Expr) -> Weights:
    """`W . (scale * x + shift) + c = (W[:, i] * scale[i]) . x + (c + sum(W[:, i] * shift[i]))`.

    scale, shift: (I,) or (). The sum runs over input channels and taps, so it is exact only where every tap meets data.
    """
    bias = w.bias or ZERO
    if shift != ZERO:
        bias = add(bias, response(w, shift))
    return dataclasses.replace(w, weight=_times(over_inputs(w, scale), w), bias=_full(bias, w))


def response(w: Weights, constant: Expr) -> Expr:
    """What a linear makes of a constant in each input channel, bias aside: (O,). constant: (I,) or ()."""
    product = mul(w.weight, over_inputs(w, constant))
    if w.out_first:
        return view(Total(product, tuple(range(1, len(w.weight.shape)))), (w.channels,))
    kernel = w.weight.shape[2:]
    grouped = view(product, (w.groups, w.in_channels // w.groups, w.channels // w.groups, *kernel))
    return view(Total(grouped, (1, *range(3, len(grouped.shape)))), (w.channels,))


def over_outputs(w: Weights, values: Expr) -> Expr:
    """A vector over output channels, shaped to broadcast against the weight. values: (O,) or ()."""
    if not values.shape:
        return values
    spatial = (1,) * (len(w.weight.shape) - 2)
    if w.out_first:
        return view(values, (w.channels, 1, *spatial))
    if w.groups == 1:
        return view(values, (1, w.channels, *spatial))
    return _over_groups(view(values, (w.groups, 1, w.channels // w.groups)), w, spatial)


def over_inputs(w: Weights, values: Expr) -> Expr:
    """A vector over input channels, shaped to broadcast against the weight. values: (I,) or ()."""
    if not values.shape:
        return values
    spatial = (1,) * (len(w.weight.shape) - 2)
    if not w.out_first:
        return view(values, (w.in_channels, 1, *spatial))
    if w.groups == 1:
        return view(values, (1, w.in_channels, *spatial))
    return _over_groups(view(values, (w.groups, 1, w.in_channels // w.groups)), w, spatial)


def _over_groups(rows: Expr, w: Weights, spatial: tuple[int, ...]) -> Expr:
    """One row for each group (g, 1, n) as one for each slice of the weight's first axis."""
    first = w.channels if w.out_first else w.in_channels
    groups, _, columns = rows.shape
    return view(spread(rows, (groups, first // groups, columns)), (first, columns, *spatial))


def _times(factor: Expr, w: Weights) -> Expr:
    """The weight times a factor, in its shape also where the factor is a literal zero."""
    product = mul(w.weight, factor)
    return product if product.shape else spread(view(product, (1,) * len(w.weight.shape)), w.weight.shape)


def _full(bias: Expr, w: Weights) -> Expr | None:
    """The bias over all output channels; None where there is none and was none."""
    if bias == ZERO and w.bias is None:
        return None
    if bias.shape != (w.channels,):
        bias = spread(view(bias, (1,)), (w.channels,))
    return bias


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
