from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.errors import ParityError
from bnfold.folding.expressions import Leaf, Op, Scalar, Tensor, View
from bnfold.folding.facts import batch_norm
from bnfold.parity.weights.exact import FORMATS, Interval, distance, gap
from bnfold.parity.weights.pointwise import evaluate

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False)


def holds(interval: Interval, value: Fraction) -> bool:
    low, high = interval.bounds()
    return low <= value <= high


def relative_width(interval: Interval) -> float:
    low, high = interval.bounds()
    return float((high - low) / max(abs(low), abs(high))) if high else 0.0


@given(finite, finite, finite)
def test_sums_and_products_of_floats_are_exact(a: float, b: float, c: float) -> None:
    found = Interval.of(a) * Interval.of(b) - Interval.of(c)
    assert found.low == found.high
    assert holds(found, Fraction(a) * Fraction(b) - Fraction(c))


@given(finite, positive, st.booleans())
def test_quotients_are_enclosed_to_hundreds_of_bits(a: float, b: float, negative: bool) -> None:
    divisor = -b if negative else b
    found = Interval.of(a) / Interval.of(divisor)
    assert holds(found, Fraction(a) / Fraction(divisor))
    assert relative_width(found) < 2.0**-300


@given(positive)
def test_roots_are_enclosed_to_hundreds_of_bits(a: float) -> None:
    low, high = Interval.of(a).sqrt().bounds()
    assert low * low <= Fraction(a) <= high * high
    assert float((high - low) / high) < 2.0**-300


@given(st.integers(0, 2**26), st.integers(-500, 400))
def test_the_root_of_a_square_is_exact(root: int, exponent: int) -> None:
    found = Interval.of(math.ldexp(root, exponent)) * Interval.of(math.ldexp(root, exponent))
    assert found.sqrt().bounds() == (Fraction(root) * Fraction(2) ** exponent,) * 2


@given(*[finite.filter(lambda v: abs(v) < 1e100)] * 3, st.floats(1e-30, 1e30), st.floats(0, 1e-3))
def test_batch_norm_agrees_with_mpmath(gamma: float, beta: float, mean: float, variance: float, eps: float) -> None:
    mpmath.mp.prec = 800
    scale, shift = batch_norm(*(Scalar(v) for v in (gamma, beta, mean, variance, eps)))
    a = mpmath.mpf(gamma) / mpmath.sqrt(mpmath.mpf(variance) + mpmath.mpf(eps))
    for expr, wanted, terms in (
        (scale, a, abs(a)),
        (shift, mpmath.mpf(beta) - a * mpmath.mpf(mean), abs(mpmath.mpf(beta)) + abs(a * mpmath.mpf(mean))),
    ):
        low, high = evaluate(expr).item().bounds()
        for end in (low, high):
            assert abs(mpmath.mpf(end.numerator) / end.denominator - wanted) <= terms * mpmath.mpf(2) ** -300


def test_evaluates_views_and_broadcasts_like_numpy() -> None:
    column = np.array([1.5, -2.0], np.float32)
    tensor = Tensor("t", "float32", (2,), "t", lambda: column)
    found = evaluate(Op("add", (View(Leaf(tensor), (2, 1)), Leaf(tensor))))
    wanted = column[:, None] + column
    assert found.shape == (2, 2)
    assert [float(v.bounds()[0]) for v in found.ravel()] == wanted.ravel().tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ParityError, match="finite"):
        Interval.of(value)


def test_refuses_the_root_of_a_negative_number_and_division_by_zero() -> None:
    with pytest.raises(ParityError, match="negative"):
        Interval.of(-1e-300).sqrt()
    with pytest.raises(ParityError, match="divided by zero"):
        Interval.of(1.0) / Interval.of(0.0)


@given(finite.filter(lambda v: v == 0 or 1e-200 < abs(v) < 1e200), finite.filter(lambda v: 1e-30 < abs(v) < 1e30))
def test_leading_parts_carry_a_hundred_bits(a: float, b: float) -> None:
    number = Interval.of(a) / Interval.of(b)
    high, low, sharp = number.leading()
    assert sharp
    middle = sum(number.bounds()) / 2
    assert abs(Fraction(high) + Fraction(low) - middle) <= abs(middle) * Fraction(1, 2**104)


def test_a_wide_interval_has_no_leading_parts() -> None:
    assert Interval(-1, 1, 0).leading() == (0.0, 0.0, False)


@given(st.sampled_from(sorted(DTYPES)), st.floats(-1e6, 1e6), st.integers(-40, 8))
def test_gaps_are_those_of_numpy(name: str, number: float, exponent: int) -> None:
    dtype: Any = DTYPES[name]
    with np.errstate(all="ignore"):
        value = dtype(math.ldexp(number, exponent))
        up, down = np.nextafter(value, dtype(np.inf)), np.nextafter(value, dtype(-np.inf))
    if not (np.isfinite(up) and np.isfinite(down)):
        return
    exact = Fraction(float(value))
    assert gap(exact, FORMATS[name], outwards=exact >= 0) == Fraction(float(up)) - exact
    assert gap(exact, FORMATS[name], outwards=exact <= 0) == exact - Fraction(float(down))


@given(st.sampled_from(sorted(DTYPES)), st.integers(-(2**20), 2**20), st.integers(-45, 8), st.integers(-3, 3))
def test_nearest_means_that_no_neighbour_is_nearer(name: str, numerator: int, exponent: int, steps: int) -> None:
    dtype: Any = DTYPES[name]
    truth = Interval(numerator, numerator, exponent)
    exact = truth.bounds()[0]
    with np.errstate(all="ignore"):
        shipped = dtype(float(exact))
        for _ in range(abs(steps)):
            shipped = np.nextafter(shipped, dtype(np.inf if steps > 0 else -np.inf))
        neighbours = [np.nextafter(shipped, dtype(side)) for side in (np.inf, -np.inf)]
    if not all(np.isfinite(v) for v in (shipped, *neighbours)):
        return
    error = abs(Fraction(float(shipped)) - exact)
    wanted = all(error <= abs(Fraction(float(other)) - exact) for other in neighbours)
    ulps, nearest = distance(truth, float(shipped), FORMATS[name])
    assert nearest == wanted
    assert not nearest or ulps <= 0.5


def test_an_exact_tie_passes_for_both_neighbours_and_no_other() -> None:
    tie = Interval.of(1 + 2.0**-24)
    below, above = 1.0, float(np.nextafter(np.float32(1), np.float32(2)))
    form = FORMATS["float32"]
    assert distance(tie, below, form) == (0.5, True)
    assert distance(tie, above, form) == (0.5, True)
    assert not distance(tie, float(np.nextafter(np.float32(1), np.float32(0))), form)[1]


def test_an_irrational_number_close_to_a_tie_is_told_from_it() -> None:
    """sqrt(1 + 2**-100) is 2**-101 from 1, far below what float64 sees."""
    root = (Interval.of(1.0) + Interval.of(2.0**-100)).sqrt()
    above_tie = root + Interval.of(2.0**-24)
    assert distance(above_tie, 1.0, FORMATS["float32"]) == (0.5, False)
    assert distance(above_tie, float(np.nextafter(np.float32(1), np.float32(2))), FORMATS["float32"])[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_nearest(value: float) -> None:
    assert distance(Interval.of(1.0), value, FORMATS["float32"]) == (math.inf, False)
