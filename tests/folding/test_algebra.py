from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from fraction_oracle import DTYPES, FORMATS, nearest, root, smallest, spacing
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.folding import algebra
from bnfold.folding.algebra import ChannelMap, DoubleDouble
from bnfold.folding.expressions import ONE, Leaf, Op, Scalar, Tensor, View
from bnfold.folding.facts import Linear, batch_norm

# Between these magnitudes no term of a product or quotient of two numbers leaves float64's normal range.
ordinary = st.floats(1e-60, 1e60).flatmap(lambda x: st.sampled_from([x, -x]))


def as_array(value: float) -> Any:
    return np.asarray(value, np.float64)


def fraction(x: DoubleDouble) -> Fraction:
    assert x.is_finite()
    return Fraction(float(x.hi)) + Fraction(float(x.lo))


@st.composite
def pairs(draw: st.DrawFn) -> DoubleDouble:
    hi = draw(ordinary)
    lo = draw(st.floats(-0.5, 0.5)) * math.ulp(hi)
    total = hi + lo
    return DoubleDouble(as_array(total), as_array(float(Fraction(hi) + Fraction(lo) - Fraction(total))))


def tensor(name: str, values: Any) -> Tensor:
    array = np.asarray(values)
    return Tensor(name, array.dtype.name, array.shape, name, lambda: array)


def leaf(name: str, values: Any) -> Leaf:
    return Leaf(tensor(name, values))


@settings(max_examples=300)
@given(pairs(), pairs(), st.sampled_from(["add", "sub", "mul", "div"]))
def test_double_double_operations_are_good_to_a_hundred_bits(x, y, kind):
    exact = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
    }[kind](fraction(x), fraction(y))
    found = getattr(algebra, kind)(x, y)
    # A sum that cancels is judged against its operands: that is what Hida, Li and Bailey's bound says.
    scale = max(abs(fraction(x)), abs(fraction(y))) if kind in ("add", "sub") else abs(exact)
    assert abs(fraction(found) - exact) <= scale * Fraction(1, 1 << 100)
    assert float(found.hi) == float(found.hi) + float(found.lo), "hi must be the nearest float64 to the whole"


@settings(max_examples=200)
@given(pairs())
def test_double_double_root_is_good_to_a_hundred_bits(x):
    value = abs(fraction(x))
    positive = x if x.hi > 0 else algebra.negative(x)
    found = fraction(algebra.sqrt(positive))
    assert abs(found - root(value)) <= root(value) * Fraction(1, 1 << 100)


def test_root_of_zero_is_zero_and_of_a_negative_is_not_a_number():
    assert float(algebra.evaluate(Op("sqrt", (Scalar(0.0),))).hi) == 0.0
    assert math.isnan(float(algebra.evaluate(Op("sqrt", (Scalar(-1.0),))).hi))
    assert not algebra.evaluate(Op("div", (ONE, Scalar(0.0)))).is_finite()


@settings(max_examples=100)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6), st.floats(1e-9, 1e9), st.floats(1e-9, 1e-3))
def test_a_bias_whose_terms_cancel_keeps_its_bits(gamma, mean, variance, eps):
    """beta is the float64 nearest to scale * mean, so that the shift is nothing but what is left of it."""
    exact_scale = Fraction(gamma) / root(Fraction(variance) + Fraction(eps))
    beta = nearest(exact_scale * Fraction(mean), "float64")
    _, shift = batch_norm(leaf("g", [gamma]), leaf("b", [beta]), leaf("m", [mean]), leaf("v", [variance]), Scalar(eps))
    exact = Fraction(beta) - exact_scale * Fraction(mean)
    value = algebra.evaluate(shift)
    found = Fraction(float(value.hi[0])) + Fraction(float(value.lo[0]))
    assert abs(found - exact) <= abs(exact_scale * Fraction(mean)) * Fraction(1, 1 << 98)


