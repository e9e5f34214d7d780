"""How far two sets of outputs are apart, as distributions over classes and as signals; measured, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.parity.weights.exact import FORMATS

Array = np.ndarray[Any, np.dtype[Any]]
F64 = np.ndarray[Any, np.dtype[np.float64]]

_SMALL = 1e-2  # |t| below which exp(t) - 1 - t is taken from its series, which does not cancel


def divergence(unfolded: Array, folded: Array, output_kind: str) -> F64:
    """Kullback-Leibler divergence of each row, Σ p log(p/q) in nats: (N, C) and (N, C), finite, give (N,).

    p: softmax of unfolded, q: of folded; for "probabilities" they are taken as they are, divided by their sum. With
    t = log(q/p) the sum is Σ p (e^t - 1 - t), as both sum to one. No term of that is negative, and none cancels: two
    rows that differ by 1e-7 are 1e-14 apart, where Σ p log(p/q) itself would leave nothing but rounding.
    """
    before, after = (_logits(side, output_kind) for side in (unfolded, folded))
    if not before.size:
        return np.zeros(len(before))
    with np.errstate(all="ignore"):  # logits near the end of float64 may give NaN, which is then the answer
        first, second = _total(before), _total(after)
        p, q = np.exp(before - first), np.exp(after - second)
        # Of the inputs, not of the logarithms: logits that differ in their last bits keep their difference exactly.
        t = (after - before) - (second - first)
        near = p * (t * t * (1 / 2 + t * (1 / 6 + t * (1 / 24 + t * (1 / 120 + t / 720)))))
        far = np.where(p > 0, q - p - p * t, q)
        terms = np.where(np.abs(t) < _SMALL, near, far)
    return np.asarray(terms.sum(axis=-1))


def noise_ratio(unfolded: F64, folded: F64) -> float:
    """Signal to noise in dB, 10 log10(Σ unfolded² / Σ (folded - unfolded)²); infinite where they are equal."""
    if not unfolded.size:
        return math.nan
    signal, noise = _norm(unfolded), _norm(folded - unfolded)
    if noise == 0:
        return math.inf
    return 20 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def _logits(outputs: Array, output_kind: str) -> F64:
    """Numbers whose softmax are the probabilities.

    A probability that was rounded to zero, or below it, counts as the least number of its dtype: of half the float32
    networks the tail of a softmax is zero, and an infinite divergence would say that something is wrong.
    """
    wide = outputs.astype(np.float64)
    if output_kind != "probabilities":
        return wide
    form = FORMATS.get(outputs.dtype.name, FORMATS["float64"])
    return np.asarray(np.log(np.maximum(wide, form.smallest)))


def _total(logits: F64) -> F64:
    """log Σ exp, a row each, without overflow: (N, 1)."""
    peak = logits.max(axis=-1, keepdims=True)
    return np.asarray(peak + np.log(np.exp(logits - peak).sum(axis=-1, keepdims=True)))


def _norm(values: F64) -> float:
    """The root of the sum of squares; a factor keeps squares from overflow and underflow."""
    peak = float(np.abs(values).max())
    if peak == 0 or not math.isfinite(peak):
        return peak
    return peak * math.sqrt(float(np.square(values / peak).sum()))
