"""Why is a tensor wrong? The known ways to get a fold wrong are tried on its numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.folding.evaluation import Source
from bnfold.folding.expressions import Array, Expr, size_of, spread, view
from bnfold.folding.facts import Linear, Norm
from bnfold.folding.onnx_edits import NewTensor
from bnfold.parity.hypotheses.arrays import narrowed, permuted, scaled, turned
from bnfold.parity.hypotheses.formulas import formulas, maps, scaled_variance, strangers
from bnfold.parity.hypotheses.layouts import branches, layouts, through_padding
from bnfold.parity.hypotheses.rewriting import Rewrite, Tree
from bnfold.parity.hypotheses.terms import F64, Slack, Terms, evaluate
from bnfold.parity.weights.nearest import measure

ENOUGH = 0.9  # of the wrong elements, which a hypothesis must explain
ROUNDING = "ROUNDING"

_ELEMENTS = 1 << 17  # numbers that are computed for each hypothesis
_ROWS = 48
_WHOLE = 1 << 23  # elements up to which a tensor is looked at as a whole
_NODES = 400_000  # of all expressions that are tried
_STRANGERS = 48
_STEPS = 8  # of Newton's method; from a variance to half of it takes six


@dataclass(frozen=True)
class Cause:
    """A likely cause. code: a stable name; words: for a person.

    explained: the share of the wrong elements that it explains; 0 where it is inferred from another tensor.
    """

    code: str
    words: str
    explained: float

    @property
    def is_rounding(self) -> bool:
        """True when nothing is wrong but the precision in which the fold was computed."""
        return self.code == ROUNDING


def likely_cause(
    new: NewTensor,
    shipped: Array,
    others: Sequence[Norm] = (),
    *,
    wrong: Array | None = None,
    linear: Linear | None = None,
) -> Cause | None:
    """What explains at least 90% of the wrong elements of a tensor, and spoils no right one; None when nothing does.

    shipped: of as many elements as the tensor's expression, or of more where that is one number. others: further norms
    of the network. wrong: bool, in the shape of `shipped`; None: where it is not the nearest. linear: what reads
    the tensor, as the source has it. Never raises.
    """
    try:
        return _cause(new, shipped, others, wrong, linear)
    except (BnfoldError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, MemoryError, OSError):
        return None  # a guess is no reason to fail


def _cause(
    new: NewTensor, shipped: Array, others: Sequence[Norm], wrong: Array | None, linear: Linear | None
) -> Cause | None:
    expr = _full(new.expr, shipped)
    shipped = shipped.reshape(expr.shape)
    if wrong is None:
        wrong = np.zeros(shipped.shape, bool)
        measure(expr, shipped, wrong=wrong)
    wrong = wrong.reshape(expr.shape)
    count = int(wrong.sum())
    if not count:
        return None
    broken = int((wrong & ~np.isfinite(shipped.astype(np.float64))).sum())
    if broken >= ENOUGH * count:
        return Cause("NOT_FINITE", "NaN or infinity was written", broken / count)
    new = dataclasses.replace(new, expr=expr)
    case = _Case.of(new, shipped, wrong)
    if case.of_rounding >= 1:
        return Cause(ROUNDING, "consistent with rounding: a right fold computed in less precision", 1.0)
    return case.best(_known(case, others, linear)) or case.best(_shaped(case)) or case.rounded()


def _full(expr: Expr, shipped: Array) -> Expr:
    """The expression in the shape of the tensor, with an axis at least."""
    if size_of(expr) == shipped.size:
        return expr if expr.shape else view(expr, (1,))
    return spread(view(expr, (1,) * shipped.ndim), shipped.shape)


Guess = tuple[str, str, Terms]


@dataclass(frozen=True)
class _Case:
    """A wrong tensor, or the rows of it that are looked at. hard: the elements that rounding does not explain.

    rows: of the first axis; None: all of them. whole: the tensor as it is, the exact one beside it where it is small.
    """

    new: NewTensor
    tree: Tree
    source: Source
    slack: Slack
    shipped: F64
    rows: Sequence[int] | None
    exact: Terms
    wrong: Array
    hard: Array
    whole: Array

    @staticmethod
    def of(new: NewTensor, shipped: Array, wrong: Array) -> _Case:
        tree, source = Tree(new.expr), Source()
        slack = Slack.of(tree, shipped.dtype)
        rows = _rows(tree, wrong)
        exact = evaluate(new.expr, source, rows)
        some = shipped if rows is None else shipped[list(rows)]
        seen = wrong if rows is None else wrong[list(rows)]
        values = some.astype(np.float64)
        with np.errstate(all="ignore"):
            near = np.abs(values - exact.value) <= slack.around(exact)
        return _Case(new, tree, source, slack, values, rows, exact, seen, seen & ~near, shipped)

    @property
    def of_rounding(self) -> float:
        """The share of wrong elements that rounding explains."""
        return 1 - float(self.hard.sum()) / max(1, int(self.wrong.sum()))

    def rounded(self) -> Cause | None:
        """Rounding, where it explains most."""
        share = self.of_rounding
        words = "most of it is consistent with rounding, a few values are not"
        return Cause(ROUNDING + "_MOSTLY", words, share) if share >= ENOUGH else None

    def best(self, guesses: Iterator[Guess]) -> Cause | None:
        """The guess that explains most, the first of equals."""
        best: Cause | None = None
        least = math.inf
        for code, words, terms in guesses:
            share, rest = self._explained(terms)
            if share < ENOUGH:
                continue
            is_better = best is None or share > best.explained + 1e-3
            if is_better or (best is not None and share > best.explained - 1e-3 and rest < 0.7 * least):
                best, least = Cause(code, words, share), rest
        return best

    def _explained(self, terms: Terms) -> tuple[float, float]:
        """(share of the wrong elements explained, how far those are off); 0 where right elements would be wrong."""
        with np.errstate(all="ignore"):
            far = np.abs(self.shipped - terms.value) / self.slack.around(terms)
        near = far <= 1
        hard = int(self.hard.sum())
        spoilt = int((~near & ~self.wrong).sum())
        if near[self.hard].sum() < ENOUGH * hard or spoilt > (1 - ENOUGH) * hard:
            return 0.0, math.inf
        share = (int(near[self.wrong].sum()) - spoilt) / int(self.wrong.sum())
        return share, float(np.mean(far[self.hard & near]))

    def at(self, array: F64) -> F64:
        """The rows of a whole tensor that are looked at."""
        return array if self.rows is None else array[list(self.rows)]


def _rows(tree: Tree, wrong: Array) -> list[int] | None:
    """Some rows with wrong elements, spread over all of them; None where the whole is small."""
    per_row = max(tree.summed, wrong[0].size)
    if per_row * len(wrong) <= _ELEMENTS:
        return None
    bad = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    most = max(2, min(_ROWS, _ELEMENTS // per_row))
    if len(bad) > most:
        bad = bad[np.linspace(0, len(bad) - 1, most).astype(int)]
    return [int(row) for row in bad]


# ------------------------------------------------------------------------------------------------- the guesses


def _known(case: _Case, others: Sequence[Norm], linear: Linear | None) -> Iterator[Guess]:
    """Wrong formulas and layouts, from the expression."""
    left = _NODES
    yield from _variance(case)
    for rewrite in rewrites(case.new, others, linear):
        yield rewrite.code, rewrite.words, evaluate(rewrite.expr, case.source, case.rows)
        left -= len(case.tree.nodes)
        if left < 0:
            break
    if not case.shipped[case.wrong].any():
        nothing = np.where(case.wrong, 0.0, case.exact.value)
        yield "ZEROED", "zeros were written", Terms(nothing, np.abs(nothing))


def _variance(case: _Case) -> Iterator[Guess]:
    """The variance times a factor that is found by Newton's method on the numbers."""
    factor, step, at = 1.0, 2.0**-12, case.exact
    if int(case.hard.sum()) < 3:
        return
    for _ in range(_STEPS):
        shifted = scaled_variance(case.tree, case.new.norms, factor * (1 + step))
        if shifted is None:
            return
        slope = (evaluate(shifted, case.source, case.rows).value - at.value) / (factor * step)
        with np.errstate(all="ignore"):
            moves = ((case.shipped - at.value) / slope)[case.hard & (np.abs(slope) > 0)]
        moves = moves[np.isfinite(moves)]
        if not moves.size:
            return
        factor = min(max(factor + float(np.median(moves)), factor / 4), factor * 4)
        found = scaled_variance(case.tree, case.new.norms, factor)
        if found is None:
            return
        at = evaluate(found, case.source, case.rows)
    yield (*_factor_in_words(factor), at)


