"""The statistics that a norm was trained with, told apart: gamma, beta, mean, variance, eps."""

from __future__ import annotations

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import ONE, ZERO, Array, Expr, Op, Scalar, Total, View, leaves, walk
from bnfold.folding.facts import Norm, Statistics, Step


def statistics_of(norm: Norm) -> Statistics | None:
    """The statistics of a norm operator, or of a chain that spells batch norm out; None where they cannot be told.

    The chain is `(x - mean) / sqrt(variance + eps)`, or times the reciprocal root, then `* gamma` and `+ beta`, both
    optional.
    """
    if norm.statistics is not None:
        return norm.statistics
    steps = list(norm.steps)
    if len(steps) < 2 or steps[0].kind != "sub":
        return None
    variance = _variance(steps[1])
    rest = {step.kind: step.by for step in steps[2:]}
    kinds = [step.kind for step in steps[2:]]
    if variance is None or kinds not in ([], ["mul"], ["add"], ["mul", "add"]):
        return None
    return Statistics(rest.get("mul", ONE), rest.get("add", ZERO), steps[0].by, *variance)


def tensors_of(norm: Norm) -> dict[str, Array]:
    """What a bundle stores of a norm, by quantity.

    gamma, beta, mean, variance: (C,), in the dtype in which they were stored; eps: a float64 scalar; where the
    statistics cannot be told apart, scale and shift, float64.
    """
    statistics = statistics_of(norm)
    if statistics is None:
        return {"scale": _values(norm.scale), "shift": _values(norm.shift)}
    return {
        "gamma": _values(statistics.gamma),
        "beta": _values(statistics.beta),
        "mean": _values(statistics.mean),
        "variance": _values(statistics.variance),
        "eps": np.asarray(algebra.evaluate(statistics.eps).hi.reshape(())),
    }


def _values(expr: Expr) -> Array:
    """A stored tensor in its own dtype, anything computed in float64; at least one-dimensional."""
    stored = leaves(expr)
    values = np.atleast_1d(algebra.evaluate(expr).hi).reshape(-1)
    is_stored = len(stored) == 1 and not _computes(expr)
    return values.astype(stored[0].load().dtype) if is_stored else values


def _computes(expr: Expr) -> bool:
    return any(isinstance(node, Op | Total) for node in walk(expr))


def _variance(step: Step) -> tuple[Expr, Expr] | None:
    """Variance and eps out of a step that divides by sqrt(variance + eps)."""
    by = _plain(step.by)
    if step.kind == "mul" and isinstance(by, Op) and by.kind == "div" and by.args[0] == ONE:
        by = _plain(by.args[1])
    elif step.kind != "div":
        return None
    if not isinstance(by, Op) or by.kind != "sqrt":
        return None
    total = _plain(by.args[0])
    if not isinstance(total, Op) or total.kind != "add":
        return None
    numbers = [arg for arg in total.args if isinstance(_plain(arg), Scalar)]
    others = [arg for arg in total.args if not isinstance(_plain(arg), Scalar)]
    return (others[0], numbers[0]) if len(numbers) == len(others) == 1 else None


def _plain(expr: Expr) -> Expr:
    while isinstance(expr, View):
        expr = expr.of
    return expr
