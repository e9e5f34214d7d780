"""Parallel branches of one input, summed, are one branch.

Algebra: `conv(x; W1) + conv(x; W2) + (a * x + b) + x = conv(x; W)`, where W is the largest of the kernels plus the
others embedded in it: a tap of the small window that reads the data at offset q is the tap of the large one at q;
`a * x` is a kernel of one tap with a on its diagonal. Of norms alone: `(a1 * x + b1) + (a2 * x + b2)` is one map.
Condition: one input, equal strides, and windows that give equal sizes; every tap of the smaller window falls on one
of the larger; the larger has no more groups than the smaller. Branches have no other reader and are not broadcast.
Source: linearity; Ding et al. 2021 (RepVGG, arXiv 2101.03697), section 3.3; Vasu et al. 2023 (MobileOne, 2206.04040).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from bnfold.folding.absorb import sharing_problem
from bnfold.folding.affine import IDENTITY, AffineMap, vector
from bnfold.folding.bench import Bench, LinearState
from bnfold.folding.carriers import Sum, Window
from bnfold.folding.expressions import ZERO, Embed, Expr, Permute, add, spread, view
from bnfold.folding.facts import Carrier, Linear, Norm
from bnfold.folding.transport.sums import negative
from bnfold.folding.weights import Weights


@dataclass(frozen=True, eq=False)
class Term:
    """One summand. at: the sum that reads it, and the slot; source: the value that it is made of."""

    at: Carrier
    slot: int
    sign: int
    value: str
    source: str
    linear: LinearState | None = None
    norm: Norm | None = None
    map: AffineMap = IDENTITY


def merge_branches(bench: Bench) -> bool:
    """Merge what can be merged in every sum; True when anything was."""
    changed = False
    for carrier in bench.sums():
        if isinstance(carrier.rule, Sum) and not _is_inner(bench, carrier):
            while not bench.is_gone(carrier.id) and _merge_one(bench, carrier):
                changed = True
    return changed


def _is_inner(bench: Bench, carrier: Carrier) -> bool:
    """True for a sum that is nothing but a term of another sum."""
    readers = bench.readers(carrier.outputs[0])
    if len(readers) != 1:
        return False
    node = bench.graph.by_id.get(readers[0][0])
    return isinstance(node, Carrier) and isinstance(node.rule, Sum) and _is_plain(bench, node)


def _is_plain(bench: Bench, carrier: Carrier) -> bool:
    """True for a sum of two whose terms have the sum's own, known shape, batch and free sizes aside."""
    whole = bench.shapes.get(carrier.outputs[0])
    parts = [bench.shapes.get(value) for value in bench.inputs(carrier)]
    if whole is None or len(parts) != 2:
        return False
    return all(part is not None and len(part) == len(whole) for part in parts)


def terms_of(bench: Bench, carrier: Carrier, sign: int = 1) -> Iterator[Term]:
    """The summands of a sum, through sums that are nothing but terms of it."""
    rule = carrier.rule
    if not isinstance(rule, Sum) or not _is_plain(bench, carrier):
        return
    for slot, value in enumerate(bench.inputs(carrier)):
        node = bench.producer(value)
        own = sign * rule.signs[slot]
        is_alone = bench.readers(value) == [(carrier.id, slot)] and value not in bench.measured
        if is_alone and isinstance(node, Carrier) and isinstance(node.rule, Sum) and _is_plain(bench, node):
            yield from terms_of(bench, node, own)
        elif is_alone and isinstance(node, Linear) and value not in bench.sealed:
            yield Term(carrier, slot, own, value, bench.input_of(node), linear=bench.linears[node.id])
        elif is_alone and isinstance(node, Norm) and _is_free(bench, node):
            moving = bench.norms[node.id].map
            yield Term(carrier, slot, own, value, bench.input_of(node), norm=node, map=moving or IDENTITY)
        else:
            yield Term(carrier, slot, own, value, value)


def _is_free(bench: Bench, norm: Norm) -> bool:
    state = bench.norms[norm.id]
    return not norm.refusal and not norm.obstacle and state.map is not None


def _merge_one(bench: Bench, carrier: Carrier) -> bool:
    """Merge one pair of terms; False when there is none."""
    terms = list(terms_of(bench, carrier))
    by_source: dict[str, list[Term]] = {}
    for term in terms:
        by_source.setdefault(term.source, []).append(term)
    for group in by_source.values():
        for host in group:
            for guest in group:
                if host is guest or not _may_leave(guest) or not _fits_sum(bench, host, guest):
                    continue
                if _into_linear(bench, host, guest) or _into_norm(bench, host, guest):
                    return True
    return False


