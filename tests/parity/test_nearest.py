from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_networks import numpy_dtype

from bnfold.errors import ParityError
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
    Tensor,
    Total,
    View,
    add,
    div,
    mul,
    sqrt,
    sub,
    view,
)
from bnfold.parity.weights import enclosing, nearest
from bnfold.parity.weights.balls import Ball
from bnfold.parity.weights.enclosing import enclose
from bnfold.parity.weights.exact import FORMATS, Interval, distance
from bnfold.parity.weights.nearest import measure
from bnfold.parity.weights.pointwise import Points, evaluate

Array = np.ndarray[Any, np.dtype[Any]]


def leaf(values: Any, dtype: Any = np.float64) -> Leaf:
    array = np.asarray(values).astype(dtype)
    return Leaf(Tensor("t", array.dtype.name, array.shape, object(), lambda: array))


def rounded(truth: Interval, dtype: np.dtype[Any]) -> Any:
    """The nearest number of a dtype, found by trying the neighbours of a guess."""
    with np.errstate(all="ignore"):
        guess = dtype.type(float(truth.bounds()[0]))
        candidates = [guess, *(np.nextafter(guess, dtype.type(side)) for side in (np.inf, -np.inf))]
    return next(c for c in candidates if distance(truth, float(c), FORMATS[dtype.name])[1])


def nearest_values(expr: Expr, dtype: np.dtype[Any]) -> Array:
    points = Points(expr)
    found = np.empty(expr.shape, dtype)
    for at in np.ndindex(*expr.shape):
        found[at] = rounded(points.at(at), dtype)
    return found


def forms(rng: np.random.Generator, dtype: np.dtype[Any], exponent: int) -> dict[str, Expr]:
    """An expression of each kind that folds are made of, on weights of one dtype."""

    def normal(*shape: int) -> Leaf:
        return leaf(np.ldexp(rng.normal(size=shape), rng.integers(-12, 6, shape)), dtype)

    def positive(*shape: int) -> Leaf:
        return leaf(rng.random(shape) + 0.1, dtype)

    weight, other = normal(32, 4, 3, 3), normal(32, 4, 1, 1)
    scale = div(mul(Scalar(2.0**exponent), normal(32)), sqrt(add(positive(32), Scalar(1e-5))))
    inputs, shift = div(normal(4), sqrt(positive(4))), sub(normal(4), mul(normal(4), positive(4)))
    rows, columns = view(scale, (32, 1, 1, 1)), view(inputs, (1, 4, 1, 1))
    small = Embed(mul(rows, other), (32, 4, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))
    response = View(Total(mul(view(shift, (1, 4, 1, 1)), weight), (1, 2, 3)), (32,))
    apart = Permute(View(mul(rows, weight), (4, 8, 4, 3, 3)), (1, 0, 3, 4, 2))
    return {
        "behind": mul(rows, weight),
        "behind and before": mul(columns, mul(rows, weight)),
        "alone": weight,
        "merged": add(mul(rows, weight), small),
        "merged unscaled": add(weight, Embed(other, (32, 4, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))),
        "response": add(mul(scale, normal(32)), response),
        "another channel": Join((weight, div(Total(mul(columns, weight), (1,)), Scalar(64.0))), 1),
        "channels apart": Take(apart, 1, (2, 2, 0)),
        "spread": Spread(View(scale, (32, 1)), (32, 3)),
        "made up": mul(Given((0.0, 1.0, 1.0), (3, 1)), view(inputs, (1, 4))),
        "negative": sub(Scalar(0.0), weight),
        "one over": div(Scalar(1.0), positive(5)),
    }


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(FORMATS)), st.integers(0, 9999), st.sampled_from([0, -20, -130, 10]),
    st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