def around(name: str) -> st.SearchStrategy[Fraction]:
    """Values that are hard to round: on, just below and just above floats and the ties between them."""
    bits, least, most = FORMATS[name]

    def value(exponent: int, significand: int, half: int, nudge: int, size: int, sign: int) -> Fraction:
        step = Fraction(2) ** (max(exponent, least) - bits + 1)
        base = Fraction(significand) * Fraction(2) ** (exponent - bits + 1)
        base = math.floor(base / step) * step + half * step / 2
        return sign * (base + nudge * step * Fraction(2) ** -size)

    return st.builds(
        value,
        st.integers(least - bits, most) | st.integers(least - bits, least + 2) | st.just(most),
        st.integers(1 << (bits - 1), (1 << bits) - 1) | st.sampled_from([1 << (bits - 1), (1 << bits) - 1]),
        st.integers(0, 1),
        st.integers(-1, 1),
        st.integers(10, 90),
        st.sampled_from([1, -1]),
    )


def as_double_double(value: Fraction) -> DoubleDouble | None:
    """The value as hi + lo, None where it has too many bits or lo is below float64's range."""
    try:
        hi = float(value)
        lo = float(value - Fraction(hi))
    except OverflowError:
        return None
    return DoubleDouble(as_array(hi), as_array(lo)) if Fraction(hi) + Fraction(lo) == value else None


@pytest.mark.parametrize("name", DTYPES)
def test_rounds_once_to_the_nearest_value_with_ties_to_even(name):
    seen = []

    @settings(max_examples=600, database=None)
    @given(around(name))
    def check(value):
        x = as_double_double(value)
        if x is None:
            return
        found = algebra.round_to(x, DTYPES[name])
        assert found.dtype == DTYPES[name]
        expected = nearest(value, name)
        seen.append(value)
        assert float(found) == expected
        assert value == 0 or math.copysign(1.0, float(found)) == math.copysign(1.0, value)

    check()
    assert len(seen) > 200, "most of the values must have been judged"
    assert any(abs(value) < Fraction(2) ** FORMATS[name][1] for value in seen), "subnormals must be among them"
    beyond = [value for value in seen if math.isinf(nearest(value, name))]
    assert beyond or name == "float64", "and values beyond the range"


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_rounding_twice_would_be_seen(name):
    """Negative control: the same values through float32 (or float64) first differ from the nearest somewhere."""
    bits, _, _ = FORMATS[name]
    through = "float64" if name == "float32" else "float32"
    tie = Fraction(1) + Fraction(2) ** -bits
    value = tie + Fraction(2) ** -(bits + 45 if through == "float64" else 40)
    twice = nearest(Fraction(nearest(value, through)), name)
    x = as_double_double(value)
    assert x is not None
    assert float(algebra.round_to(x, DTYPES[name])) == nearest(value, name) != twice


def test_a_tie_between_bfloat16_subnormals_that_float32_cannot_tell_from_its_neighbour():
    unit = smallest("bfloat16")
    for odd in (1, 3, 5):
        for sign in (1, -1):
            above = (odd * unit / 2 + Fraction(2) ** -180) * (1 if odd % 4 == 1 else -1) * sign
            below = (odd * unit / 2 - Fraction(2) ** -180) * sign
            for value in (above, below):
                x = as_double_double(value)
                assert x is not None
                assert float(algebra.round_to(x, DTYPES["bfloat16"])) == nearest(value, "bfloat16")


def test_values_at_the_edge_of_the_range_go_to_the_largest_number_or_to_infinity():
    for name, (bits, _, most) in FORMATS.items():
        largest = (2 - Fraction(2) ** (1 - bits)) * Fraction(2) ** most
        assert float(largest) == algebra.LARGEST[name]
        tie = largest + spacing(largest, name) / 2
        cases = [(largest, float(largest))]
        if name != "float64":  # the tie is beyond float64 there
            cases += [(tie, math.inf), (tie - Fraction(1, 1 << 20), float(largest))]
        for value, expected in cases:
            x = as_double_double(value)
            assert x is not None
            assert float(algebra.round_to(x, DTYPES[name])) == expected
            assert float(algebra.round_to(algebra.negative(x), DTYPES[name])) == -expected


def test_zero_infinity_and_not_a_number_survive_rounding():
    for dtype in DTYPES.values():
        values = DoubleDouble(np.array([0.0, -0.0, np.inf, -np.inf, np.nan]), np.zeros(5))
        found = algebra.round_to(values, dtype).astype(np.float64)
        assert found[:4].tolist() == [0.0, 0.0, np.inf, -np.inf]
        assert np.isnan(found[4])


