"""What a fold does to the numbers of a network; the error bound holds, and is not much too large."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from facts_networks import Network
from hypothesis import given
from hypothesis import strategies as st

from bnfold.errors import FoldError
from bnfold.folding import algebra
from bnfold.folding.carriers import Window
from bnfold.folding.edits import SetWeights
from bnfold.folding.expressions import ONE, ZERO, Leaf, Tensor, mul, view
from bnfold.folding.facts import Linear, Norm, Reason, Statistics, batch_norm
from bnfold.folding.numbers import error_bounds, numbers_of
from bnfold.folding.plan import make_plan
from bnfold.folding.report import NormNumbers


def leaf(name: str, values: Any, dtype: str = "float32") -> Leaf:
    array = np.asarray(values, algebra_dtype(dtype))
    return Leaf(Tensor(name, dtype, array.shape, name, lambda: array))


def algebra_dtype(name: str) -> Any:
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def norm(gamma: Any, beta: Any, mean: Any, variance: Any, eps: Any = 0.5, **changes: Any) -> Norm:
    parts = Statistics(
        *(leaf(name, part) for name, part in zip("gbmve", (gamma, beta, mean, variance, eps), strict=True))
    )
    scale, shift = batch_norm(parts.gamma, parts.beta, parts.mean, parts.variance, parts.eps)
    fields: dict[str, Any] = {"statistics": parts, "nodes": ("n",), **changes}
    return Norm("n", "n", "BatchNorm", "x", "y", scale, shift, 1, **fields)


def test_the_numbers_of_a_norm_are_those_of_its_worst_channel() -> None:
    found = numbers_of(norm([2.0, -6.0], [1.0, 3.0], [4.0, -2.0], [3.5, 0.5]))
    # a = 2 / 2, -6 / 1; eps 0.5 of 4 and of 1; |a mean| + |beta| over |beta - a mean|: 5 / 3 and 15 / 9.
    assert found is not None
    assert (found.max_scale, found.eps_share) == (6.0, 0.5)
    assert found.amplification is not None
    assert abs(found.amplification - 5 / 3) < 1e-15


def test_cancellation_shows_as_amplification_and_zeros_do_not_count() -> None:
    close = numbers_of(norm([1.0, 1.0], [1.0 + 2**-20, 0.0], [1.0, 0.0], [0.5, 0.5]))
    assert close is not None
    assert close.amplification is not None
    assert 2**20 < close.amplification < 2**22
    gone = numbers_of(norm([1.0], [1.0], [1.0], [0.5]))
    assert gone is not None
    assert gone.amplification == 2.0**53
    default = numbers_of(norm([1.0], [0.0], [0.0], [0.5]))
    assert default is not None
    assert default.amplification == 1.0


def test_a_map_whose_statistics_cannot_be_told_apart_has_its_scale_alone() -> None:
    plain = Norm("n", "n", "Affine", "x", "y", leaf("s", [-3.0, 2.0]), ZERO, 1, ("n",))
    assert numbers_of(plain) == NormNumbers(3.0)


def test_a_norm_that_is_no_finite_map_or_out_of_reach_has_no_numbers() -> None:
    assert numbers_of(norm([1.0], [0.0], [0.0], [0.5], refusal=Reason("TRAINING_MODE", "x"))) is None
    assert numbers_of(Norm("n", "n", "BatchNorm", "x", "y", ONE, ZERO, 1, ())) is None
    infinite = numbers_of(norm([1.0], [0.0], [0.0], [0.0], 0.0))
    assert infinite == NormNumbers(None, None, 1.0)


def edit(weight: Leaf, scale: Leaf, shift: Leaf, *, groups: int = 1, out_first: bool = True) -> SetWeights:
    channels = scale.shape[0]
    window = Window((1,), (1,), (1,), ((0, 0),))
    linear = Linear("l", "l", "Conv", "x", "y", weight.tensor, None, out_first, groups, channels, 1, window=window)
    if out_first:
        by = view(scale, (channels, *(1,) * (len(weight.shape) - 1)))
        new = mul(by, weight)
    else:
        per_group = channels // groups
        apart = view(weight, (groups, weight.shape[0] // groups, per_group, *weight.shape[2:]))
        new = view(mul(view(scale, (groups, 1, per_group, *(1,) * (len(weight.shape) - 2))), apart), weight.shape)
    return SetWeights(linear, new, shift, window, groups, (), ())


@given(
    st.integers(0, 10**6),
    st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    st.booleans(),
    st.integers(1, 3),
)
def test_the_bound_holds_at_the_worst_input_and_is_at_most_a_hundred_times_too_large(
    seed: int, dtype: str, out_first: bool, groups: int
) -> None:
    random = np.random.default_rng(seed)
    fan_in, per_group, x = int(random.integers(1, 6)), int(random.integers(1, 4)), float(random.uniform(0, 10))
    channels = groups * per_group
    shape = (channels, fan_in, 2) if out_first else (groups * fan_in, per_group, 2)
    weight = leaf("w", random.standard_normal(shape), dtype)
    change = edit(
        weight, leaf("s", random.standard_normal(channels)), leaf("t", random.standard_normal(channels)),
        groups=groups, out_first=out_first,
    )  # fmt: skip
    (bound,) = error_bounds([change], x)
    exact, stored = fractions(change.weight, dtype), fractions(change.weight, dtype, rounded=True)
    assert change.bias is not None
    off = np.abs(fractions(change.bias, dtype) - fractions(change.bias, dtype, rounded=True))
    for channel in range(channels):
        difference = np.abs(rows(exact - stored, out_first, groups)[channel]).sum()
        worst = Fraction(x) * difference + off[channel]
        assert worst <= Fraction(bound.channels[channel])
    assert bound.largest == max(bound.channels)
    assert bound.dtype == dtype


def rows(values: Any, out_first: bool, groups: int) -> list[Any]:
    if out_first:
        return [part.reshape(-1) for part in values]
    size = values.shape[0] // groups
    return [values[g * size : (g + 1) * size, o].reshape(-1) for g in range(groups) for o in range(values.shape[1])]


def fractions(expr: Any, dtype: str, *, rounded: bool = False) -> Any:
    if rounded:
        return np.vectorize(Fraction, otypes=[object])(algebra.rounded(expr, dtype).astype(np.float64))
    found = algebra.evaluate(expr)
    return np.vectorize(lambda hi, lo: Fraction(hi) + Fraction(lo), otypes=[object])(found.hi, found.lo)


def test_a_bound_on_nothing_is_the_rounding_of_the_bias() -> None:
    change = edit(leaf("w", [[1.0]]), leaf("s", [1.0]), leaf("t", [3.0]))
    (bound,) = error_bounds([change], 0.0)
    assert 3 * 2.0**-24 <= bound.largest <= 3 * 2.0**-24 * 1.02


@pytest.mark.parametrize("x", [-1.0, float("nan"), float("inf"), "1", True])
def test_a_bound_for_inputs_that_are_none_is_refused(x: Any) -> None:
    with pytest.raises(FoldError, match="finite number from 0"):
        error_bounds([], x)


def test_a_plan_gives_every_norm_numbers_and_every_changed_linear_a_bound() -> None:
    net = Network()
    graph = net.graph(net.bn(net.conv(net.bn(net.conv("x"), name="first")), name="second"))
    plan = make_plan(dataclasses.replace(graph, shapes={name: (None, *shape) for name, shape in net.shapes.items()}))
    assert all(row.numbers is not None and row.numbers.max_scale for row in plan.report.norms)
    assert all(row.where.startswith("behind ") for row in plan.report.norms)
    bounds = error_bounds(plan.edits)
    assert {name for bound in bounds for name in bound.norms} == {"first", "second"}
