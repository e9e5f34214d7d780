"""A float64 interpreter of facts, and of a plan's edits: what a fold must leave as it was.

It knows what the nodes compute and what the edits mean, and nothing of how a map moves. Values are arrays with the
channels on axis 1 for convolutions and on the last axis for dense layers. What facts do not say (where a border is
put, how much is interpolated) stands beside the graph, by node id, as a function of the inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bnfold.folding.carriers import (
    Activation,
    Concat,
    Pool,
    Reshape,
    Select,
    Shuffle,
    Split,
    Sum,
    Transpose,
    Window,
)  # fmt: skip
from bnfold.folding.edits import AddConstant, Bypass, Edit, Redirect, SetAffine, SetSlope, SetWeights
from bnfold.folding.expressions import (
    Embed,
    Expr,
    Given,
    Join,
    Leaf,
    Op,
    Permute,
    Scalar,
    Spread,
    Take,
    Total,
    View,
    walk,
)  # fmt: skip
from bnfold.folding.facts import Carrier, Graph, Linear, Norm, Opaque

Beside = Mapping[str, Callable[..., Any]]

_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


def number(expr: Expr) -> Any:
    """The value of an expression in plain float64."""
    found: dict[int, Any] = {}
    for node in walk(expr):
        found[id(node)] = _number(node, found)
    return found[id(expr)]


def _number(node: Expr, found: Mapping[int, Any]) -> Any:
    match node:
        case Scalar(value):
            return np.float64(value)
        case Leaf(tensor):
            return tensor.load().astype(np.float64)
        case Given(values, shape):
            return np.asarray(values, np.float64).reshape(shape)
        case View(of, shape):
            return found[id(of)].reshape(shape)
        case Permute(of, perm):
            return found[id(of)].transpose(perm)
        case Spread(of, shape):
            return np.broadcast_to(found[id(of)], shape)
        case Take(of, axis, indices):
            return found[id(of)].take(list(indices), axis=axis)
        case Join(parts, axis):
            return np.concatenate([found[id(part)] for part in parts], axis)
        case Total(of, axes):
            return found[id(of)].sum(axis=axes, keepdims=True)
        case Embed(of, shape, start, step):
            full = np.zeros(shape)
            inner = found[id(of)]
            for index in np.ndindex(inner.shape):
                full[tuple(a + i * k for a, i, k in zip(start, index, step, strict=True))] = inner[index]
            return full
        case Op("sqrt", (of,)):
            return np.sqrt(found[id(of)])
        case Op(kind, (left, right)):
            return _BINARY[kind](found[id(left)], found[id(right)])
    raise TypeError(node)


# ------------------------------------------------------------------------------------------------------------ linears


def conv(x: Any, weight: Any, window: Window, groups: int) -> Any:
    """x: (N, I, *S), weight: (O, I/g, *K)."""
    pads = window.pads or ()
    padded = np.pad(x, ((0, 0), (0, 0), *pads))
    spans = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilation, strict=True)]
    sizes = [
        (size - span) // s + 1 for size, span, s in zip(padded.shape[2:], spans, window.stride, strict=True)
    ]  # fmt: skip
    outputs, per_group = weight.shape[0] // groups, weight.shape[1]
    result = np.zeros((x.shape[0], weight.shape[0], *sizes))
    for tap in np.ndindex(*window.kernel):
        cut = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, window.dilation, sizes, window.stride, strict=True)
        )
        data = padded[(slice(None), slice(None), *cut)]
        for g in range(groups):
            part = weight[(slice(g * outputs, (g + 1) * outputs), slice(None), *tap)]
            result[:, g * outputs : (g + 1) * outputs] += np.einsum(
                "oi,ni...->no...", part, data[:, g * per_group : (g + 1) * per_group]
            )
    return result


def conv_transpose(x: Any, weight: Any, window: Window, groups: int) -> Any:
    """x: (N, I, *S), weight: (I, O/g, *K): every input spreads its kernel over the output."""
    pads = window.pads or ()
    extra = window.output_padding or (0,) * len(window.kernel)
    full = [
        (size - 1) * s + (k - 1) * d + 1 + more
        for size, s, k, d, more in zip(x.shape[2:], window.stride, window.kernel, window.dilation, extra, strict=True)
    ]
    inputs, per_group = x.shape[1] // groups, weight.shape[1]
    result = np.zeros((x.shape[0], per_group * groups, *full))
    for tap in np.ndindex(*window.kernel):
        cut = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, window.dilation, x.shape[2:], window.stride, strict=True)
        )
        for g in range(groups):
            part = weight[(slice(g * inputs, (g + 1) * inputs), slice(None), *tap)]
            result[(slice(None), slice(g * per_group, (g + 1) * per_group), *cut)] += np.einsum(
                "io,ni...->no...", part, x[:, g * inputs : (g + 1) * inputs]
            )
    trimmed = tuple(slice(begin, size - end) for (begin, end), size in zip(pads, full, strict=True))
    return result[(slice(None), slice(None), *trimmed)]


def linear(node: Linear, weight: Any, bias: Any, window: Window | None, groups: int, x: Any) -> Any:
    """A linear with these numbers."""
    if window is None:
        y = x @ (weight.T if node.out_first else weight)
        return y if bias is None else y + bias
    y = (conv if node.out_first else conv_transpose)(x, weight, window, groups)
    return y if bias is None else y + bias.reshape((1, -1) + (1,) * (y.ndim - 2))


# ----------------------------------------------------------------------------------------------------------- carriers


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(np.minimum(x, 300)))),
}


def carry(node: Carrier, arrays: list[Any], beside: Beside) -> list[Any]:
    """What a carrier makes of its inputs."""
    if node.id in beside:
        made = beside[node.id](*arrays)
        return list(made) if isinstance(made, tuple) else [made]
    x = arrays[0]
    match node.rule:
        case Activation("leaky_relu", slope):
            return [np.where(x > 0, x, x * slope)]
        case Activation(function, _):
            return [FUNCTIONS[function](x)]
        case Concat(axis):
            return [np.concatenate(arrays, axis)]
        case Sum(signs):
            return [sum(sign * array for sign, array in zip(signs, arrays, strict=True))]
        case Transpose(perm):
            return [x.transpose(perm)]
        case Select(axes):
            for axis, indices in axes:
                x = x.take(list(indices or ()), axis=axis)
            return [x]
        case Split(axis, sizes):
            return np.split(x, np.cumsum(sizes)[:-1], axis)
        case Shuffle():
            return [shuffle(x, node.rule)]
        case Pool():
            return [pool(x, node.rule)]
        case Reshape():
            raise KeyError(f"{node.id}: a reshape needs its function beside the graph")
    raise TypeError(node)


def shuffle(x: Any, rule: Shuffle) -> Any:
    """Pixel shuffle of (N, C, H, W) by blocks of r by r, both orders of channels, both ways."""
    r = round(rule.factor**0.5)
    n, c, h, w = x.shape
    if rule.up:
        small = c // rule.factor
        if rule.channel_first:
            return x.reshape(n, small, r, r, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, small, h * r, w * r)
        return x.reshape(n, r, r, small, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, small, h * r, w * r)
    apart = x.reshape(n, c, h // r, r, w // r, r)
    order = (0, 1, 3, 5, 2, 4) if rule.channel_first else (0, 3, 5, 1, 2, 4)
    return apart.transpose(order).reshape(n, c * rule.factor, h // r, w // r)


def pool(x: Any, rule: Pool) -> Any:
    """Pools over windows of (N, C, *S), or over whole axes."""
    reduce = np.max if rule.mode == "max" else np.mean
    if rule.window is None:
        return reduce(x, axis=rule.axes, keepdims=rule.keepdims)
    window = rule.window
    outside = -np.inf if rule.mode == "max" else np.nan
    if rule.mode == "average" and rule.counts_padding:
        outside = 0.0
    padded = np.pad(x, ((0, 0), (0, 0), *(window.pads or ())), constant_values=outside)
    sizes = [(n - k) // s + 1 for n, k, s in zip(padded.shape[2:], window.kernel, window.stride, strict=True)]
    result = np.empty((*x.shape[:2], *sizes))
    for place in np.ndindex(*sizes):
        cut = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, window.stride, window.kernel, strict=True))
        part = padded[(slice(None), slice(None), *cut)].reshape(*x.shape[:2], -1)
        value = part.max(-1) if rule.mode == "max" else np.nanmean(part, -1)
        result[(slice(None), slice(None), *place)] = value
    return result


# -------------------------------------------------------------------------------------------------------------- graphs


@dataclasses.dataclass
class _Folded:
    """A graph with edits carried out: other numbers for some nodes, other values for some readers."""

    weights: dict[str, SetWeights] = dataclasses.field(default_factory=dict)
    affine: dict[str, SetAffine] = dataclasses.field(default_factory=dict)
    slopes: dict[str, SetSlope] = dataclasses.field(default_factory=dict)
    added: dict[str, Any] = dataclasses.field(default_factory=dict)
    alias: dict[str, str] = dataclasses.field(default_factory=dict)

    def value(self, name: str) -> str:
        while name in self.alias:
            name = self.alias[name]
        return name


def _carried_out(edits: tuple[Edit, ...]) -> _Folded:
    done = _Folded()
    for edit in edits:
        match edit:
            case SetWeights():
                done.weights[edit.linear.id] = edit
            case Bypass():
                done.alias[edit.norm.output] = edit.norm.input
            case Redirect():
                done.alias[edit.carrier.outputs[0]] = edit.to
            case SetAffine():
                done.affine[edit.norm.id] = edit
            case AddConstant():
                done.added[done.value(edit.value)] = number(edit.constant)
            case SetSlope():
                done.slopes[edit.carrier.id] = edit
    return done


def run(graph: Graph, inputs: Mapping[str, Any], beside: Beside, edits: tuple[Edit, ...] = ()) -> list[Any]:
    """The outputs of a graph, with a plan's edits carried out."""
    done = _carried_out(edits)
    held: dict[str, Any] = dict(inputs)

    def store(name: str, array: Any) -> None:
        held[name] = array + done.added[name] if name in done.added else array

    needed = _needed(graph, done)
    for node in graph.nodes:
        if node.id not in needed:
            continue
        match node:
            case Linear():
                store(node.output, _linear(node, done, held[done.value(node.input)]))
            case Norm():
                edit = done.affine.get(node.id)
                source = node if edit is None else edit.norm  # which may be composed of several nodes
                store(node.output, _norm(node, edit, held[done.value(source.input)]))
            case Carrier():
                arrays = [held[done.value(name)] for name in node.inputs]
                results = [_sloped(done.slopes[node.id], arrays[0])] if node.id in done.slopes else None
                for name, array in zip(node.outputs, results or carry(node, arrays, beside), strict=True):
                    store(name, array)
            case Opaque():
                made = beside[node.id](*(held[done.value(name)] for name in node.inputs))
                store(node.outputs[0], made)
    return [held[done.value(name)] for name in graph.outputs]


