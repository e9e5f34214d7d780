from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp

from bnfold.parity.decisions import clopper_pearson, decide
from bnfold.parity.distributions import divergence, noise_ratio

CLEAR = np.array([[3.0, 1.0, 0.0], [0.0, 5.0, 1.0], [1.0, 2.0, 9.0]], np.float32)


def test_the_same_answers_hold() -> None:
    found = decide(CLEAR, CLEAR + np.float32(1e-3), np.array([0, 1, 0]))
    assert found.holds
    assert found.agreement == 1
    assert found.unfolded_accuracy == found.folded_accuracy == pytest.approx(2 / 3)
    assert (found.smallest_margin, found.median_margin) == (2, 4)
    assert found.largest_difference == pytest.approx(1e-3, rel=1e-3)
    assert found.sentences() == ()


def test_another_answer_fails_and_is_named() -> None:
    other = CLEAR.copy()
    other[1] = [9, 5, 1]
    found = decide(CLEAR, other, np.array([0, 1, 2]))
    assert not found.holds
    assert found.disagreements == (1,)
    assert (found.unfolded_accuracy, found.folded_accuracy) == (1, pytest.approx(2 / 3))
    assert "rows 1" in found.sentences()[0]


def test_a_disagreement_is_excused_only_where_the_truth_has_no_answer() -> None:
    before = np.array([[1.0, 1.0 + 1e-6, 0.0]])
    after = np.array([[1.0 + 1e-6, 1.0, 0.0]])
    asked: list[list[int]] = []

    def truth(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.array([[1.0, 1.0 + 1e-7, 0.0]])

    assert decide(before, after, noise=1e-6, truth=truth).holds
    assert not decide(before, after, noise=1e-8, truth=truth).holds
    assert not decide(before, after, noise=1e-6).holds
    assert asked == [[0], [0]]


def test_the_truth_is_not_asked_where_models_agree() -> None:
    def truth(rows: np.ndarray) -> np.ndarray:
        raise AssertionError(rows)

    assert decide(CLEAR, CLEAR, noise=1.0, truth=truth).holds


def test_ties_are_counted_and_the_first_of_equals_decides() -> None:
    tied = CLEAR.copy()
    tied[0] = [3, 3, 0]
    found = decide(CLEAR, tied)
    assert found.holds
    assert found.ties == 1
    assert "equal largest outputs" in found.sentences()[0]
    turned = decide(np.array([[0.0, 3.0]]), np.array([[3.0, 3.0]]))
    assert turned.disagreements == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(value: float) -> None:
    spoiled = CLEAR.copy()
    spoiled[2, 2] = value
    found = decide(spoiled, spoiled, noise=100.0, truth=lambda rows: CLEAR[rows])
    assert found.disagreements == (2,)
    assert not found.holds


def test_no_rows_prove_nothing() -> None:
    empty = np.zeros((0, 3))
    found = decide(empty, empty)
    assert not found.holds
    assert math.isnan(found.agreement)


def test_one_class_has_no_margin() -> None:
    assert decide(np.ones((2, 1)), np.ones((2, 1))).smallest_margin == math.inf


@pytest.mark.parametrize(
    ("wrong", "rows", "bound"),
    [(0, 1_000, 0.002991), (0, 10_000, 0.0002995), (3, 100, 0.07571), (5, 5, 1.0), (0, 0, 1.0)],
)  # fmt: skip
def test_clopper_pearson(wrong: int, rows: int, bound: float) -> None:
    """3 of 100: 0.0757 is the value of the beta quantile B(0.95; 4, 97)."""
    assert clopper_pearson(wrong, rows) == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "percent"), [(1_000, "0.2991"), (10_000, "0.02995")]
)  # fmt: skip
def test_clopper_pearson_of_no_disagreement_is_the_root_of_five_percent(rows: int, percent: str) -> None:
    """With none seen the bound solves (1 - p)^n = 0.05."""
    with mp.workdps(40):
        exact = 1 - mp.mpf("0.05") ** (mp.mpf(1) / rows)
        found = clopper_pearson(0, rows)
        assert abs(found - exact) <= 1e-9 * exact
    assert f"{100 * found:.4g}" == percent


