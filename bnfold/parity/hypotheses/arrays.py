"""A right tensor put in the wrong way: transposed, turned over, channels exchanged or scaled, numbers lost.

These need the numbers, not what they are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bnfold.folding.expressions import Array
from bnfold.parity.hypotheses.channels import shown

F64 = np.ndarray[Any, np.dtype[np.float64]]
Near = Callable[[F64], Array]  # where the shipped numbers are near to some others

_FEW = 0.25  # share of channels up to which each is named that is scaled


def turned(exact: F64) -> Iterator[tuple[str, str, Callable[[Array], Array]]]:
    """Layouts that a tensor of this shape may be confused with: code, words, and what turns it over."""
    rank, shape = exact.ndim, exact.shape
    if rank > 3 and shape[-1] == shape[-2] > 1:
        yield "KERNEL_TRANSPOSED", "the kernel is transposed", lambda x: np.swapaxes(x, -1, -2)
    spatial = tuple(axis for axis in range(2, rank) if shape[axis] > 1)
    if spatial:
        yield "KERNEL_FLIPPED", "the kernel is turned over", lambda x: np.flip(x, spatial)
        if len(spatial) > 1:
            yield "KERNEL_FLIPPED", "the kernel is flipped along one axis", lambda x: np.flip(x, spatial[-1])
            yield "KERNEL_FLIPPED", "the kernel is flipped along one axis", lambda x: np.flip(x, spatial[0])
    if rank >= 2 and shape[0] == shape[1] > 1:
        yield "WEIGHT_TRANSPOSED", "input and output channels are exchanged", lambda x: np.swapaxes(x, 0, 1)


def permuted(shipped: F64, exact: F64, slack: F64, axis: int) -> tuple[str, str, F64] | None:
    """The channels of an axis in another order: code, words, and the exact tensor so ordered; None where not."""
    count = exact.shape[axis]
    if count < 2 or not np.isfinite(shipped).all():
        return None
    have, want, room = (np.moveaxis(part, axis, 0).reshape(count, -1) for part in (shipped, exact, slack))
    wrong = np.flatnonzero((np.abs(have - want) > room).any(axis=1))
    if len(wrong) < 2:
        return None
    weights = np.cos(np.arange(1, have.shape[1] + 1))  # a projection that tells slices apart
    left, right = have[wrong] @ weights, want[wrong] @ weights
    order = np.arange(count)
    order[wrong[np.argsort(left, kind="stable")]] = wrong[np.argsort(right, kind="stable")]
    guess = np.take(exact, order, axis)
    moved = np.flatnonzero(order != np.arange(count))
    if len(moved) < 2:
        return None
    if len(moved) == 2:
        return "CHANNELS_EXCHANGED", f"channels {moved[0]} and {moved[1]} are exchanged", guess
    groups = _interleaving(order)
    if groups:
        return "CHANNELS_INTERLEAVED", f"the channels are interleaved by {groups} groups", guess
    words = f"{len(moved)} channels are in another order ({shown(moved.tolist())})"
    return "CHANNELS_EXCHANGED", words, guess


def _interleaving(order: Array) -> int:
    """By how many groups an order is interleaved; 0 when it is not."""
    count = len(order)
    for groups in range(2, count // 2 + 1):
        if count % groups == 0 and (order == np.arange(count).reshape(groups, -1).T.reshape(-1)).all():
            return groups
    return 0


def scaled(shipped: F64, exact: F64, slack: F64, axis: int) -> tuple[str, str, F64] | None:
    """Channels of an axis times a factor each: code, words, and the exact tensor so scaled; None where it is not so.

    A factor is told only where a channel has several numbers to show it.
    """
    count = exact.shape[axis]
    have, want, room = (np.moveaxis(part, axis, 0).reshape(count, -1) for part in (shipped, exact, slack))
    if not np.isfinite(have).all() or have.shape[1] < 3:
        return None
    wrong = np.flatnonzero((np.abs(have - want) > room).any(axis=1))
    square = np.square(want).sum(axis=1)
    factors = np.ones(count)
    factors[wrong] = (have * want).sum(axis=1)[wrong] / np.where(square[wrong] > 0, square[wrong], 1.0)
    guess = np.moveaxis((want * factors[:, None]).reshape(np.moveaxis(exact, axis, 0).shape), 0, axis)
    code, words = _in_words(wrong, factors[wrong], count)
    return code, words, guess


def _in_words(wrong: Array, factors: F64, count: int) -> tuple[str, str]:
    if not len(wrong):
        return "CHANNEL_SCALED", ""
    which = f"channel {shown(wrong.tolist())}" if len(wrong) == 1 else f"channels {shown(wrong.tolist())}"
    is_one = bool(np.ptp(factors) <= 1e-5 * np.abs(factors).max())
    if is_one:
        where = "everything" if len(wrong) == count else which
        verb = "are" if len(wrong) > 1 and where != "everything" else "is"
        factor = float(np.mean(factors))
        if abs(factor) < 1e-9:
            return "ZEROED", f"{where} {verb} zero"
        if abs(factor + 1) < 1e-6:
            return "NEGATED", f"{where} {verb} negated"
        return "CHANNEL_SCALED", f"{where} {verb} multiplied by {_spelt(factor)}"
    if len(wrong) <= max(1, _FEW * count):
        return "CHANNEL_SCALED", f"{which} are multiplied by a factor each"
    return "STALE", "another factor for each channel than the norm's: stale statistics?"


def _spelt(factor: float) -> str:
    """A factor, and by how much it misses 1 where it is close to that."""
    rest = factor - 1
    return f"1 {'+' if rest > 0 else '-'} {abs(rest):.3g}" if abs(rest) < 5e-6 else f"{factor:.6g}"


def narrowed(exact: F64, dtype: np.dtype[Any]) -> Iterator[tuple[str, F64]]:
    """A wide tensor that has gone through a narrower dtype: its name, and the numbers."""
    import ml_dtypes

    narrow: list[tuple[str, Any]] = [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)]
    if dtype == np.float64:
        narrow.insert(0, ("float32", np.float32))
    elif dtype != np.float32:
        return
    with np.errstate(all="ignore"):
        for name, kind in narrow:
            yield name, exact.astype(kind).astype(np.float64)
