"""Per-channel affine maps in double-double arithmetic, rounded once to the weights' dtype.

A double-double number is an unevaluated sum hi + lo of two float64 with |lo| <= ulp(hi)/2: about 106 significant
bits. The error-free transformations are those of Dekker (Numerische Mathematik 18, 1971) and Knuth (TAOCP 2,
4.2.2); the compound operations follow Hida, Li and Bailey (ARITH-15, 2001).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.folding.expressions import (
    Array,
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
    operands,
    walk,
)
from bnfold.folding.facts import Linear

F64 = np.ndarray[Any, np.dtype[np.float64]]

_SPLITTER = 134217729.0  # 2**27 + 1, Veltkamp's constant for 53 bits
_HUGE, _TINY = 2.0**990, 2.0**-960  # beyond these splitting overflows, or the error of a product underflows

# Largest finite value of each dtype that a fold can be rounded to (IEEE 754; bfloat16: 8 bits of significand).
LARGEST = {
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
    "float32": 3.4028234663852886e38,
    "float64": 1.7976931348623157e308,
}

_BLOCK = 1 << 22  # elements folded at a time, so that the float64 copies of a huge weight stay small


@dataclass(frozen=True)
class DoubleDouble:
    """An array of numbers hi + lo, both float64 of one shape."""

    hi: F64
    lo: F64

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self.hi.shape)

    def reshape(self, shape: tuple[int, ...]) -> DoubleDouble:
        """The same numbers under another shape."""
        return DoubleDouble(self.hi.reshape(shape), self.lo.reshape(shape))

    def is_finite(self) -> bool:
        """True when every number is finite."""
        return bool(np.isfinite(self.hi).all() and np.isfinite(self.lo).all())


def exact(values: Array | float) -> DoubleDouble:
    """Numbers of at most 53 significant bits, as they are. values: any shape, float16 to float64 or bfloat16."""
    hi = np.asarray(values).astype(np.float64)
    return DoubleDouble(hi, np.zeros_like(hi))


def _quick_sum(a: F64, b: F64) -> DoubleDouble:
    s = a + b
    return DoubleDouble(s, np.where(np.isfinite(s), b - (s - a), 0.0))


def _two_sum(a: F64, b: F64) -> DoubleDouble:
    s = a + b
    t = s - a
    return DoubleDouble(s, (a - (s - t)) + (b - t))


def _split(a: F64) -> tuple[F64, F64]:
    t = _SPLITTER * a
    high = t - (t - a)
    return high, a - high


def _two_product(a: F64, b: F64) -> DoubleDouble:
    p = a * b
    if _is_ordinary(a, b, p):
        return DoubleDouble(p, _product_error(a, b, p))
    # The same on significands in [0.5, 1), where splitting cannot overflow nor the error underflow.
    (a, a_exponent), (b, b_exponent) = np.frexp(a), np.frexp(b)
    exponent = a_exponent + b_exponent
    product = a * b
    error = _product_error(a, b, product) + (product - np.ldexp(p, -exponent))
    return DoubleDouble(p, np.where(np.isfinite(p), np.ldexp(error, exponent), 0.0))


def _product_error(a: F64, b: F64, p: F64) -> F64:
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    return ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _is_ordinary(a: F64, b: F64, p: F64) -> bool:
    largest = max(float(np.max(np.abs(x), initial=0.0)) for x in (a, b))
    smallest = float(np.min(np.abs(p), initial=1.0, where=p != 0.0))
    return largest <= _HUGE and smallest >= _TINY


def add(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x + y."""
    s = _two_sum(x.hi, y.hi)
    t = _two_sum(x.lo, y.lo)
    first = _quick_sum(s.hi, s.lo + t.hi)
    return _quick_sum(first.hi, first.lo + t.lo)


def negative(x: DoubleDouble) -> DoubleDouble:
    """-x."""
    return DoubleDouble(-x.hi, -x.lo)