@pytest.mark.parametrize(("wrong", "rows"), [(1, 20), (3, 359), (40, 1_000), (99, 100)])
def test_clopper_pearson_is_where_the_binomial_leaves_five_percent(wrong: int, rows: int) -> None:
    found = clopper_pearson(wrong, rows)
    with mp.workdps(40):
        p = mp.mpf(found)
        tail = mp.fsum(mp.binomial(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(wrong + 1))
        assert abs(tail - mp.mpf("0.05")) <= 1e-7


def test_margins_are_those_by_hand() -> None:
    found = decide(CLEAR, CLEAR + np.float32([[0.25, 0, 0], [0, 0, 0], [0, 0, 0]]))
    assert found.largest_difference == 0.25
    assert found.margin_quantiles == (2, 2, 2, 2, 4, 7, 7)  # of 2, 4, 7, each a margin that was seen
    assert found.margin_shares == ((1, 1.0), (10, 2 / 3), (100, 0.0))
    assert found.to_dict()["margin_above_difference"] == {"1 times": 1.0, "10 times": 2 / 3, "100 times": 0.0}


def test_a_margin_as_large_as_the_difference_does_not_exceed_it() -> None:
    found = decide(np.array([[2.0, 1.0], [9.0, 0.0]]), np.array([[2.0, 1.0], [10.0, 0.0]]))
    assert found.margin_shares[0] == (1, 0.5)


def test_a_row_that_is_not_finite_counts_against_every_share() -> None:
    spoiled = np.tile(np.arange(12.0), (4, 1))
    broken = spoiled.copy()
    broken[1, 3] = np.nan
    found = decide(spoiled, broken)
    assert found.margin_shares == ((1, 0.75), (10, 0.75), (100, 0.75))
    assert found.top_five == 0.75
    assert found.kl_max == 0
    nothing = decide(np.full((2, 12), np.nan), np.full((2, 12), np.nan))
    assert math.isnan(nothing.kl_mean)
    assert math.isnan(nothing.snr)
    assert nothing.top_five == 0
    assert nothing.to_dict()["kl_mean"] is None


def test_top_five_is_a_set_and_asked_of_ten_classes_or_more() -> None:
    before = np.arange(10.0)[np.newaxis]
    turned, other = before.copy(), before.copy()
    turned[0, [8, 7]] = [7, 8]
    other[0, [5, 4]] = [4, 5]
    assert decide(before, turned).top_five == 1
    assert decide(before, other).top_five == 0
    assert decide(before[:, :9], before[:, :9]).top_five is None


def test_the_document_has_every_figure_and_is_strict_json() -> None:
    document = decide(CLEAR, CLEAR, np.array([0, 1, 2])).to_dict()
    assert document["signal_to_noise_db"] is None  # infinite: nothing differs
    assert document["kl_mean"] == document["kl_max"] == 0
    assert document["margin_quantiles"]["0.5"] == 4
    json.dumps(document, allow_nan=False)
    empty = decide(np.zeros((0, 3)), np.zeros((0, 3))).to_dict()
    assert empty["margin_quantiles"] == {}
    json.dumps(empty, allow_nan=False)


logits = st.integers(2, 12).flatmap(
    lambda classes: st.lists(
        st.lists(st.floats(-30, 30, width=32), min_size=2 * classes, max_size=2 * classes), min_size=1, max_size=4
    ).map(lambda rows: np.array(rows, np.float64).reshape(len(rows), 2, classes))
)


@given(logits)
def test_divergence_is_that_of_exact_arithmetic(pair: np.ndarray) -> None:
    found = divergence(pair[:, 0], pair[:, 1], "logits")
    for value, (a, b) in zip(found, pair, strict=True):
        exact = exact_divergence(a, b)
        assert math.isfinite(value)
        assert abs(value - exact) <= 1e-12 * exact + 1e-25


@given(logits, st.floats(-1e-6, 1e-6))
def test_divergence_of_neighbours_keeps_its_digits(pair: np.ndarray, scale: float) -> None:
    """Where Σ p log(p/q) in float64 would be rounding alone."""
    near = pair[:, 0] + scale * pair[:, 1]
    for value, a, b in zip(divergence(pair[:, 0], near, "logits"), pair[:, 0], near, strict=True):
        exact = exact_divergence(a, b)
        assert abs(value - exact) <= 1e-6 * exact + 1e-25


@given(logits, st.integers(-1000, 1000))
def test_divergence_does_not_see_a_shift_of_logits(pair: np.ndarray, shift: int) -> None:
    coarse = np.round(pair * 1024) / 1024  # so that the shift itself is exact
    found = divergence(coarse[:, 0], coarse[:, 1], "logits")
    moved = divergence(coarse[:, 0] + shift, coarse[:, 1], "logits")
    assert (np.abs(moved - found) <= 1e-10 * found + 1e-18).all()
    assert (divergence(coarse[:, 0], coarse[:, 0] + shift, "logits") <= 1e-18).all()


@given(logits)
def test_divergence_of_equal_outputs_is_zero_and_no_other_is_negative(pair: np.ndarray) -> None:
    assert (divergence(pair[:, 0], pair[:, 0], "logits") == 0).all()
    assert (divergence(pair[:, 0], pair[:, 1], "logits") >= 0).all()


def test_probabilities_need_no_softmax() -> None:
    before, after = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([[0.25, 0.75], [0.25, 0.75]])
    found = divergence(before, after, "probabilities")
    assert found[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-12)
    assert found[1] == 0
    assert divergence(before, after, "logits")[0] < 0.04
    assert decide(before, after, output_kind="probabilities").kl_max == found[0]


def test_a_probability_that_rounds_to_zero_is_no_infinite_divergence() -> None:
    before = np.array([[1.0, 1e-45]], np.float32)
    after = np.array([[1.0, 0.0]], np.float32)
    assert divergence(before, after, "probabilities")[0] < 1e-40
    gone = divergence(np.array([[0.5, 0.5]], np.float32), after, "probabilities")[0]
    assert 50 < gone < 60  # large, and finite


def test_noise_ratio_is_in_decibels() -> None:
    signal = np.array([[3.0, 4.0]])
    assert noise_ratio(signal, signal + np.array([[0.0, 0.5]])) == pytest.approx(20, abs=1e-12)
    assert noise_ratio(signal, signal) == math.inf
    assert noise_ratio(signal * 0, signal) == -math.inf
    assert noise_ratio(signal * 1e200, signal * 1e200 * 1.001) == pytest.approx(60, abs=1e-6)


def exact_divergence(a: np.ndarray, b: np.ndarray) -> float:
    with mp.workdps(60):
        p, q = ([mp.exp(mp.mpf(float(value))) for value in side] for side in (a, b))
        sums = mp.fsum(p), mp.fsum(q)
        return float(mp.fsum(x / sums[0] * mp.log(x / sums[0] / (y / sums[1])) for x, y in zip(p, q, strict=True)))