def _may_leave(guest: Term) -> bool:
    """True when the sum that reads the guest can be replaced by its other term, which has a plus sign there."""
    rule = guest.at.rule
    return isinstance(rule, Sum) and len(rule.signs) == 2 and rule.signs[1 - guest.slot] > 0


def _fits_sum(bench: Bench, host: Term, guest: Term) -> bool:
    """True when neither term is broadcast over channels: they have the same known number of them."""
    one, two, whole = (bench.shapes.get(value) for value in (host.value, guest.value, host.at.outputs[0]))
    if one is None or two is None or whole is None:
        return False
    axis = _channel_axis(host, guest)
    if axis is None or not axis < len(one) == len(two) == len(whole):
        return axis is None
    return isinstance(one[axis], int) and one[axis] == two[axis] == whole[axis]


def _channel_axis(host: Term, guest: Term) -> int | None:
    for term in (host, guest):
        if term.linear is not None:
            return term.linear.linear.axis
        if term.norm is not None:
            return term.norm.axis
    return None


def _leave(bench: Bench, guest: Term) -> None:
    """Take the guest out of its sum: the sum's other term stands for it."""
    other = bench.inputs(guest.at)[1 - guest.slot]
    bench.redirect(guest.at, other)


# -------------------------------------------------------------------------------------------------- into a linear


def _into_linear(bench: Bench, host: Term, guest: Term) -> bool:
    state = host.linear
    if state is None or state.linear.is_transposed or state.linear.obstacle or state.linear.axis is None:
        return False
    if guest.linear is None and guest.norm is None and not _is_square(state):
        return False
    if sharing_problem(bench, state) is not None:
        return False
    added = _embedded(state, guest)
    if added is None:
        return False
    weights = state.weights
    sign = host.sign * guest.sign
    kernel, bias = (_signed(part, sign) for part in added)
    new = dataclasses.replace(
        weights, weight=add(weights.weight, kernel), bias=_added(weights.bias, bias, weights.channels)
    )
    bench.measure(state)
    if bench.range_problem(state, new, math.inf, 0.0) is not None:
        return False
    state.weights, state.peak, state.bias_peak, state.behind = new, None, None, None
    _settle(bench, guest, state.norms, host.linear.linear.id if host.linear else "")
    if guest.linear is not None:
        state.merged += [guest.linear.linear, *guest.linear.merged]
    _leave(bench, guest)
    return True


def _settle(bench: Bench, guest: Term, norms: list[Norm], id: str) -> None:
    """The norms of a guest are the host's now."""
    if guest.linear is not None:
        norms += guest.linear.norms
        for gone, into in bench.fate.items():
            bench.fate[gone] = [id if target == guest.linear.linear.id else target for target in into]
        bench.drop(guest.linear.linear.id)
    if guest.norm is not None:
        norms += [*bench.norms[guest.norm.id].taken, guest.norm]
        bench.drop(guest.norm.id, [id])


def _is_square(state: LinearState) -> bool:
    return state.weights.channels == state.weights.in_channels


def _embedded(state: LinearState, guest: Term) -> tuple[Expr, Expr] | None:
    """The guest as a kernel of the host's shape and a bias (O,) or (); None where it does not fit."""
    host = state.weights
    if guest.linear is None:
        return _diagonal(state, guest.map)
    linear, other = guest.linear.linear, guest.linear.weights
    if linear.is_transposed or linear.axis != state.linear.axis or linear.obstacle:
        return None
    if linear.weight.dtype != state.linear.weight.dtype or other.out_first != host.out_first:
        return None
    if (other.channels, other.in_channels) != (host.channels, host.in_channels) or other.groups % host.groups:
        return None
    kernel = _regrouped(other, host.groups) if other.groups != host.groups else other.weight
    placed = _placed(kernel, other.window, host)
    return None if placed is None else (placed, other.bias or ZERO)


def _diagonal(state: LinearState, moving: AffineMap) -> tuple[Expr, Expr] | None:
    """`a * x + b` as a kernel with one tap."""
    host, axis = state.weights, state.linear.axis
    if axis is None or not moving.axes <= {axis} or not _is_square(state):
        return None
    if moving.axes and moving.size(axis) != host.channels:
        return None
    scale, shift = (vector(part, axis, host.channels) for part in (moving.scale, moving.shift))
    wide = spread(view(scale, (1,)) if not scale.shape else scale, (host.channels,))
    rank = len(host.weight.shape)
    column = view(wide, (host.channels, 1) + (1,) * (rank - 2))
    alone = Weights(column, None, True, host.channels, host.channels, host.channels, _pointwise(host.window))
    if host.groups == host.channels:
        kernel = column
    else:
        kernel = _regrouped(alone, host.groups)
    placed = _placed(kernel, alone.window, host)
    return None if placed is None else (placed, shift)


