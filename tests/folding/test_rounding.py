"""Rounding of whole tensors: quick where float64 is enough, and the nearest value of the dtype in every element."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from fraction_oracle import DTYPES, FORMATS, fractions_of, nearest_of
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.folding import algebra, rounding
from bnfold.folding.bounded import InBounds
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
)

NARROW = ("float16", "bfloat16", "float32")
SHAPES = [(7, 3, 2), (40, 3), (3, 40), (1, 90), (90,), (5, 1, 3, 3), (18, 2, 1, 3), (2, 3, 4, 2, 2), (4, 4, 5)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors take the way of large ones, in several blocks."""
    monkeypatch.setattr(rounding, "_SMALL", 20)
    monkeypatch.setattr(rounding, "_BLOCK", 48)
    monkeypatch.setattr(rounding, "_POINTS", 64)


def leaf(name: str, values: Any) -> Leaf:
    array = np.asarray(values)
    return Leaf(Tensor(name, array.dtype.name, array.shape, name, lambda: array))


def numbers(rng: np.random.Generator, shape: tuple[int, ...], name: str, exponent: int = 0) -> Any:
    """Numbers of a format around 2**exponent, zeros and powers of two among them."""
    values = rng.normal(size=shape)
    values = np.where(rng.random(shape) < 0.1, 0.0, values)
    values = np.where(rng.random(shape) < 0.1, 2.0 ** rng.integers(-3, 3, shape), values)
    with np.errstate(over="ignore"):
        found = np.ldexp(values, exponent).astype(DTYPES[name])
    return np.where(np.isfinite(found), found, DTYPES[name].type(1.0))


def slow(expr: Expr, name: str) -> Any:
    with np.errstate(all="ignore"):
        return algebra.round_to(algebra.evaluate(expr), DTYPES[name])


