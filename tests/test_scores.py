"""Class scores as probabilities, and their order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bnfold.scores import rank, to_chances

rows = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=5).map(
    lambda values: np.array(values, np.float32)
)


@given(rows)
def test_softmax_sums_to_one_and_keeps_the_order(scores: np.ndarray) -> None:
    chances = to_chances(scores, "logits")
    assert chances.dtype == np.float64
    assert (np.abs(chances.sum(axis=1) - 1) <= 1e-15 * 4).all()
    assert (np.diff(np.take_along_axis(chances, rank(scores, 4), axis=1), axis=1) <= 0).all()


def test_probabilities_stay_as_they_are() -> None:
    scores = np.array([[0.25, 0.5]], np.float32)
    assert to_chances(scores, "probabilities").tolist() == [[0.25, 0.5]]


def test_scores_are_ranked_where_softmax_cannot_tell_them_apart() -> None:
    scores = np.array([[0.0, 800.0, 800.00006, 800.0]], np.float32)
    assert rank(scores, 3).tolist() == [[2, 1, 3]]
    assert to_chances(scores, "logits")[0, 0] == 0


def test_the_largest_is_what_argmax_takes() -> None:
    scores = np.array([[0.0, -0.0, 0.0], [1.0, 3.0, 3.0]], np.float32)
    assert rank(scores, 1)[:, 0].tolist() == scores.argmax(axis=1).tolist() == [0, 1]