def _needed(graph: Graph, done: _Folded) -> set[str]:
    """The nodes that the outputs depend on: an adapter removes all others."""
    wanted = {done.value(name) for name in graph.outputs}
    needed: set[str] = set()
    for node in reversed(graph.nodes):
        outputs = node.outputs if isinstance(node, Carrier | Opaque) else (node.output,)
        inputs = node.inputs if isinstance(node, Carrier | Opaque) else (node.input,)
        if wanted & set(outputs):
            needed.add(node.id)
            if node.id in done.affine:
                inputs = (done.affine[node.id].norm.input,)
            wanted |= {done.value(name) for name in inputs}
    return needed


def _linear(node: Linear, done: _Folded, x: Any) -> Any:
    edit = done.weights.get(node.id)
    if edit is not None:
        bias = None if edit.bias is None else number(edit.bias)
        return linear(node, number(edit.weight), bias, edit.window, edit.groups, x)
    weight = node.alpha * node.weight.load().astype(np.float64)
    bias = None if node.bias is None else node.beta * node.bias.load().astype(np.float64)
    return linear(node, weight, bias, node.window, node.groups, x)


def _norm(node: Norm, edit: SetAffine | None, x: Any) -> Any:
    source = node if edit is None else edit
    axis = node.axis if edit is None else edit.norm.axis
    scale, shift = number(source.scale), number(source.shift)
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    return x * _shaped(scale, shape) + _shaped(shift, shape)


def _shaped(part: Any, shape: list[int]) -> Any:
    return part.reshape(shape) if np.ndim(part) else part


def _sloped(edit: SetSlope, x: Any) -> Any:
    shape = [1] * x.ndim
    shape[edit.axis] = -1
    return np.where(x > 0, x, x * number(edit.slope).reshape(shape))