def fold_exactly(linear: Linear, scale: list[Fraction], index: tuple[int, ...]) -> Fraction:
    """The exact folded weight at an index, with the output channel told from the layout by the ONNX specification."""
    weight = linear.weight.load()
    if linear.out_first:
        channel = index[0]
    else:
        per_group = linear.channels // linear.groups
        channel = (index[0] // (weight.shape[0] // linear.groups)) * per_group + index[1]
    return Fraction(float(weight[index])) * Fraction(linear.alpha) * scale[channel]


LAYOUTS = [
    pytest.param((6, 2, 3), True, 1, 6, id="conv1d"),
    pytest.param((6, 2, 3, 2), True, 2, 6, id="conv2d-grouped"),
    pytest.param((4, 1, 2, 1, 3), True, 4, 4, id="conv3d-depthwise"),
    pytest.param((4, 3, 2), False, 1, 3, id="transposed1d"),
    pytest.param((4, 3, 2, 2), False, 2, 6, id="transposed2d-grouped"),
    pytest.param((4, 4, 2, 2), False, 1, 4, id="transposed2d-in-equals-out"),
    pytest.param((6, 2, 1, 2, 1), False, 3, 6, id="transposed3d-grouped"),
    pytest.param((5, 4), True, 1, 5, id="dense-out-first"),
    pytest.param((4, 5), False, 1, 5, id="dense-in-first"),
    pytest.param((5, 5), False, 1, 5, id="dense-square-in-first"),
    pytest.param((0, 3), True, 1, 0, id="no-output-channel"),
    pytest.param((0, 4), False, 1, 4, id="no-input-channel"),
]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("shape", "out_first", "groups", "channels"), LAYOUTS)
def test_every_folded_number_of_every_layout_is_the_nearest(shape, out_first, groups, channels, name):
    dtype = DTYPES[name]
    rng = np.random.default_rng(sum(shape) * 7 + groups)
    weight = rng.normal(size=shape).astype(dtype)
    bias = rng.normal(size=channels).astype(dtype)
    linear = Linear(
        "l", "l", "Conv", "x", "y", tensor("w", weight), tensor("b", bias), out_first, groups, channels, 1, 0.7, -1.3
    )
    gamma = rng.normal(size=channels)
    gamma[::3] = 0.0
    scale, shift = gamma / 3.0, rng.normal(size=channels)
    low = scale * 2.0**-55 * rng.uniform(0.1, 0.9, size=channels)
    by = ChannelMap(DoubleDouble(scale, low), DoubleDouble(shift, np.zeros(channels)))
    exact_scale = [Fraction(float(hi)) + Fraction(float(lo)) for hi, lo in zip(scale, low, strict=True)]
    exact_shift = [Fraction(float(value)) for value in shift]

    folded = algebra.fold_weight(linear, by)
    assert (folded.dtype, folded.shape) == (dtype, shape)
    for index in np.ndindex(*shape):
        assert float(folded[index]) == nearest(fold_exactly(linear, exact_scale, index), name)

    rounded = algebra.round_to(algebra.folded_bias(linear, by), dtype)
    assert (rounded.dtype, rounded.shape) == (dtype, (channels,))
    for channel in range(channels):
        exact = exact_scale[channel] * Fraction(-1.3) * Fraction(float(bias[channel])) + exact_shift[channel]
        assert float(rounded[channel]) == nearest(exact, name)


@pytest.mark.parametrize(("shape", "out_first", "groups", "channels"), LAYOUTS)
def test_channel_peak_is_the_largest_weight_of_each_output_channel(shape, out_first, groups, channels):
    """Checked through a fold by 1 in a single channel: only the weights of that channel are left."""
    weight = np.random.default_rng(3).normal(size=shape)
    linear = Linear("l", "l", "Conv", "x", "y", tensor("w", weight), None, out_first, groups, channels, 1)
    peaks = algebra.channel_peak(linear)
    assert peaks.shape == (channels,)
    for channel in range(channels):
        only = np.zeros(channels)
        only[channel] = 1.0
        by = ChannelMap(algebra.exact(only), algebra.exact(np.zeros(channels)))
        assert peaks[channel] == np.abs(algebra.fold_weight(linear, by)).max(initial=0.0)


