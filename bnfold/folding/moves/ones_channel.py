"""The shift of a norm that meets zero padding travels as a channel of its own.

Algebra: the linear before the norm gets one more output channel that is v everywhere (weights 0, bias v; the
activation between leaves v as it is), the convolution behind it one more input channel with weights
`sum(W[:, i] * shift[i]) / v`. Padding is zero for that channel as for any other, so borders come out right for any
stride, dilation, padding, output padding and size.
Condition: the linear has no other reader, nor has the norm; both have groups = 1; between linear and norm stands
nothing, or an activation with f(v) = v: 1 for ReLU, LeakyReLU, ReLU6 and ELU, 64 for SiLU, GELU, HardSwish and Mish,
which differ from v by less than exp(-64) * v there.
Source: zero padding as a linear map. The channel costs 1.2 to 1.6 times the norm on small layers, so it is no default.
"""

from __future__ import annotations

import dataclasses

from bnfold.folding.absorb import meets_zeros, sharing_problem
from bnfold.folding.affine import is_zero, vector
from bnfold.folding.bench import Bench, LinearState, NormState
from bnfold.folding.carriers import Activation
from bnfold.folding.expressions import ZERO, Expr, Given, Join, Scalar, Total, div, mul, spread
from bnfold.folding.facts import Carrier, Linear
from bnfold.folding.moves.linear_to_norm import obstacle
from bnfold.folding.weights import Weights, mapped_before, over_inputs

FIXED_POINT = {
    "relu": 1.0, "leaky_relu": 1.0, "relu6": 1.0, "elu": 1.0,
    "silu": 64.0, "gelu": 64.0, "hardswish": 64.0, "mish": 64.0,
}  # fmt: skip


def ones_channel(bench: Bench) -> bool:
    """Fold the norms that are left between a linear and a padded convolution; True when anything moved."""
    changed = False
    for state in bench.live_norms():
        behind = _reader(bench, state)
        before, fixed, between = _writer(bench, state)
        if behind is None or before is None or behind is before or not _are_free(bench, before, behind):
            continue
        changed |= _extend(bench, state, before, behind, fixed, between)
    return changed


def _extend(
    bench: Bench, state: NormState, before: LinearState, behind: LinearState, fixed: float, between: list[str]
) -> bool:
    norm, moving = state.norm, state.map
    if moving is None:
        return False
    axis, channels = behind.linear.axis or 0, behind.weights.in_channels
    scale, shift = (vector(part, axis, channels) for part in (moving.scale, moving.shift))
    new_before = with_constant_output(before.weights, fixed)
    new_behind = with_constant_input(behind.weights, scale, shift, fixed)
    inf = float("inf")
    for target, weights in ((before, new_before), (behind, new_behind)):
        if bench.range_problem(target, weights, inf, 0.0) is not None:
            return False
    taken = [*state.taken, norm]
    for target, weights in ((before, new_before), (behind, new_behind)):
        target.weights, target.peak, target.bias_peak, target.behind = weights, None, None, None
        target.norms += taken
    bench.sealed.update(between)
    for value in between:
        known = bench.shapes.get(value)
        if known is not None:
            bench.shapes[value] = tuple(channels + 1 if at == axis else size for at, size in enumerate(known))
    bench.bypass(norm, [behind.linear.id])
    return True


def with_constant_output(w: Weights, value: float) -> Weights:
    """One more output channel that is `value` everywhere."""
    axis = 0 if w.out_first else 1
    zeros = spread(
        Given((0.0,), (1,) * len(w.weight.shape)),
        tuple(1 if at == axis else size for at, size in enumerate(w.weight.shape)),
    )
    bias = w.bias if w.bias is not None else spread(Given((0.0,), (1,)), (w.channels,))
    return dataclasses.replace(
        w, weight=Join((w.weight, zeros), axis), bias=Join((bias, Given((value,), (1,))), 0), channels=w.channels + 1
    )


def with_constant_input(w: Weights, scale: Expr, shift: Expr, value: float) -> Weights:
    """`W . (scale * x + shift)` with the shift as one more input channel that is `value`. scale, shift: (I,) or ()."""
    axis = 1 if w.out_first else 0
    extra = div(Total(mul(w.weight, over_inputs(w, shift)), (axis,)), Scalar(value))
    scaled = mapped_before(w, scale, ZERO)
    return dataclasses.replace(
        scaled, weight=Join((scaled.weight, extra), axis), bias=w.bias, in_channels=w.in_channels + 1
    )


def _reader(bench: Bench, state: NormState) -> LinearState | None:
    """The convolution with zero padding that alone reads the norm."""
    norm = state.norm
    if not norm.is_norm or obstacle(state) is not None or state.map is None or is_zero(state.map.shift):
        return None
    readers = bench.readers(norm.output) if norm.output not in bench.measured else []
    node = bench.graph.by_id.get(readers[0][0]) if len(readers) == 1 else None
    if not isinstance(node, Linear) or node.axis is None or not state.map.axes <= {node.axis}:
        return None
    target = bench.linears[node.id]
    return target if meets_zeros(target) else None


def _writer(bench: Bench, state: NormState) -> tuple[LinearState | None, float, list[str]]:
    """The linear before the norm, the number that what stands between leaves alone, and the values between."""
    between: list[str] = []
    fixed = 1.0
    value = bench.input_of(state.norm)
    while True:
        # Who reads the shape of a value would see the channel.
        if len(bench.readers(value)) != 1 or value in bench.sealed or value in bench.measured:
            return None, fixed, between
        between.append(value)
        node = bench.producer(value)
        if isinstance(node, Linear):
            return bench.linears[node.id], fixed, between
        if not isinstance(node, Carrier) or not isinstance(node.rule, Activation) or len(between) > 1:
            return None, fixed, between
        if node.rule.function not in FIXED_POINT:
            return None, fixed, between
        fixed = FIXED_POINT[node.rule.function]
        value = bench.inputs(node)[0]


def _are_free(bench: Bench, before: LinearState, behind: LinearState) -> bool:
    """True when both linears may get another channel."""
    linears = (before.linear, behind.linear)
    return (
        all(linear.groups == 1 and not linear.obstacle for linear in linears)
        and before.linear.axis == behind.linear.axis
        and all(sharing_problem(bench, state) is None for state in (before, behind))
    )
