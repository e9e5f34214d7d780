from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_networks import numpy_dtype

from bnfold.errors import ParityError
from bnfold.parity.exact import FORMATS, Interval, distance
from bnfold.parity.nearest import measure_product, measure_vector

Array = np.ndarray[Any, np.dtype[Any]]


def rounded(truth: Interval, dtype: np.dtype[Any]) -> Any:
    """The nearest number of a dtype, found by trying the neighbours of a guess."""
    with np.errstate(all="ignore"):
        guess = dtype.type(float(truth.bounds()[0]))
        candidates = [guess, *(np.nextafter(guess, dtype.type(side)) for side in (np.inf, -np.inf))]
    return next(c for c in candidates if distance(truth, float(c), FORMATS[dtype.name])[1])


@settings(max_examples=80)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.integers(0, 9999),
    st.sampled_from([0, -20, -130, -140, 10]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_filters_and_exact_arithmetic_come_to_the_same_verdict(
    name: str, seed: int, exponent: int, spoiled: float
) -> None:
    """Every element of a small tensor, judged by the filters and one by one; also subnormal and one ulp off."""
    rng = np.random.default_rng(seed)
    dtype = numpy_dtype(name)
    weight = np.ldexp(rng.normal(size=(3, 7)), rng.integers(-12, 6, (3, 7))).astype(dtype)
    weight[0, 0] = 0
    scale = [
        Interval.of(float(np.ldexp(a, exponent if name != "float16" else exponent // 10))) / Interval.of(b).sqrt()
        for a, b in rng.random((3, 2)) + 0.1
    ]
    shipped = np.empty_like(weight)
    wrong = worst = 0.0
    for at in np.ndindex(*weight.shape):
        truth = scale[at[0]] * Interval.of(float(weight[at]))
        shipped[at] = rounded(truth, dtype)
        if rng.random() < spoiled:
            shipped[at] = np.nextafter(shipped[at], dtype.type(rng.choice([-np.inf, np.inf])))
        ulps, nearest = distance(truth, float(shipped[at]), FORMATS[name])
        wrong += not nearest
        worst = max(worst, ulps)
    found = measure_product(weight, shipped, scale, np.arange(3)[:, None])
    assert found.elements == weight.size
    assert found.not_nearest == wrong
    assert found.worst_ulp == pytest.approx(worst, rel=1e-12)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_finds_one_element_one_ulp_off_in_a_large_tensor(name: str) -> None:
    rng = np.random.default_rng(3)
    dtype = numpy_dtype(name)
    weight = rng.normal(size=(2, 700_000)).astype(dtype)
    scale = [Interval.of(1.0), Interval.of(2.0)]
    shipped = (weight.astype(np.float64) * [[1.0], [2.0]]).astype(dtype)
    assert measure_product(weight, shipped, scale, np.arange(2)[:, None]).not_nearest == 0
    shipped[1, 654_321] = np.nextafter(shipped[1, 654_321], dtype.type(np.inf))
    found = measure_product(weight, shipped, scale, np.arange(2)[:, None])
    assert (found.not_nearest, found.worst_ulp, found.worst_index) == (1, 1.0, (1, 654_321))


def test_channels_follow_the_first_two_axes() -> None:
    weight = np.ones((2, 3, 4), np.float32)
    scale = [Interval.of(float(c)) for c in range(6)]
    channels = np.array([[0, 1, 2], [3, 4, 5]])
    right = np.broadcast_to(channels[:, :, None], weight.shape).astype(np.float32)
    assert measure_product(weight, right, scale, channels).worst_ulp == 0
    swapped = right.copy()
    swapped[0, 1] = 5
    found = measure_product(weight, swapped, scale, channels)
    assert (found.not_nearest, found.worst_index[:2]) == (4, (0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_infinitely_wrong(value: float) -> None:
    weight = np.ones((1, 5), np.float32)
    shipped = weight.copy()
    shipped[0, 3] = value
    found = measure_product(weight, shipped, [Interval.of(1.0)], np.zeros((1, 1), np.int64))
    assert (found.not_nearest, found.worst_ulp, found.worst_index) == (1, np.inf, (0, 3))


def test_a_dead_channel_must_be_zero() -> None:
    weight = np.ones((1, 4), np.float32)
    shipped = np.zeros((1, 4), np.float32)
    zero = [Interval.of(0.0)]
    assert measure_product(weight, shipped, zero, np.zeros((1, 1), np.int64)).not_nearest == 0
    shipped[0, 0] = 1e-45
    assert measure_product(weight, shipped, zero, np.zeros((1, 1), np.int64)).not_nearest == 1


def test_an_empty_tensor_has_nothing_wrong() -> None:
    empty = np.zeros((2, 0), np.float32)
    found = measure_product(empty, empty, [Interval.of(1.0)] * 2, np.arange(2)[:, None])
    assert (found.elements, found.not_nearest) == (0, 0)
    assert measure_vector([], np.zeros(0, np.float32)).elements == 0


def test_a_vector_is_judged_element_by_element() -> None:
    exact = [Interval.of(1.0), Interval.of(1.0) / Interval.of(3.0), Interval.of(-2.0)]
    right = np.array([1.0, 1 / 3, -2.0], np.float32)
    assert measure_vector(exact, right).not_nearest == 0
    found = measure_vector(exact, np.array([1.0, 1 / 3, -2.5], np.float32))
    assert (found.not_nearest, found.worst_index) == (1, (2,))
    assert found.worst_ulp == 0.5 / 2.0**-22


def test_refuses_dtypes_that_no_fold_has() -> None:
    with pytest.raises(ParityError, match="int32"):
        measure_vector([Interval.of(1.0)], np.ones(1, np.int32))