def _pointwise(window: Window | None) -> Window | None:
    if window is None:
        return None
    ones = (1,) * len(window.kernel)
    return Window(ones, ones, ones, ((0, 0),) * len(window.kernel))


def _regrouped(w: Weights, groups: int) -> Expr:
    """A weight (O, I/g, *K) as one of fewer groups, zeros between: (O, I/groups, *K)."""
    ratio = w.groups // groups  # groups of the guest in one of the host
    rows, columns, kernel = w.channels // w.groups, w.weight.shape[1], w.weight.shape[2:]
    apart = view(w.weight, (groups, ratio, rows, columns, *kernel))
    last = len(apart.shape) - 1
    # The axis of the guest's groups goes last, becomes the diagonal of a square, and goes back as two axes.
    moved = Permute(apart, (0, *range(2, last + 1), 1))
    square = (*moved.shape[:-1], ratio * ratio)
    diagonal = Embed(moved, square, (0,) * len(square), (1,) * last + (ratio + 1,))
    pairs = view(diagonal, (*square[:-1], ratio, ratio))
    back = Permute(pairs, (0, last, 1, last + 1, *range(2, last)))
    return view(back, (w.channels, ratio * columns, *kernel))


def _placed(kernel: Expr, window: Window | None, host: Weights) -> Expr | None:
    """A kernel put where its taps fall in the host's window; None where they do not, or sizes would differ."""
    if (window is None) != (host.window is None):
        return None
    if window is None or host.window is None:
        return kernel
    large = host.window
    if window.pads is None or large.pads is None or window.stride != large.stride:
        return None  # of two windows that are padded at run time, one may begin where the other does not
    start, step = [0, 0], [1, 1]
    for axis in range(len(large.kernel)):
        place = _place(window, large, axis)
        if place is None:
            return None
        start.append(place[0])
        step.append(place[1])
    target = (*kernel.shape[:2], *large.kernel)
    if target == kernel.shape:
        return kernel
    return Embed(kernel, target, tuple(start), tuple(step))


def _place(small: Window, large: Window, axis: int) -> tuple[int, int] | None:
    """Where tap 0 of the small window falls in the large one along an axis, and how many taps further the next does."""
    if small.pads is None or large.pads is None:
        return None
    k, d = small.kernel[axis], small.dilation[axis]
    size, dilation = large.kernel[axis], large.dilation[axis]
    (begin, end), (large_begin, large_end) = small.pads[axis], large.pads[axis]
    if begin + end - (k - 1) * d != large_begin + large_end - (size - 1) * dilation:
        return None  # another output size
    first, rest = divmod(large_begin - begin, dilation)
    if rest or (k > 1 and d % dilation):
        return None
    step = d // dilation if k > 1 else 1
    return (first, step) if first >= 0 and first + (k - 1) * step < size else None


# ---------------------------------------------------------------------------------------------------- into a norm


def _into_norm(bench: Bench, host: Term, guest: Term) -> bool:
    """`(a1 * x + b1) + (a2 * x + b2)` and `(a * x + b) + x`: the host norm takes the guest in."""
    if host.norm is None or guest.linear is not None or not _same_axis(host.map, guest.map):
        return False
    sign = host.sign * guest.sign
    state = bench.norms[host.norm.id]
    added = AffineMap(_signed(guest.map.scale, sign), _signed(guest.map.shift, sign))
    state.map = AffineMap(add(host.map.scale, added.scale), add(host.map.shift, added.shift))
    state.is_changed = True
    _settle(bench, guest, state.taken, host.norm.id)
    _leave(bench, guest)
    return True


def _same_axis(one: AffineMap, two: AffineMap) -> bool:
    axes = one.axes | two.axes
    return len(axes) <= 1


def _signed(part: Expr, sign: int) -> Expr:
    return part if sign > 0 else negative(part)


def _added(bias: Expr | None, more: Expr, channels: int) -> Expr | None:
    """A bias with more added; None where there is none of either."""
    if more == ZERO:
        return bias
    total = add(bias or ZERO, more)
    return total if total.shape == (channels,) else spread(view(total, (1,)), (channels,))
