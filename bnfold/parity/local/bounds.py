"""How far rounding may take a linear and its norms from the exact result: running error analysis, channel by channel.

Everything a span computes is bounded by two affine functions of M = |W| * |x|, the linear applied to absolute values:
every exact intermediate value is at most `size` = p*M + q, and the computed one is at most `error` = r*M + t away from
it. Each step of the span maps (p, q, r, t) onwards (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
sections 3.1 to 3.3). The standard model: fl(x op y) = (x op y)(1 + d) + h, |d| <= u, |h| <= eta/2, h = 0 for additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.errors import ParityError
from bnfold.folding.expressions import Array, Expr, Given, Leaf, Op, Scalar, Spread, Take, View, leaves
from bnfold.folding.facts import Linear, Norm
from bnfold.parity.weights.exact import FORMATS, Format

F64 = np.ndarray[Any, np.dtype[np.float64]]

_FLOAT64_SLACK = 2.0**-50  # of the terms, for the float64 arithmetic of this module itself
# Roundings that touch a term of BatchNormalization, whichever way it is written: gamma / sqrt(var + eps) takes 4, times
# mean 5, minus it 6, times x 5 and plus 6; (x - mean) / sqrt(var + eps) * gamma + beta takes 6. Two to spare.
BATCH_NORM_ROUNDINGS = 8


@dataclass(frozen=True)
class Rounding:
    """The arithmetic of a span. store: unit roundoff of values between nodes; accumulate: that of sums inside one.

    eta, inner_eta: the smallest subnormal of either; results below the normal numbers are rounded, not flushed.
    operands: unit roundoff of what the two factors of a product are rounded to first (TF32: 2**-11), 0 where they are
    taken as they are.
    """

    store: float
    accumulate: float
    eta: float
    inner_eta: float
    operands: float = 0.0

    @staticmethod
    def of(form: Format, operands: float = 0.0) -> Rounding:
        """float32 and float64 accumulate in themselves, half formats in float32 (as ONNX Runtime's CPU kernels do)."""
        inner = form if form.bits > 20 else FORMATS["float32"]
        return Rounding(form.unit_roundoff, inner.unit_roundoff, form.smallest, inner.smallest, operands)

    @property
    def step(self) -> float:
        """Relative error of one elementwise operation: computed in the inner format, then stored."""
        return self.store + 2 * self.accumulate

    def sums(self, roundings: int) -> float:
        """gamma(n) = n*u / (1 - n*u) in the inner format, then one rounding to store; ParityError if n*u >= 1."""
        product = roundings * self.accumulate
        if product >= 1:
            raise ParityError(
                f"a sum of {roundings} terms at unit roundoff {self.accumulate:.2g} has no rounding bound"
            )
        gamma = product / (1 - product)
        return gamma * (1 + self.store) + self.store

    def products(self, roundings: int) -> float:
        """As `sums`, of products whose factors are rounded first."""
        return (1 + self.operands) ** 2 * (1 + self.sums(roundings)) - 1


@dataclass(frozen=True)
class Affine:
    """size = p*M + q and error = r*M + t, each a vector over the output channels, float64, not negative."""

    p: F64
    q: F64
    r: F64
    t: F64

    def plus(self, value: F64, error: F64, by: Rounding) -> Affine:
        """After adding or subtracting a constant known up to `error`."""
        q = self.q + np.abs(value)
        r, t = self.r, self.t + error
        return Affine(self.p, q, r + by.step * (self.p + r), t + by.step * (q + t))

    def times(self, value: F64, error: F64, by: Rounding) -> Affine:
        """After multiplying by a constant known up to `error`."""
        size = np.abs(value)
        r, t = self.r * (size + error) + self.p * error, self.t * (size + error) + self.q * error
        p, q = self.p * size, self.q * size
        return Affine(p, q, r + by.step * (p + r), t + by.step * (q + t) + by.eta)

    def over(self, value: F64, error: F64, by: Rounding) -> Affine:
        """After dividing by a constant known up to `error`: |z'/c' - z/c| <= |z' - z|/|c'| + |z||c' - c|/(|c||c'|)."""
        size = np.abs(value)
        least = size - error
        if not np.all(least > 0):
            raise ParityError("a divisor of the norm may round to zero; the span has no rounding bound")
        p, q = self.p / size, self.q / size
        r, t = (self.r + p * error) / least, (self.t + q * error) / least
        return Affine(p, q, r + by.step * (p + r), t + by.step * (q + t) + by.eta)

    def batch_norm(self, norm: Norm, by: Rounding) -> Affine:
        """After BatchNormalization in inference mode, whose own roundings are BATCH_NORM_ROUNDINGS."""
        if norm.statistics is None:
            raise ParityError(f"{norm.label} is neither BatchNormalization nor a chain of elementwise steps")
        given = norm.statistics
        gamma, (beta, beta_error), (mean, mean_error), variance, (eps, _) = (
            constant(part, by) for part in (given.gamma, given.beta, given.mean, given.variance, given.eps)
        )
        scale, scale_error = normalising(gamma, variance, eps)
        own = by.sums(BATCH_NORM_ROUNDINGS)
        mean, beta = np.abs(mean), np.abs(beta)
        p, q = scale * self.p, scale * (self.q + mean) + beta
        # What the statistics themselves are off by, where the graph computes them.
        r = (scale + scale_error) * self.r + scale_error * self.p
        t = (scale + scale_error) * (self.t + mean_error) + scale_error * (self.q + mean) + beta_error
        # A scale that is subnormal is off by eta, and so are the products; each meets one of these factors.
        lost = by.eta * (self.q + self.t + mean + mean_error + np.abs(gamma[0]) + gamma[1] + 4)
        return Affine(p, q, r + own * (p + r) + by.eta * (self.p + self.r), t + own * (q + t) + lost)


def normalising(gamma: tuple[F64, F64], variance: tuple[F64, F64], eps: F64 | float) -> tuple[F64, F64]:
    """|gamma| / sqrt(variance + eps), and how far errors of gamma and variance may take it from there.

    gamma, variance: (value, error). Raises ParityError where an error may take variance + eps to zero or below.
    """
    least = variance[0] + eps - variance[1]
    if np.any((least <= 0) & (variance[1] > 0)):
        raise ParityError("a variance may round to zero; the norm has no rounding bound")
    scale = np.abs(gamma[0]) / np.sqrt(variance[0] + eps)
    return scale, (np.abs(gamma[0]) + gamma[1]) / np.sqrt(least) - scale


def fan_in(linear: Linear) -> int:
    """K: the most products that any output of the linear sums."""
    shape = linear.weight.shape
    if linear.out_first:
        return int(np.prod(shape[1:]))
    return int(np.prod([shape[0] // linear.groups, *shape[2:]]))


def start(linear: Linear, by: Rounding) -> Affine:
    """After the linear: K products, K sums, alpha, beta and the bias touch a term at most K + 4 times."""
    own = by.products(fan_in(linear) + 4)
    bias = np.zeros(linear.channels)
    if linear.bias is not None:
        stored = linear.bias.load().astype(np.float64).reshape(-1)
        bias = np.broadcast_to(np.abs(linear.beta * stored), (linear.channels,)).astype(np.float64)
    p = np.full(linear.channels, abs(linear.alpha))
    lost = (fan_in(linear) + 4) * by.inner_eta * (1 + abs(linear.alpha)) + by.eta
    return Affine(p, bias, own * p, own * bias + lost)


def through(norms: tuple[Norm, ...], begin: Affine, by: Rounding) -> Affine:
    """After the norms, each as the source wrote it. Raises ParityError for one whose steps are not known."""
    state = begin
    with np.errstate(all="ignore"):
        for norm in norms:
            if not norm.is_elementwise:
                state = state.batch_norm(norm, by)
                continue
            if not norm.steps:
                raise ParityError(f"{norm.label} does not say its steps; its span has no rounding bound")
            for step in norm.steps:
                value, error = constant(step.by, by)
                match step.kind:
                    case "add" | "sub":
                        state = state.plus(value, error, by)
                    case "mul":
                        state = state.times(value, error, by)
                    case "div":
                        state = state.over(value, error, by)
    return state


def folded(linear: Linear, scale: F64, bias: F64, by: Rounding) -> Affine:
    """After the folded linear. scale: |S * alpha|, bias: |the exact folded bias|, both (O,).

    Each weight and bias is rounded once (to store), then K products and K sums touch a term at most K + 2 times. A
    MatMul stores its result before the node that adds the bias does. A folded weight that is subnormal is off by eta/2
    whatever its size: `lost_weights` puts that into M.
    """
    roundings = fan_in(linear) + 2
    stores = 2 if linear.kind == "MatMul" else 1
    own = (1 + by.store) ** stores * (1 + by.products(roundings)) - 1
    lost = (roundings + 1) * by.inner_eta + (1 + stores) * by.eta  # of the sum; of the stored results and of the bias
    return Affine(scale, bias, own * scale, own * bias + lost)


def lost_weights(weight: Array, scale: Array, share: Array, form: Format) -> F64:
    """What to add to |W| so that share * M also covers folded weights that are rounded to a subnormal.

    weight: |W| in float64; scale: |S * alpha|, and share: the part of M that the bound is, each broadcast against it.
    """
    with np.errstate(all="ignore"):
        product = weight * scale
        small = (product < 2.0**form.least_exponent) & (weight > 0) & (scale > 0)
        lost = form.smallest / 2 * (1 / share + 1 / scale)  # off by half of it, then summed
        # Of a dead channel, gamma zero, `scale` is the least float64: its weights are zero, and nothing is lost.
        return np.where(small & np.isfinite(lost), lost, 0.0)


def constant(expr: Expr, by: Rounding) -> tuple[F64, F64]:
    """(value, error): a constant of the graph, and how far the graph's own computing of it may take it from there."""
    forms = [FORMATS[leaf.dtype] for leaf in leaves(expr) if leaf.dtype in FORMATS]
    coarsest = max([by.store, *(form.unit_roundoff for form in forms)])
    return _running(expr, coarsest, max([by.eta, *(form.smallest for form in forms)]))


def _running(expr: Expr, u: float, eta: float) -> tuple[F64, F64]:
    match expr:
        case Scalar(number):
            return np.asarray(number, np.float64), np.zeros(())
        case Leaf(tensor):
            stored = tensor.load().astype(np.float64)
            return stored, np.zeros_like(stored)
        case Given(values, shape):
            made = np.asarray(values, np.float64).reshape(shape)
            return made, np.zeros_like(made)
        case View(of, shape):
            value, error = _running(of, u, eta)
            return value.reshape(shape), error.reshape(shape)
        case Spread(of, shape):
            value, error = _running(of, u, eta)
            return np.broadcast_to(value, shape), np.broadcast_to(error, shape)
        case Take(of, axis, indices):
            value, error = _running(of, u, eta)
            return value.take(indices, axis=axis), error.take(indices, axis=axis)
        case Op("sqrt", (only,)):
            return _root(*_running(only, u, eta), u)
        case Op(kind, args):
            return _binary(kind, _running(args[0], u, eta), _running(args[1], u, eta), u, eta)
        case _:
            raise ParityError("a constant of the norm is rearranged in a way that has no rounding bound yet")


def _root(value: F64, error: F64, u: float) -> tuple[F64, F64]:
    root = np.sqrt(value)
    low = np.sqrt(np.maximum(value - error, 0.0))
    spread = np.where(error > 0, error / np.maximum(root + low, np.finfo(np.float64).tiny), 0.0)
    carried = np.minimum(spread, np.sqrt(error))
    return root, carried + u * (root + carried) + _FLOAT64_SLACK * root


def _binary(kind: str, left: tuple[F64, F64], right: tuple[F64, F64], u: float, eta: float) -> tuple[F64, F64]:
    (a, ea), (b, eb) = left, right
    if kind in ("add", "sub"):
        value = a + b if kind == "add" else a - b
        carried, terms, lost = ea + eb, np.abs(a) + np.abs(b), 0.0
    elif kind == "mul":
        value = a * b
        carried, terms, lost = np.abs(a) * eb + np.abs(b) * ea + ea * eb, np.abs(value), eta
    else:
        least = np.abs(b) - eb
        if not np.all(least > 0):
            raise ParityError("a constant of the norm divides by what may round to zero; it has no rounding bound")
        value = a / b
        carried, terms, lost = (ea + np.abs(value) * eb) / least, np.abs(value), eta
    return np.asarray(value), carried + u * (np.abs(value) + carried) + _FLOAT64_SLACK * terms + lost
