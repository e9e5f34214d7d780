"""The formula of batch norm, got wrong: what is done to each norm's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from bnfold.folding import algebra
from bnfold.folding.expressions import Expr, Given, Op, Permute, Scalar, size_of, view
from bnfold.folding.facts import Norm
from bnfold.parity.hypotheses.rewriting import (
    Parts,
    Rewrite,
    Tree,
    full,
    known_statistics,
    parts_of,
    plain,
    shaped,
    substitute,
)

Change = Mapping[int, Expr]

EPSILONS = (1e-5, 1e-3, 1e-6, 1e-12, 1e-2)  # defaults of PyTorch and ONNX, of TensorFlow, of others
_SINGLE = 8  # norms of a tensor that are also tried one by one
_GROUPS = (2, 3, 4, 8, 16, 32)


def formulas(tree: Tree, norms: Sequence[Norm]) -> Iterator[Rewrite]:
    """Each way to get the formula of the norms wrong: of all of them alike, then of each alone."""
    known = [parts for parts in (parts_of(norm, tree) for norm in norms) if parts is not None]
    for some, of in _choices(known):
        for code, words, change in FORMULAS:
            by = {key: node for parts in some for key, node in change(parts, tree).items()}
            if by:
                yield tree.replaced(code, words.format(of=of), by)
        for eps in EPSILONS:
            by = {key: node for parts in some for key, node in _other_eps(parts, eps).items()}
            if by:
                yield tree.replaced("EPS_OTHER", f"the epsilon{of} was {eps:g} instead of {_eps(some, eps)}", by)


def maps(tree: Tree, norms: Sequence[Norm]) -> Iterator[Rewrite]:
    """Each way to use the maps of the norms wrongly, whatever they are made of."""
    for norm in norms[:_SINGLE]:
        scale, shift = tree.find(norm.scale), tree.find(norm.shift)
        of = f" of '{norm.name}'"
        if shift is not None:
            yield tree.replaced("SHIFT_LOST", f"the shift{of} was lost", {id(shift): full(0.0, shift)})
            if size_of(norm.scale) in (1, size_of(shift)):
                scaled = Op("mul", (shift, shaped(norm.scale, shift)))
                yield tree.replaced("SHIFT_SCALED", f"the shift{of} was multiplied by its scale", {id(shift): scaled})
        if scale is not None:
            by = {id(scale): full(1.0, scale)}
            yield tree.replaced("SCALE_LOST", f"the scale{of} was left out", by)
            by |= {id(shift): full(0.0, shift)} if shift is not None else {}
            yield tree.replaced("NORM_LOST", f"norm '{norm.name}' was left out", by)
            square = {id(scale): Op("mul", (scale, scale))}
            yield tree.replaced("SCALE_TWICE", f"the scale{of} was applied twice", square)
        yield from _interleaved(tree, norm, scale, shift)
    yield from _orders(tree, norms[:_SINGLE])


def strangers(tree: Tree, norms: Sequence[Norm], others: Sequence[Norm]) -> Iterator[Rewrite]:
    """The numbers of other norms of the network in the place of a norm's own; defaults."""
    for norm in norms[:_SINGLE]:
        parts = parts_of(norm, tree)
        if parts is None:
            continue
        for other in others:
            by = _taken_from(parts, other) if other.name != norm.name else {}
            if by:
                words = f"the statistics of '{other.name}' were used instead of those of '{norm.name}'"
                yield tree.replaced("OTHER_NORM", words, by)


def scaled_variance(tree: Tree, norms: Sequence[Norm], factor: float) -> Expr | None:
    """The tensor with every variance times a factor; None where there is no variance in it."""
    known = [parts for parts in (parts_of(norm, tree) for norm in norms) if parts is not None]
    by = {key: node for parts in known for key, node in times_variance(parts, factor).items()}
    return substitute(tree.expr, by) if by else None


def times_variance(parts: Parts, factor: float) -> Change:
    """The variance of a norm times a factor."""
    variance = parts.variance
    return {} if variance is None else {id(variance): Op("mul", (variance, Scalar(factor)))}


def _choices(known: Sequence[Parts]) -> Iterator[tuple[Sequence[Parts], str]]:
    if known:
        yield known, ""
    if 1 < len(known) <= _SINGLE:
        yield from (((parts,), f" of '{parts.norm.name}'") for parts in known)


def _eps(some: Sequence[Parts], other: float) -> str:
    """Their epsilons, with as many digits as tell them from another one: ONNX states them in float32."""
    numbers = [_number(parts.eps) for parts in some]
    digits = 6 if all(f"{number:.6g}" != f"{other:.6g}" for number in numbers) else 12
    return " and ".join(dict.fromkeys(f"{number:.{digits}g}" for number in numbers))


def _number(expr: Expr) -> float:
    return float(algebra.evaluate(expr).hi.reshape(-1)[0])


# Epsilon and the root


def _eps_dropped(parts: Parts, _: Tree) -> Change:
    if parts.total is None or parts.variance is None or not _number(parts.eps):
        return {}
    return {id(parts.total): shaped(parts.variance, parts.total)}


def _other_eps(parts: Parts, eps: float) -> Change:
    if parts.total is None or parts.variance is None or _number(parts.eps) == eps:
        return {}
    return {id(parts.total): shaped(Op("add", (parts.variance, Scalar(eps))), parts.total)}


