"""A linear absorbs the norm behind it.

Algebra: `scale * (W . x + c) + shift = (scale[o] * W[o]) . x + (scale * c + shift)`.
Condition: the norm's axis is the axis of the linear's output channels; the linear's output has the norm as its only
reader (a graph output is a reader); the weight is a constant that nobody else reads and no caller may override; the
folded weight and bias are finite in the weight's dtype.
Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2; it costs nothing at run time.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import shape_of
from bnfold.folding.facts import GRAPH_OUTPUT, Graph, Linear, Norm, Opaque, Reason


def linear_to_norm(graph: Graph) -> Graph | None:
    """Let every linear absorb the norm right behind it where that is legal; None when nothing moves.

    The pairs of one pass share no node and no value, so that none of them makes another one illegal.
    """
    absorbing: dict[str, Linear] = {}
    absorbed: set[str] = set()
    for norm in graph.norms:
        linear = graph.producers.get(norm.input)
        if isinstance(linear, Linear) and norm.is_norm and obstacle(graph, norm) is None:
            absorbing[linear.id] = dataclasses.replace(linear, output=norm.output, absorbed=(*linear.absorbed, norm))
            absorbed.add(norm.id)
    if not absorbing:
        return None
    return graph.with_nodes(tuple(absorbing.get(node.id, node) for node in graph.nodes if node.id not in absorbed))


def obstacle(graph: Graph, norm: Norm) -> Reason | None:
    """Why the norm cannot go into the node before it; None when it can."""
    if norm.refusal or norm.obstacle:
        return norm.refusal or norm.obstacle
    linear = graph.producers.get(norm.input)
    if not isinstance(linear, Linear):
        return _no_linear(graph, norm)
    if linear.obstacle:
        return linear.obstacle
    return _reader_obstacle(graph, linear, norm) or _axis_obstacle(linear, norm) or _range_obstacle(linear, norm)


def absorbed_map(linear: Linear, norms: tuple[Norm, ...]) -> algebra.ChannelMap:
    """The one map that the norms amount to, the first one being next to the linear."""
    maps = [algebra.channel_map(norm.scale, norm.shift, linear.channels) for norm in norms]
    return functools.reduce(lambda inner, outer: algebra.compose(outer, inner), maps)


def _no_linear(graph: Graph, norm: Norm) -> Reason:
    node = graph.producers.get(norm.input)
    if isinstance(node, Norm) and None not in (node.axis, norm.axis) and node.axis != norm.axis:
        return Reason(
            "AXIS_MISMATCH", f"it normalises over axis {norm.axis}, {node.label} before it over axis {node.axis}"
        )
    if isinstance(node, Opaque) and node.why:
        return node.why
    if node is None:
        source = "an input of the graph or a constant"
    else:
        source = f"{node.label}, which is no linear layer"
    return Reason(
        "NO_LINEAR_BEFORE",
        f"its input comes from {source}; a norm is absorbed only by the linear layer right before it",
    )


def _reader_obstacle(graph: Graph, linear: Linear, norm: Norm) -> Reason | None:
    others = [reader for reader in graph.readers[linear.output] if reader != norm.id]
    if others:
        who = graph.label(others[0]) if others[0] != GRAPH_OUTPUT else "a graph output"
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return Reason("OTHER_READER", f"the output of {linear.label} is also read by {who}{more}, unnormalised")
    if graph.tensor_readers.get(linear.weight.key, 1) > 1:
        count = graph.tensor_readers[linear.weight.key]
        return Reason("SHARED_WEIGHT", f"the weight '{linear.weight.name}' of {linear.label} has {count} users")
    return None


def _axis_obstacle(linear: Linear, norm: Norm) -> Reason | None:
    if norm.axis is None:
        return None
    if linear.axis is None:
        return Reason("AXIS_UNKNOWN", f"the rank of the output of {linear.label} is not known, nor its channel axis")
    if linear.axis != norm.axis:
        return Reason(
            "AXIS_MISMATCH",
            f"it normalises over axis {norm.axis}, the output channels of {linear.label} are axis {linear.axis}",
        )
    channels = math.prod(np.broadcast_shapes(shape_of(norm.scale), shape_of(norm.shift)))
    if channels not in (1, linear.channels):
        return Reason("AXIS_MISMATCH", f"it has {channels} channels, {linear.label} has {linear.channels}")
    return None


def _range_obstacle(linear: Linear, norm: Norm) -> Reason | None:
    dtypes = {linear.weight.dtype} | ({linear.bias.dtype} if linear.bias else set())
    if len(dtypes) != 1 or not dtypes <= algebra.LARGEST.keys():
        return Reason("DTYPE", f"{linear.label} has weights of dtype {' and '.join(sorted(dtypes))}")
    dtype = dtypes.pop()
    by = absorbed_map(linear, (*linear.absorbed, norm))
    with np.errstate(all="ignore"):
        weight = algebra.channel_peak(linear) * abs(linear.alpha) * np.abs(by.scale.hi)
        bias = np.abs(algebra.folded_bias(linear, by).hi)
    peak = float(np.max(np.maximum(weight, bias), initial=0.0))
    if not np.isfinite(peak) or peak > algebra.LARGEST[dtype]:
        return Reason("OVERFLOW", f"folded into {linear.label} it would reach {peak:.3g}, beyond the range of {dtype}")
    return None