def agrees(found: Any, expected: Any, name: str) -> bool:
    assert found.dtype == DTYPES[name]
    assert found.shape == expected.shape
    return bool((found.astype(np.float64) == expected.astype(np.float64)).all())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every part that was rounded: whether float64 with bounds was good for it."""
    seen: list[bool] = []
    tried = rounding._tried

    def watched(*args: Any) -> Any:
        seen.append(False)
        found = tried(*args)
        seen[-1] = True
        return found

    monkeypatch.setattr(rounding, "_tried", watched)
    return seen


@st.composite
def monomials(draw: st.DrawFn) -> tuple[Expr, str]:
    """A weight times factors along some of its axes, in any order, perhaps permuted in between; and its dtype."""
    name = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    bits, least, most = FORMATS[name]
    wide = st.integers(least - bits, most) if name != "float64" else st.integers(-200, 200)
    expr: Expr = leaf("w", numbers(rng, shape, name, draw(st.just(0) | wide)))
    for at in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 4)) == 0:
            perm = tuple(int(axis) for axis in rng.permutation(len(shape)))
            expr, shape = Permute(expr, perm), tuple(shape[axis] for axis in perm)
        axes = draw(st.sets(st.integers(0, len(shape) - 1)))
        of = tuple(size if axis in axes else 1 for axis, size in enumerate(shape))
        exponent = draw(st.just(0) | st.integers(-60, 60) | st.sampled_from([-260, 260, -500]))
        values = np.ldexp(rng.normal(size=of), exponent)
        kind = draw(st.sampled_from(["any", "short", "power", "rooted", "scalar"]))
        if kind == "short":
            values = np.ldexp(np.ldexp(values, -exponent).astype(np.float16).astype(np.float64), exponent)
        elif kind == "power":
            values = np.ldexp(1.0, exponent + rng.integers(-2, 2, of)) * rng.choice([-1.0, 1.0, 1.5], of)
        factor: Expr = leaf(f"f{at}", values)
        if kind == "rooted" and abs(exponent) < 100:
            factor = div(factor, sqrt(add(leaf(f"v{at}", rng.uniform(0.1, 2.0, of)), Scalar(1e-5))))
        if kind == "scalar":
            factor = Scalar(float(values.flat[0]))
        expr = mul(factor, expr) if draw(st.booleans()) else mul(expr, factor)
    return expr, name


def test_every_product_is_the_nearest_number_and_that_of_double_double(quick, monkeypatch):
    judged = []

    @settings(max_examples=300, deadline=None, database=None)
    @given(monomials())
    def check(case):
        expr, name = case
        exact = fractions_of(expr)
        monkeypatch.setattr(rounding, "_SMALL", exact.size - 1)  # only what is as large as the weight is large
        found = algebra.rounded(expr, name)
        smallest = min((abs(value) for value in exact.reshape(-1) if value), default=Fraction(1))
        if smallest > Fraction(2) ** -900:  # where double-double itself cannot underflow
            assert agrees(found, nearest_of(exact, name), name)
            assert agrees(found, slow(expr, name), name)
            judged.append(name)

    check()
    assert set(judged) == set(DTYPES)
    assert len(judged) > 150
    assert sum(quick) > 100


def hard_ties(name: str, rng: np.random.Generator, count: int) -> tuple[Any, Any]:
    """Weights a and factors f so that a * f is a tie of the format, or off one by less than float64 can show.

    For an odd a of p bits, `f = (2**52 + d) / a modulo 2**53` makes `2**52 + d` the last 53 bits of all p + 53.
    """
    bits = FORMATS[name][0]
    weights, factors = [], []
    while len(weights) < count:
        a = int(rng.integers(1 << (bits - 1), 1 << bits)) | 1
        f = (2**52 + int(rng.choice([0, 1, -1, 3, -7]))) * pow(a, -1, 1 << 53) % (1 << 53)
        if (a * f).bit_length() == bits + 53:
            weights.append(math.ldexp(a, -bits + 1))
            factors.append(math.ldexp(f, -53))
    return np.array(weights), np.array(factors)


@pytest.mark.parametrize("name", NARROW)
def test_ties_and_what_float64_takes_for_ties_are_rounded_rightly(name, quick, monkeypatch):
    monkeypatch.setattr(rounding, "_SMALL", 300)
    rng = np.random.default_rng(4)
    weights, factors = hard_ties(name, rng, 200)
    w = leaf("w", np.stack([weights, rng.normal(size=200)], 1).astype(DTYPES[name]))
    expr = mul(leaf("f", factors.reshape(200, 1)), w)
    expected = nearest_of(fractions_of(expr), name)
    assert agrees(algebra.rounded(expr, name), expected, name)
    assert agrees(algebra.rounded(Permute(expr, (1, 0)), name), expected.T, name)
    # The control: without the second look, float64 alone gets many of them wrong.
    tried = rounding._first_try
    monkeypatch.setattr(rounding, "_first_try", lambda x, target: (tried(x, target)[0], None))
    wrong = algebra.rounded(expr, name).astype(np.float64) != expected
    assert wrong[:, 0].sum() > 20
    assert wrong[:, 1].sum() == 0
    assert quick == [True] * 3


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("exponent", range(3))
def test_subnormal_results_and_their_ties_are_the_nearest(name, exponent):
    bits, least, _ = FORMATS[name]
    rng = np.random.default_rng(exponent)
    w = leaf("w", numbers(rng, (30, 6), name))
    scale = np.ldexp(rng.choice([1.0, 1.5, 0.7, 1.0 + 2.0**-40], (30, 1)), least - exponent * bits // 2)
    expr = mul(leaf("s", scale), w)
    exact = fractions_of(expr)
    assert any(0 < abs(value) < Fraction(2) ** least for value in exact.reshape(-1))
    assert agrees(algebra.rounded(expr, name), nearest_of(exact, name), name)


@pytest.mark.parametrize("name", NARROW)
def test_products_at_the_end_of_the_range_become_the_largest_number_or_infinity(name):
    largest = algebra.LARGEST[name]
    w = leaf("w", np.full((30, 3), largest).astype(DTYPES[name]))
    bits = FORMATS[name][0]
    unit = 2.0 ** -(bits + 1)  # to the tie beyond the largest number, nearly
    factors = 1.0 + unit * np.array([0.0, 0.9, 0.999999, 1.0, 1.0000001, 1.1, -1.0, 1e-9, 2.0, 1.0 + 2.0**-30] * 3)
    expr = mul(leaf("f", factors.reshape(30, 1)), w)
    found = algebra.rounded(expr, name)
    assert agrees(found, nearest_of(fractions_of(expr), name), name)
    assert 0 < np.isinf(found.astype(np.float64)).sum() < found.size


def polynomials(name: str) -> dict[str, Expr]:
    """What moves make of weights, other than products: sums of kernels, added channels, biases that take sums in."""
    rng = np.random.default_rng(9)
    w = leaf("w", numbers(rng, (12, 5, 3, 3), name))
    k = leaf("k", numbers(rng, (12, 5, 1, 1), name))
    d = leaf("d", numbers(rng, (20, 8), name))
    s, t = (leaf(n, numbers(rng, (12, 1, 1, 1), name)) for n in "st")
    c = div(leaf("c", numbers(rng, (1, 5, 1, 1), name)), sqrt(leaf("v", rng.uniform(0.5, 2.0, (1, 5, 1, 1)))))
    middle = Embed(mul(t, k), (12, 5, 3, 3), (0, 0, 1, 1), (1, 1, 1, 1))
    summed = Total(mul(w, c), (1, 2, 3))
    grouped = View(mul(leaf("e", numbers(rng, (20, 1), name)), d), (2, 10, 8))
    return {
        "two kernels": add(mul(s, w), middle),
        "a kernel less another": sub(mul(s, w), middle),
        "an identity branch": add(
            mul(s, w), Embed(Given((1.0,) * 12, (12, 1, 1, 1)), (12, 5, 3, 3), (0, 2, 1, 1), (1,) * 4)
        ),
        "a dilated kernel": Embed(mul(s, w), (12, 5, 5, 7), (0, 0, 0, 1), (1, 1, 2, 2)),
        "an added input channel": Join((mul(s, w), Spread(t, (12, 1, 3, 3))), 1),
        "a scaled kernel with an added channel": mul(
            s, Join((w, Spread(c, (12, 5, 3, 3)), Spread(t, (12, 1, 3, 3))), 1)
        ),
        "joined output channels, scaled": mul(c, Join((w, mul(s, w)), 0)),
        "a scaled sum": mul(s, add(mul(c, w), middle)),
        "channels in another order": mul(s, Take(mul(c, w), 1, (4, 0, 2, 2))),
        "output channels in another order": mul(c, Take(mul(s, w), 0, (11, 0, 3) * 5)),
        "a product of kernels": mul(w, add(w, middle)),
        "a quotient": div(w, add(s, Scalar(9.0))),
        "a bias": add(View(s, (12,)), View(summed, (12,))),
        "a scaled bias": mul(View(t, (12,)), add(View(s, (12,)), View(summed, (12,)))),
        "a bias of groups": View(Total(grouped, (1,)), (16,)),
        "a bias of a matrix": View(Total(View(grouped, (1, 20, 8)), (1,)), (8,)),
        "a sum of everything": mul(Scalar(0.1), View(Total(mul(w, c), (0, 1, 2, 3)), ())),
        "a response over taps": Total(Op("mul", (add(w, middle), c)), (1,)),
        "roots of a large tensor": sqrt(mul(w, w)),
        "a weight as it is": w,
        "a transposed weight": View(Permute(d, (1, 0)), (4, 2, 20)),
    }


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("name", DTYPES)
def test_what_moves_make_of_weights_is_the_nearest_number(name, target, quick):
    for label, expr in polynomials(name).items():
        found = algebra.rounded(expr, target)
        assert found.shape == expr.shape, label
        assert agrees(found, slow(expr, target), target), label
        if label != "roots of a large tensor":  # whose oracle is not exact where a root is
            assert agrees(found, nearest_of(fractions_of(expr), target), target), label
    assert "float64" in (name, target) or sum(quick) > 15, "most must have gone the quick way"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NARROW), st.integers(0, 1 << 30), st.integers(-20, 20))
def test_sums_that_cancel_are_the_nearest_number(name, seed, exponent):
    """The second term is the first one rounded, so that little more than its rounding error is left of the sum."""
    rng = np.random.default_rng(seed)
    w = leaf("w", numbers(rng, (20, 6), name, exponent if name != "float16" else 0))
    s = leaf("s", rng.normal(size=(20, 1)))
    product = mul(s, w)
    expr = sub(product, leaf("r", slow(product, name)))
    assert agrees(algebra.rounded(expr, name), nearest_of(fractions_of(expr), name), name)
    total = Total(Join((product, leaf("q", -slow(product, name))), 1), (1,))
    assert agrees(algebra.rounded(total, name), nearest_of(fractions_of(total), name), name)


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_without_elements_stay_so(name):
    for shape in ((0, 3), (4, 0), (0,)):
        w = leaf("w", np.zeros(shape, DTYPES[name]))
        assert algebra.rounded(mul(Scalar(0.3), w), name).shape == shape
    nothing = Total(leaf("w", np.zeros((40, 0), DTYPES[name])), (1,))
    assert algebra.rounded(add(nothing, Scalar(0.25)), name).tolist() == [[0.25]] * 40


def test_the_result_is_an_array_of_its_own():
    values = np.ones((40, 3), np.float32)
    w = leaf("w", values)
    for expr in (w, View(w, (3, 40)), Spread(leaf("s", np.ones((1, 3), np.float32)), (40, 3))):
        found = algebra.rounded(expr, "float32")
        found[:] = 2.0
        assert found.flags.c_contiguous
    assert values.sum() == 120


def test_a_large_tensor_is_rounded_without_large_copies_of_it(monkeypatch):
    monkeypatch.setattr(rounding, "_SMALL", 1 << 12)
    monkeypatch.setattr(rounding, "_BLOCK", 1 << 16)
    size = 1 << 22
    w = leaf("w", np.ones((1 << 11, size >> 11), np.float32))
    s = leaf("s", np.linspace(0.5, 2.0, 1 << 11).reshape(-1, 1))
    whole = mul(s, w)
    for expr, result in ((whole, 4 * size), (View(whole, (size,)), 4 * size), (Total(whole, (1,)), 0)):
        tracemalloc.start()
        algebra.rounded(expr, "float32")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + 100 * (1 << 16), "a few blocks in float64, and the result"


def test_products_of_many_factors_are_made_in_few_passes(monkeypatch):
    made = []
    combined = InBounds.combined

    def counted(self: InBounds, kind: str, args: Any) -> Any:
        made.append(kind)
        return combined(self, kind, args)

    monkeypatch.setattr(InBounds, "combined", counted)
    monkeypatch.setattr(rounding, "_BLOCK", 1 << 16)
    expr: Expr = leaf("w", np.ones((50, 20), np.float32))
    rng = np.random.default_rng(0)
    for at in range(10):
        expr = mul(leaf(f"o{at}", rng.normal(size=(50, 1))), mul(expr, leaf(f"i{at}", rng.normal(size=(1, 20)))))
    monkeypatch.setattr(rounding, "_SMALL", 60)
    assert agrees(algebra.rounded(expr, "float32"), slow(expr, "float32"), "float32")
    assert made == ["mul", "mul"]