def _eps_outside(parts: Parts, _: Tree) -> Change:
    if parts.root is None or parts.variance is None or not _number(parts.eps):
        return {}
    outside = Op("add", (Op("sqrt", (parts.variance,)), Scalar(_number(parts.eps))))
    return {id(parts.root): shaped(outside, parts.root)}


def _root_lost(parts: Parts, _: Tree) -> Change:
    return {} if parts.root is None or parts.total is None else {id(parts.root): shaped(parts.total, parts.root)}


def _biased(parts: Parts, _: Tree) -> Change:
    return times_variance(parts, 255 / 256)


# Gamma, beta, mean


def _put(part: Expr | None, value: float) -> Change:
    return {} if part is None else {id(part): full(value, part)}


def _negated(part: Expr | None) -> Change:
    return {} if part is None else {id(part): Op("mul", (part, Scalar(-1.0)))}


def _sizes(part: Expr | None) -> Change:
    """The absolute values in the place of numbers of both signs."""
    if part is None or size_of(part) > 1 << 16:
        return {}
    values = algebra.evaluate(part).hi
    if not (values < 0).any():
        return {}
    return {id(part): Given(tuple(np.abs(values).reshape(-1).tolist()), part.shape)}


def _mean_alone(parts: Parts, tree: Tree) -> Change:
    """beta - mean, without the scale."""
    mean = parts.mean
    scale = tree.find(parts.norm.scale)
    for node in tree.nodes:
        if mean is None or not isinstance(node, Op) or node.kind != "mul" or node.shape != mean.shape:
            continue
        if any(arg is scale for arg in node.args) and any(plain(arg) is mean for arg in node.args):
            return {id(node): mean}
    return {}


def _exchanged(one: Expr | None, two: Expr | None) -> Change:
    if one is None or two is None or one.shape != two.shape:
        return {}
    return {id(one): two, id(two): one}


def _untrained(parts: Parts, _: Tree) -> Change:
    return {**_put(parts.mean, 0.0), **_put(parts.variance, 1.0)}


FORMULAS: tuple[tuple[str, str, Callable[[Parts, Tree], Change]], ...] = (
    ("EPS_DROPPED", "the epsilon{of} was dropped", _eps_dropped),
    ("EPS_OUTSIDE", "the epsilon{of} was added outside the root", _eps_outside),
    ("ROOT_LOST", "the variance{of} was used without its root", _root_lost),
    ("BIASED_VARIANCE", "the variance{of} was biased: times 255/256", _biased),
    ("GAMMA_LOST", "gamma{of} was lost", lambda parts, _: _put(parts.gamma, 1.0)),
    ("BETA_LOST", "beta{of} was lost", lambda parts, _: _put(parts.beta, 0.0)),
    ("MEAN_LOST", "the mean{of} was lost", lambda parts, _: _put(parts.mean, 0.0)),
    ("GAMMA_SIGN", "the sign of gamma{of} was lost", lambda parts, _: _sizes(parts.gamma)),
    ("BETA_SIGN", "beta{of} had the wrong sign", lambda parts, _: _negated(parts.beta)),
    ("MEAN_SIGN", "the mean{of} had the wrong sign", lambda parts, _: _negated(parts.mean)),
    ("MEAN_NOT_SCALED", "the mean{of} was not scaled", _mean_alone),
    ("GAMMA_FOR_BETA", "gamma and beta{of} were exchanged", lambda parts, _: _exchanged(parts.gamma, parts.beta)),
    (
        "MEAN_FOR_VARIANCE", "mean and variance{of} were exchanged",
        lambda parts, _: _exchanged(parts.mean, parts.variance),
    ),
    ("STATISTICS_DEFAULT", "mean and variance{of} were left at 0 and 1", _untrained),
)  # fmt: skip


# Whole maps


def _interleaved(tree: Tree, norm: Norm, scale: Expr | None, shift: Expr | None) -> Iterator[Rewrite]:
    """Channel j of group i where group j of channel i is wanted."""
    count = max((size_of(part) for part in (scale, shift) if part is not None), default=1)
    for groups in _GROUPS:
        if count % groups or groups >= count:
            continue
        by = {
            id(part): view(Permute(view(part, (groups, count // groups)), (1, 0)), part.shape)
            for part in (scale, shift)
            if part is not None and size_of(part) == count
        }
        yield tree.replaced("INTERLEAVED", f"the channels of '{norm.name}' were interleaved by {groups} groups", by)


def _orders(tree: Tree, norms: Sequence[Norm]) -> Iterator[Rewrite]:
    """Two norms that follow each other, applied the other way round."""
    for first, second in pairwise(norms):
        by: dict[int, Expr] = {}
        for one, two in ((first.scale, second.scale), (first.shift, second.shift)):
            mine, yours = tree.find(one), tree.find(two)
            if size_of(one) == size_of(two):
                by |= {} if mine is None else {id(mine): shaped(two, mine)}
                by |= {} if yours is None else {id(yours): shaped(one, yours)}
        if by:
            words = f"'{first.name}' and '{second.name}' were applied in the other order"
            yield tree.replaced("NORM_ORDER", words, by)


def _taken_from(parts: Parts, other: Norm) -> Change:
    known = known_statistics(other)
    if known is None:
        return {}
    pairs = (
        (parts.gamma, known.gamma), (parts.beta, known.beta),
        (parts.mean, known.mean), (parts.variance, known.variance),
    )  # fmt: skip
    by: dict[int, Expr] = {}
    for mine, theirs in pairs:
        if mine is None:
            continue
        if size_of(mine) != size_of(theirs):
            return {}
        by[id(mine)] = shaped(theirs, mine)
    return by