def test_filters_and_exact_arithmetic_come_to_the_same_verdict(
    name: str, seed: int, exponent: int, spoiled: float
) -> None:
    """Every element of a small tensor, judged by the filters and one by one; also subnormal and one ulp off."""
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(name)
    kinds = forms(rng, dtype, exponent if name != "float16" else exponent // 10)
    expr = kinds[sorted(kinds)[seed % len(kinds)]]
    shipped = nearest_values(expr, dtype)
    moved = rng.random(shipped.shape) < spoiled
    shipped[moved] = np.nextafter(shipped, rng.choice([-np.inf, np.inf], shipped.shape).astype(dtype))[moved]
    points, wrong, worst = Points(expr), 0, 0.0
    for at in np.ndindex(*expr.shape):
        ulps, is_nearest = distance(points.at(at), float(shipped[at]), FORMATS[name])
        wrong += not is_nearest
        worst = max(worst, ulps)
    found = measure(expr, shipped)
    assert found.elements == shipped.size
    assert found.not_nearest == wrong
    assert found.worst_ulp == pytest.approx(worst, rel=1e-12)


@settings(max_examples=40)
@given(st.integers(0, 9999), st.sampled_from([0, -900, 600]), st.booleans())
def test_balls_hold_the_exact_value(seed: int, exponent: int, wide: bool) -> None:
    rng = np.random.default_rng(seed)
    kinds = forms(rng, np.dtype(np.float32), exponent)
    expr = kinds[sorted(kinds)[seed % len(kinds)]]
    ball, points = enclose(expr, wide=wide), Points(expr)
    assert ball.hi.shape == expr.shape
    for at in np.ndindex(*expr.shape):
        low, high = points.at(at).bounds()
        middle = sum(Interval.of(float(part[at])).bounds()[0] for part in (ball.hi, ball.lo) if part is not None)
        radius = 0 if ball.rad is None else Interval.of(float(ball.rad[at])).bounds()[0]
        # What is exact to 320 bits may be a little wider than a radius of zero.
        slack = abs(high) / 2**300
        assert low - radius - slack <= middle <= high + radius + slack


def test_balls_are_narrow() -> None:
    rng = np.random.default_rng(0)
    for name, expr in forms(rng, np.dtype(np.float32), 0).items():
        for wide, bits in ((False, 46), (True, 95)):
            ball = enclose(expr, wide=wide)
            size = np.abs(ball.hi) + np.abs(ball.hi).max() * 2.0**-6  # sums may cancel
            assert ball.rad is None or np.max(ball.rad / size) < 2.0**-bits, name


def test_a_ball_that_overflows_says_nothing() -> None:
    huge = leaf([1e200, 1.0])
    for wide in (False, True):
        for expr in (mul(huge, huge), div(huge, leaf([1e-200, 1.0])), add(mul(huge, huge), huge)):
            rad = enclose(expr, wide=wide).rad
            assert rad is not None
            assert not np.isfinite(rad[0])
            assert rad[1] < 1e-15


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_finds_one_element_one_ulp_off_in_a_large_tensor(name: str) -> None:
    rng = np.random.default_rng(3)
    dtype = numpy_dtype(name)
    weight = rng.normal(size=(2, 700_000)).astype(dtype)
    expr = mul(leaf([[1.0], [2.0]]), leaf(weight, dtype))
    shipped = (weight.astype(np.float64) * [[1.0], [2.0]]).astype(dtype)
    assert measure(expr, shipped).not_nearest == 0
    shipped[1, 654_321] = np.nextafter(shipped[1, 654_321], dtype.type(np.inf))
    found = measure(expr, shipped)
    assert (found.not_nearest, found.worst_ulp, found.worst_index) == (1, 1.0, (1, 654_321))


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_ties_are_decided_without_exact_arithmetic(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are added as they are come to a tie in many places, where either neighbour will do."""
    dtype = numpy_dtype(name)
    rng = np.random.default_rng(0)
    one, two = (rng.integers(2**9, 2**10, (200, 300)).astype(dtype) for _ in range(2))
    expr = add(leaf(one, dtype), mul(Scalar(2.0 ** -(FORMATS[name].bits - 9)), leaf(two, dtype)))
    exact = one.astype(np.longdouble) + two.astype(np.longdouble) * 2.0 ** -(FORMATS[name].bits - 9)
    calls = []
    real = nearest.distance
    monkeypatch.setattr(nearest, "distance", lambda *given: calls.append(1) or real(*given))
    assert measure(expr, exact.astype(dtype)).not_nearest == 0
    assert len(calls) == 1  # of the worst element, for the report


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_wrong(value: float) -> None:
    shipped = np.ones((1, 5), np.float32)
    expr = leaf(shipped.copy(), np.float32)
    shipped[0, 3] = value
    found = measure(expr, shipped)
    assert (found.not_nearest, found.worst_ulp, found.worst_index) == (1, np.inf, (0, 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dead_channel_must_be_zero(dtype: Any) -> None:
    expr = mul(leaf([[0.0]]), leaf(np.ones((1, 64)), dtype))
    shipped = np.zeros((1, 64), dtype)
    assert measure(expr, shipped).not_nearest == 0
    shipped[0, 0] = np.finfo(dtype).smallest_subnormal
    assert measure(expr, shipped).not_nearest == 1


def test_an_empty_tensor_has_nothing_wrong() -> None:
    empty = np.zeros((2, 0), np.float32)
    found = measure(leaf(empty, np.float32), empty)
    assert (found.elements, found.not_nearest) == (0, 0)


def test_a_number_without_axes_is_judged() -> None:
    third = div(Scalar(1.0), Scalar(3.0))
    assert measure(third, np.asarray(np.float32(1 / 3))).not_nearest == 0
    assert measure(third, np.asarray(np.float32(0.25))).worst_index == ()


def test_a_vector_is_judged_element_by_element() -> None:
    expr = div(leaf([1.0, 1.0, -4.0]), leaf([1.0, 3.0, 2.0]))
    assert measure(expr, np.array([1.0, 1 / 3, -2.0], np.float32)).not_nearest == 0
    found = measure(expr, np.array([1.0, 1 / 3, -2.5], np.float32))
    assert (found.not_nearest, found.worst_index) == (1, (2,))
    assert found.worst_ulp == 0.5 / 2.0**-22


def test_refuses_dtypes_that_no_fold_has() -> None:
    with pytest.raises(ParityError, match="int32"):
        measure(leaf([1.0]), np.ones(1, np.int32))


def test_refuses_what_has_no_finite_value() -> None:
    for expr, what in ((div(Scalar(1.0), leaf([0.0])), "divided by zero"), (sqrt(leaf([-1.0])), "negative")):
        with pytest.raises(ParityError, match=what):
            measure(expr, np.ones(1, np.float32))
    with pytest.raises(ParityError, match="finite"):
        measure(mul(leaf([np.inf]), leaf([1.0])), np.ones(1, np.float32))


def test_compositions_thousands_deep_are_no_problem() -> None:
    scale: Expr = leaf([1.0, 3.0], np.float32)
    for _ in range(5000):
        scale = add(mul(scale, Scalar(0.5)), leaf([1.0, 3.0], np.float32))
        assert scale.shape == (2,)
    right = np.array([2.0, 6.0], np.float32)
    assert measure(scale, right).not_nearest == 0
    assert measure(scale, right * 2).not_nearest == 2
    assert [float(v.bounds()[0]) for v in evaluate(scale)] == pytest.approx([2.0, 6.0], rel=1e-15)


@pytest.mark.parametrize("axes", [(1,), (0,), (0, 1)])
def test_sums_of_large_products_are_taken_slice_by_slice(
    axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    weight, factor = rng.normal(size=(64, 48)).astype(np.float32), rng.normal(size=(1, 48)).astype(np.float32)
    expr = Total(mul(leaf(factor, np.float32), leaf(weight, np.float32)), axes)
    behind = Total(View(expr.of, (1, 64, 48)), tuple(axis + 1 for axis in axes))
    for wide in (False, True):
        whole = enclose(expr, wide=wide)
        monkeypatch.setattr(enclosing, "BLOCK", 500)
        for sliced in (enclose(expr, wide=wide), enclose(behind, wide=wide)):
            assert sliced.hi.size == whole.hi.size
            limit = whole.rad.ravel() + sliced.rad.ravel() + np.abs(whole.hi.ravel()) * (2.0**-52 if wide else 0)
            assert np.all(np.abs(whole.hi.ravel() - sliced.hi.ravel()) <= limit)
        assert measure(behind, nearest_values(behind, np.dtype(np.float32))).not_nearest == 0
        monkeypatch.undo()


def test_layouts_agree_with_numpy() -> None:
    """Every way to rearrange, element by element and as a whole, against numpy on integers."""
    rng = np.random.default_rng(1)
    x = rng.integers(-9, 9, (2, 3, 4)).astype(np.float64)
    full = np.zeros((5, 3, 9))
    full[1:4:2, :, 0:9:2][:, :, :4] = x
    kinds: list[tuple[Expr, Array]] = [
        (View(leaf(x), (4, 6)), x.reshape(4, 6)),
        (Permute(leaf(x), (2, 0, 1)), x.transpose(2, 0, 1)),
        (Spread(View(leaf(x), (2, 1, 12)), (2, 5, 12)), np.broadcast_to(x.reshape(2, 1, 12), (2, 5, 12))),
        (Take(leaf(x), 1, (2, 0, 2)), x.take([2, 0, 2], axis=1)),
        (Join((leaf(x), leaf(x[:, :1]), leaf(x)), 1), np.concatenate([x, x[:, :1], x], 1)),
        (Total(leaf(x), (0, 2)), x.sum((0, 2), keepdims=True)),
        (Embed(leaf(x), (5, 3, 9), (1, 0, 0), (2, 1, 2)), full),
        (Op("sub", (leaf(x), leaf(x[0, 0]))), x - x[0, 0]),
        (Given((1.0, 2.0, 3.0, 4.0), (2, 2)), np.array([[1.0, 2.0], [3.0, 4.0]])),
    ]
    for expr, wanted in kinds:
        assert expr.shape == wanted.shape
        exact = np.array([float(v.bounds()[0]) for v in evaluate(expr).ravel()]).reshape(wanted.shape)
        assert np.array_equal(exact, wanted)
        for wide in (False, True):
            ball: Ball = enclose(expr, wide=wide)
            assert np.array_equal(ball.hi, wanted)
            assert ball.rad is None or not ball.rad.any()