def test_a_weight_larger_than_a_block_folds_like_its_rows(monkeypatch):
    weight = np.random.default_rng(5).normal(size=(7, 3, 2)).astype(np.float32)
    by = ChannelMap(algebra.exact(np.linspace(-2.0, 3.0, 7)), algebra.exact(np.zeros(7)))
    linear = Linear("l", "l", "Conv", "x", "y", tensor("w", weight), None, True, 1, 7, 1)
    whole = algebra.fold_weight(linear, by)
    for block in (1, 6, 13):
        monkeypatch.setattr(algebra, "_BLOCK", block)
        assert np.array_equal(algebra.fold_weight(linear, by), whole)


@pytest.mark.parametrize(("weight", "scale"), [(1e301, 1e-5), (1e-5, 1e301), (1.7e308, 0.5), (-1e305, 1e-300)])
def test_float64_numbers_near_the_end_of_the_range_fold_to_numbers(weight, scale):
    linear = Linear("l", "l", "Gemm", "x", "y", tensor("w", np.array([[weight]])), None, True, 1, 1, 1)
    by = ChannelMap(algebra.exact(np.array([scale])), algebra.exact(np.array([0.0])))
    found = float(algebra.fold_weight(linear, by)[0, 0])
    assert found == nearest(Fraction(weight) * Fraction(scale), "float64")


@settings(max_examples=150)
@given(st.floats(5e-324, 1e-280) | st.floats(1e280, 1.7e308))
def test_statistics_near_the_ends_of_the_range_give_the_map_they_should(variance):
    scale, shift = batch_norm(leaf("g", [2.0]), leaf("b", [0.5]), leaf("m", [1.5]), leaf("v", [variance]), Scalar(0.0))
    exact = 2 / root(Fraction(variance))
    value = algebra.channel_map(scale, shift, 1)
    assert value.is_finite()
    assert float(value.scale.hi[0]) == nearest(exact, "float64")


@settings(max_examples=150)
@given(st.floats(1e-320, 1e-150), st.floats(1e-170, 1.0), st.sampled_from([1.0, -3.7]))
def test_float64_numbers_at_the_small_end_of_the_range_are_the_nearest_too(weight, scale, alpha):
    linear = Linear("l", "l", "Gemm", "x", "y", tensor("w", np.array([[weight]])), None, True, 1, 1, 1, alpha)
    by = ChannelMap(algebra.exact(np.array([scale])), algebra.exact(np.array([0.0])))
    found = float(algebra.fold_weight(linear, by)[0, 0])
    assert found == nearest(Fraction(weight) * Fraction(scale) * Fraction(alpha), "float64")


def test_composition_applies_the_inner_map_first():
    inner = ChannelMap(algebra.exact(np.array([2.0, -3.0])), algebra.exact(np.array([5.0, 7.0])))
    outer = ChannelMap(algebra.exact(np.array([11.0, 13.0])), algebra.exact(np.array([17.0, 19.0])))
    both = algebra.compose(outer, inner)
    x = np.array([0.25, 4.0])
    expected = np.array([11.0, 13.0]) * (np.array([2.0, -3.0]) * x + np.array([5.0, 7.0])) + np.array([17.0, 19.0])
    assert np.array_equal(both.scale.hi * x + both.shift.hi, expected)


def test_an_expression_broadcasts_views_and_scalars_as_numpy_does():
    a, b = np.arange(3.0), np.arange(6.0)
    expr = Op("mul", (View(leaf("a", a), (3, 1)), Op("add", (View(leaf("b", b), (3, 2)), Scalar(0.5)))))
    assert np.array_equal(algebra.evaluate(expr).hi, a.reshape(3, 1) * (b.reshape(3, 2) + 0.5))


def test_a_scalar_map_holds_for_every_channel():
    by = algebra.channel_map(Scalar(2.0), leaf("t", [[[1.0], [2.0], [3.0]]]), 3)
    assert by.scale.hi.tolist() == [2.0, 2.0, 2.0]
    assert by.shift.hi.tolist() == [1.0, 2.0, 3.0]