def sub(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x - y."""
    return add(x, negative(y))


def mul(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x * y."""
    p = _two_product(x.hi, y.hi)
    return _quick_sum(p.hi, p.lo + (x.hi * y.lo + x.lo * y.hi))


def div(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """x / y, by three steps of long division."""
    first = x.hi / y.hi
    rest = sub(x, mul(y, exact(first)))
    second = rest.hi / y.hi
    rest = sub(rest, mul(y, exact(second)))
    third = rest.hi / y.hi
    return add(_quick_sum(first, second), exact(third))


def sqrt(x: DoubleDouble) -> DoubleDouble:
    """The square root, by two steps of Newton's method from the float64 root; NaN below zero."""
    small = x.hi < _TINY  # there the square of the root would lose bits below the range
    x = DoubleDouble(*(np.where(small, part * 2.0**200, part) for part in (x.hi, x.lo)))
    root = np.sqrt(x.hi)
    rest = sub(x, _two_product(root, root))
    step = np.divide(rest.hi, 2.0 * root, out=np.zeros_like(root), where=root != 0.0)
    refined = _quick_sum(root, step)
    rest = sub(x, mul(refined, refined))
    step = np.divide(rest.hi, 2.0 * root, out=np.zeros_like(root), where=root != 0.0)
    found = add(refined, exact(step))
    return DoubleDouble(*(np.where(small, part * 2.0**-100, part) for part in (found.hi, found.lo)))


def evaluate(expr: Expr, memo: dict[int, Any] | None = None) -> DoubleDouble:
    """The value of an expression over constants. Overflow and invalid operations give inf and NaN, silently."""
    found: dict[int, DoubleDouble] = {}
    with np.errstate(all="ignore"):
        for node in walk(expr):
            found[id(node)] = _node(node, found)
    return found[id(expr)]


def _both(x: DoubleDouble, change: Any) -> DoubleDouble:
    return DoubleDouble(change(x.hi), change(x.lo))


def _node(node: Expr, found: dict[int, DoubleDouble]) -> DoubleDouble:
    of = [found[id(part)] for part in operands(node)]
    match node:
        case Scalar(value):
            return exact(value)
        case Leaf(tensor):
            return exact(tensor.load())
        case Given(values, shape):
            return exact(np.asarray(values).reshape(shape))
        case View(_, shape):
            return of[0].reshape(shape)
        case Permute(_, perm):
            return _both(of[0], lambda x: x.transpose(perm))
        case Spread(_, shape):
            return _both(of[0], lambda x: np.broadcast_to(x, shape))
        case Take(_, axis, indices):
            return _both(of[0], lambda x: x.take(indices, axis=axis))
        case Join(_, axis):
            return DoubleDouble(np.concatenate([x.hi for x in of], axis), np.concatenate([x.lo for x in of], axis))
        case Total(_, axes):
            return _total(of[0], axes)
        case Embed(_, shape, start, step):
            return _both(of[0], lambda x: _embedded(x, shape, start, step))
        case Op("sqrt", _):
            return sqrt(of[0])
        case Op(kind, _):
            return _BINARY[kind](of[0], of[1])


def _embedded(x: F64, shape: tuple[int, ...], start: tuple[int, ...], step: tuple[int, ...]) -> F64:
    full = np.zeros(shape)
    full[tuple(slice(a, a + (n - 1) * k + 1, k) for a, n, k in zip(start, x.shape, step, strict=True))] = x
    return full


def _total(x: DoubleDouble, axes: tuple[int, ...]) -> DoubleDouble:
    rest = tuple(axis for axis in range(x.hi.ndim) if axis not in axes)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(x.hi.shape))
    count = int(np.prod([x.hi.shape[axis] for axis in axes]))
    hi, lo = (part.transpose(*axes, *rest).reshape(count, *[x.hi.shape[axis] for axis in rest]) for part in (x.hi, x.lo))
    total = DoubleDouble(hi, lo)
    while count > 1:
        half = count // 2
        first = add(DoubleDouble(total.hi[:half], total.lo[:half]), DoubleDouble(total.hi[half : 2 * half], total.lo[half : 2 * half]))
        total = DoubleDouble(np.concatenate([first.hi, total.hi[2 * half :]]), np.concatenate([first.lo, total.lo[2 * half :]]))
        count = total.hi.shape[0]
    return DoubleDouble(total.hi[0].reshape(shape), total.lo[0].reshape(shape))


def rounded(expr: Expr, dtype: str) -> Array:
    """The nearest values of a dtype, rounded once."""
    import ml_dtypes

    target = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    return round_to(evaluate(expr), target)


def magnitude(expr: Expr) -> F64:
    """The values in plain float64."""
    found: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for node in walk(expr):
            found[id(node)] = _plain(node, [found[id(part)] for part in operands(node)])
    return np.asarray(found[id(expr)], np.float64)


def _plain(node: Expr, of: list[Any]) -> Any:
    match node:
        case Scalar(value):
            return np.float64(value)
        case Leaf(tensor):
            return tensor.load().astype(np.float64)
        case Given(values, shape):
            return np.asarray(values).reshape(shape)
        case View(_, shape):
            return of[0].reshape(shape)
        case Permute(_, perm):
            return of[0].transpose(perm)
        case Spread(_, shape):
            return np.broadcast_to(of[0], shape)
        case Take(_, axis, indices):
            return of[0].take(indices, axis=axis)
        case Join(_, axis):
            return np.concatenate(of, axis)
        case Total(_, axes):
            return of[0].sum(axis=axes, keepdims=True)
        case Embed(_, shape, start, step):
            return _embedded(of[0], shape, start, step)
        case Op("sqrt", _):
            return np.sqrt(of[0])
        case Op(kind, _):
            return _PLAIN[kind](of[0], of[1])


_PLAIN = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


_BINARY = {"add": add, "sub": sub, "mul": mul, "div": div}


@dataclass(frozen=True)
class ChannelMap:
    """`y = scale * x + shift` per channel; scale and shift have shape (C,)."""

    scale: DoubleDouble
    shift: DoubleDouble

    def is_finite(self) -> bool:
        """True when scale and shift are finite in every channel."""
        return self.scale.is_finite() and self.shift.is_finite()


def channel_map(scale: Expr, shift: Expr, channels: int) -> ChannelMap:
    """The map of a norm over `channels` channels; a scalar scale or shift holds for every channel."""
    return ChannelMap(_vector(evaluate(scale), channels), _vector(evaluate(shift), channels))


def _vector(x: DoubleDouble, channels: int) -> DoubleDouble:
    hi, lo = (np.broadcast_to(part.reshape(-1), (channels,)) for part in (x.hi, x.lo))
    return DoubleDouble(hi, lo)


def compose(outer: ChannelMap, inner: ChannelMap) -> ChannelMap:
    """outer after inner."""
    with np.errstate(all="ignore"):
        return ChannelMap(mul(outer.scale, inner.scale), add(mul(outer.scale, inner.shift), outer.shift))


def round_to(x: DoubleDouble, dtype: np.dtype[Any]) -> Array:
    """The nearest values of `dtype` (ties to even), rounded once. dtype: float16, bfloat16, float32 or float64.

    Narrowing goes through round-to-odd (Boldo and Melquiond, IEEE TC 57, 2008), which makes the second rounding
    harmless: numpy narrows float64 to float32 and float16 once, but ml_dtypes narrows to bfloat16 via float32.
    """
    with np.errstate(all="ignore"):
        if dtype.name == "float64":
            return x.hi + x.lo
        values: Array = _to_odd(x.hi, x.lo)
        if dtype.name == "bfloat16":
            narrow = values.astype(np.float32)
            values = _to_odd(narrow, values - narrow.astype(np.float64))
        return values.astype(dtype)


def _to_odd(value: Array, rest: Array) -> Array:
    """value + rest, of which value is the nearest, moved to the neighbour with an odd significand if inexact."""
    bits: np.ndarray[Any, np.dtype[np.integer[Any]]]
    bits = value.view(np.int64 if value.dtype == np.float64 else np.int32)
    towards = np.where(rest > 0, np.inf, -np.inf).astype(value.dtype)
    move = (rest != 0) & (bits & 1 == 0) & np.isfinite(value)
    return np.where(move, np.nextafter(value, towards), value)


def _per_channel(vector: F64, linear: Linear, rank: int) -> F64:
    """A vector over output channels, shaped to broadcast against the grouped weight of `_grouped`."""
    spatial = (1,) * (rank - 2)
    if linear.out_first:
        return vector.reshape((linear.channels, 1, *spatial))
    per_group = linear.channels // linear.groups
    return vector.reshape((linear.groups, 1, per_group, *spatial))


def _grouped(weight: Array, linear: Linear) -> Array:
    """(O, I/g, *K) as it is; (I, O/g, *K) as (g, I/g, O/g, *K), so that output channels broadcast."""
    if linear.out_first:
        return weight
    return weight.reshape((linear.groups, weight.shape[0] // linear.groups, *weight.shape[1:]))


def channel_peak(linear: Linear) -> F64:
    """max|W| per output channel, shape (O,), float64."""
    grouped = np.abs(_grouped(linear.weight.load(), linear).astype(np.float64))
    if linear.out_first:
        return np.asarray(grouped.max(axis=tuple(range(1, grouped.ndim)), initial=0.0))
    return np.asarray(grouped.max(axis=(1, *range(3, grouped.ndim)), initial=0.0).reshape(linear.channels))


def fold_weight(linear: Linear, by: ChannelMap) -> Array:
    """The weight that absorbs `by` (and the linear's alpha): `scale[o] * alpha * W[o]`, in W's dtype and layout."""
    weight = linear.weight.load()
    grouped = _grouped(weight, linear)
    scale = mul(by.scale, exact(linear.alpha))
    hi, lo = (np.broadcast_to(_per_channel(part, linear, weight.ndim), grouped.shape) for part in (scale.hi, scale.lo))
    folded = np.empty(grouped.shape, weight.dtype)
    rows = max(1, _BLOCK // max(1, grouped[:1].size))
    for start in range(0, grouped.shape[0], rows):
        part = slice(start, start + rows)
        with np.errstate(all="ignore"):
            folded[part] = round_to(mul(exact(grouped[part]), DoubleDouble(hi[part], lo[part])), weight.dtype)
    return folded.reshape(weight.shape)


def folded_bias(linear: Linear, by: ChannelMap) -> DoubleDouble:
    """The bias that absorbs `by` (and the linear's beta): `scale * beta * c + shift`, shape (O,), not yet rounded."""
    if linear.bias is None:
        return by.shift
    bias = _vector(exact(linear.bias.load()), linear.channels)
    with np.errstate(all="ignore"):
        return add(mul(by.scale, mul(exact(linear.beta), bias)), by.shift)