def _factor_in_words(factor: float) -> tuple[str, str]:
    if 0.5 <= factor < 1:
        count = 1 / (1 - factor)
        return "BIASED_VARIANCE", f"the variance was biased: times (n - 1) / n with n = {count:.4g}"
    if 1 < factor <= 2:
        count = factor / (factor - 1)
        return "BIASED_VARIANCE", f"the variance was corrected twice: times n / (n - 1) with n = {count:.4g}"
    return "VARIANCE_SCALED", f"the variance was multiplied by {factor:.4g}"


def _shaped(case: _Case) -> Iterator[Guess]:
    """The right numbers in the wrong places, or scaled: what has free parameters comes last."""
    new, size = case.new, case.whole.size
    if size > _WHOLE:
        return
    exact = case.exact if case.rows is None else evaluate(new.expr, case.source)
    room = case.slack.around(exact)

    def guess(code: str, words: str, values: F64) -> Guess:
        return code, words, Terms(case.at(values), np.abs(case.at(values)))

    def moved(code: str, words: str, change: Callable[[Any], Any]) -> Guess:
        return code, words, exact.each(lambda part: case.at(change(part)))

    for code, words, change in turned(exact.value):
        yield moved(code, words, change)
    shipped = case.whole.astype(np.float64)
    axes = range(min(2, shipped.ndim))
    for axis in axes:
        found = permuted(shipped, exact.value, room, axis)
        if found is not None:
            yield guess(*found)
    for name, values in narrowed(exact.value, case.whole.dtype):
        yield guess("NARROW", f"the numbers have gone through {name}", values)
    if shipped.ndim == 1:  # a factor is told only by several numbers: here one for all of them
        shipped, room, exact = shipped[None], room[None], exact.each(lambda part: part[None])
        axes = range(1)
    for axis in axes:
        factors = scaled(shipped, exact.value, room, axis)
        if factors is not None:
            code, words, values = factors
            yield guess(code, words, values.reshape(case.whole.shape))
    turned_over = np.where(case.wrong, -case.exact.value, case.exact.value)
    yield "NEGATED", "the sign is wrong", Terms(turned_over, case.exact.size)


def rewrites(new: NewTensor, others: Sequence[Norm] = (), linear: Linear | None = None) -> Iterator[Rewrite]:
    """Every wrong fold of a new tensor that follows from its expression, in the order in which they are tried."""
    tree = Tree(new.expr)
    yield from layouts(new, tree)
    if linear is not None:
        yield from through_padding(new, linear)
    yield from formulas(tree, new.norms)
    yield from maps(tree, new.norms)
    yield from branches(new, tree)
    yield from strangers(tree, new.norms, others[:_STRANGERS])
