from __future__ import annotations

import math

import numpy as np
import pytest

from bnfold.parity.decisions import clopper_pearson, decide

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
