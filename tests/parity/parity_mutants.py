"""Folds that are wrong in a known way: formulas that people have shipped, and single faults in a right fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from bnfold.folding.expressions import Expr, Leaf, Op, Scalar, View
from bnfold.folding.statistics import statistics_of
from bnfold.parity.local.sites import Site, output_channels
from bnfold.parity.weights.certificate import expect

Array = np.ndarray[Any, np.dtype[Any]]
Formula = Callable[[Mapping[str, Array]], tuple[Array, Array]]

BATCH = 256  # the number of values that "biased variance" pretends the variance was taken over


def _right(s: Mapping[str, Array]) -> tuple[Array, Array]:
    scale = s["gamma"] / np.sqrt(s["variance"] + s["eps"])
    return scale, s["beta"] - scale * s["mean"]


def _eps_dropped(s: Mapping[str, Array]) -> tuple[Array, Array]:
    return _right({**s, "eps": np.float64(0)})


def _eps_outside(s: Mapping[str, Array]) -> tuple[Array, Array]:
    scale = s["gamma"] / (np.sqrt(s["variance"]) + s["eps"])
    return scale, s["beta"] - scale * s["mean"]


def _biased_variance(s: Mapping[str, Array]) -> tuple[Array, Array]:
    return _right({**s, "variance": s["variance"] * (BATCH - 1) / BATCH})


def _stale_statistics(s: Mapping[str, Array]) -> tuple[Array, Array]:
    return _right({**s, "mean": s["mean"] * 0.9, "variance": s["variance"] * 0.9 + 0.1})


def _lost(part: str, value: float) -> Formula:
    return lambda s: _right({**s, part: np.full_like(s[part], value)})


def _all_float32(s: Mapping[str, Array]) -> tuple[Array, Array]:
    narrow = {key: np.asarray(value, np.float32) for key, value in s.items()}
    return _right(narrow)


FORMULAS: dict[str, Formula] = {
    "eps dropped": _eps_dropped,
    "eps outside the root": _eps_outside,
    "biased variance": _biased_variance,
    "stale statistics": _stale_statistics,
    "beta lost": _lost("beta", 0.0),
    "gamma lost": _lost("gamma", 1.0),
    "mean lost": _lost("mean", 0.0),
    "folded in float32": _all_float32,
}


def values(expr: Expr) -> Array:
    """An expression in float64."""
    match expr:
        case Scalar(value):
            return np.asarray(value, np.float64)
        case Leaf(tensor):
            return tensor.load().astype(np.float64)
        case View(of, shape):
            return values(of).reshape(shape)
        case Op("sqrt", (of,)):
            return np.sqrt(values(of))
        case Op(kind, (left, right)):
            operator = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[kind]
            return operator(values(left), values(right))
    raise AssertionError(expr)


def refold(reference: onnx.ModelProto, folded: onnx.ModelProto, formula: Formula) -> onnx.ModelProto:
    """The fold with the numbers of every site computed again by a formula (in float64, or as the formula says)."""
    mutant = onnx.ModelProto()
    mutant.CopyFrom(folded)
    for site in expect(ir.from_proto(reference)).sites:
        linear = site.linear
        weight = linear.weight.load()
        bias = np.zeros(linear.channels) if linear.bias is None else linear.bias.load().astype(np.float64).reshape(-1)
        scale, shift = np.array(1.0), np.array(0.0)
        for norm in site.absorbed:
            parts = statistics_of(norm)
            assert parts is not None, norm
            s = {key: values(getattr(parts, key)).reshape(-1) for key in ("gamma", "beta", "mean", "variance", "eps")}
            s["eps"] = s["eps"].reshape(())
            outer, more = formula(
                {key: np.broadcast_to(value, ()) if key == "eps" else value for key, value in s.items()}
            )
            scale, shift = outer * scale, outer * shift + more
        scale, shift = (np.broadcast_to(part, (linear.channels,)) for part in (scale, shift))
        channels = output_channels(linear)
        spread = scale[channels].reshape(*channels.shape, *(1,) * (weight.ndim - 2))
        alpha, beta = scale.dtype.type(linear.alpha), scale.dtype.type(linear.beta)
        replace(
            mutant,
            site.weight,
            lambda old, w=weight, a=alpha, f=spread: (w.astype(f.dtype) * (f * a)).astype(old.dtype),
        )
        replace(
            mutant,
            site.bias,
            lambda old, a=scale, b=beta, c=bias, t=shift: (a * (b * c.astype(a.dtype)) + t).astype(old.dtype),
        )
    return mutant


def replace(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> None:
    """Put another tensor of the same name in its place."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name))
            return
    raise KeyError(name)


def tensor(model: onnx.ModelProto, name: str) -> Array:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


def _swap_channels(w: Array) -> Array:
    return w[[1, 0, *range(2, len(w))]]


def _scale_channel(w: Array) -> Array:
    changed = w.copy()
    changed[1] = (w[1].astype(np.float64) * 1.0001).astype(w.dtype)
    return changed


def _one_ulp(w: Array) -> Array:
    changed = w.copy()
    changed.reshape(-1)[-1] = np.nextafter(changed.reshape(-1)[-1], np.array(np.inf, w.dtype))
    return changed


def _negate_channel(w: Array) -> Array:
    changed = w.copy()
    changed[0] = -w[0]
    return changed


def _transposed_taps(w: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(w, -1, -2))


def _nan(w: Array) -> Array:
    changed = w.copy()
    changed.reshape(-1)[0] = np.nan
    return changed


# One fault each, in the weight of the first site (a convolution) unless the name says bias.
FAULTS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "channels swapped": ("weight", _swap_channels),
    "one channel times 1.0001": ("weight", _scale_channel),
    "one channel negated": ("weight", _negate_channel),
    "kernel transposed": ("weight", _transposed_taps),
    "one element one ulp up": ("weight", _one_ulp),
    "one element NaN": ("weight", _nan),
    "bias channels swapped": ("bias", _swap_channels),
    "bias lost": ("bias", np.zeros_like),
    "one bias one ulp up": ("bias", _one_ulp),
}


def spoil(folded: onnx.ModelProto, site: Site, fault: str) -> onnx.ModelProto:
    """A right fold with one fault at a site."""
    mutant = onnx.ModelProto()
    mutant.CopyFrom(folded)
    role, change = FAULTS[fault]
    replace(mutant, site.weight if role == "weight" else site.bias, change)
    return mutant
