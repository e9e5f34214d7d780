"""An affine map and transposition or pixel shuffle: the map's constants go the way of the data.

Algebra: the channels of the map are permuted, repeated or sliced as those of the data are. Pixel shuffle turns
blocks of channels into blocks of space: a map that gives each of them the same numbers passes.
Condition: for pixel shuffle towards space, the channels of a block have equal numbers.
Source: ONNX Transpose-13, DepthToSpace-13 (modes DCR and CRD), SpaceToDepth-13; Shi et al. 2016 (arXiv 1609.05158).
"""

from __future__ import annotations

from bnfold.folding import algebra
from bnfold.folding.affine import AffineMap, take
from bnfold.folding.carriers import Shuffle, Transpose
from bnfold.folding.expressions import Expr, Permute
from bnfold.folding.facts import Carrier, Reason
from bnfold.folding.transport.passage import Passage, Shapes, only


def transpose_backward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[Passage, ...] | Reason:
    """The map with its axes put back."""
    perm = _perm(carrier)
    inverse = tuple(perm.index(axis) for axis in range(len(perm)))
    return (Passage((only(maps).each(lambda part: Permute(part, inverse)),)),)


def transpose_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """The map with its axes in the new order."""
    perm = _perm(carrier)
    return (only(maps).each(lambda part: Permute(part, perm)),)


def shuffle_backward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[Passage, ...] | Reason:
    """Towards space: each channel's numbers for its whole block. Towards channels: one number for a block."""
    asked, rule = only(maps), _rule(carrier)
    found = _blocks_repeated(asked, rule) if rule.up else _blocks_merged(carrier, asked, rule)
    return found if isinstance(found, Reason) else (Passage((found,)),)


def shuffle_forward(
    carrier: Carrier, maps: tuple[AffineMap | None, ...], shapes: Shapes
) -> tuple[AffineMap, ...] | Reason:
    """The other way round."""
    given, rule = only(maps), _rule(carrier)
    found = _blocks_merged(carrier, given, rule) if rule.up else _blocks_repeated(given, rule)
    return found if isinstance(found, Reason) else (found,)


def is_equal_in_blocks(part: Expr, axis: int, blocks: list[tuple[int, ...]]) -> bool:
    """True when the slices of a constant are equal within each block of indices."""
    found = algebra.evaluate(part)
    return all(
        bool((side.take(block, axis=axis) == side.take([block[0]], axis=axis)).all())
        for side in (found.hi, found.lo)
        for block in blocks
    )


def _blocks_repeated(moving: AffineMap, rule: Shuffle) -> AffineMap | Reason:
    """The map of the side with fewer channels, as one of the side with more."""
    problem = _only_channels(moving, rule)
    if problem or rule.axis not in moving.axes:
        return problem or moving
    channels = moving.size(rule.axis)
    order = [0] * (channels * rule.factor)
    for channel, block in enumerate(_blocks(channels, rule)):
        for place in block:
            order[place] = channel
    return moving.each(lambda part: take(part, rule.axis, tuple(order)))


def _blocks_merged(carrier: Carrier, moving: AffineMap, rule: Shuffle) -> AffineMap | Reason:
    """The map of the side with more channels, as one of the side with fewer."""
    problem = _only_channels(moving, rule)
    if problem or rule.axis not in moving.axes:
        return problem or moving
    total = moving.size(rule.axis)
    if total % rule.factor:
        return Reason("AXIS_MISMATCH", f"{total} channels are no whole number of blocks of {carrier.label}")
    blocks = _blocks(total // rule.factor, rule)
    for part in (moving.scale, moving.shift):
        if part.shape and part.shape[rule.axis] != 1 and not is_equal_in_blocks(part, rule.axis, blocks):
            return Reason("AXIS_MISMATCH", f"the channels that {carrier.label} puts into one have different maps")
    return moving.each(lambda part: take(part, rule.axis, tuple(block[0] for block in blocks)))


def _blocks(channels: int, rule: Shuffle) -> list[tuple[int, ...]]:
    """The channels of the larger side that belong to each channel of the smaller one."""
    if rule.channel_first:
        return [tuple(range(c * rule.factor, (c + 1) * rule.factor)) for c in range(channels)]
    return [tuple(range(c, channels * rule.factor, channels)) for c in range(channels)]


def _only_channels(moving: AffineMap, rule: Shuffle) -> Reason | None:
    if moving.axes <= {rule.axis}:
        return None
    return Reason("AXIS_MISMATCH", "it varies over space, which pixel shuffle rearranges")


def _perm(carrier: Carrier) -> tuple[int, ...]:
    return carrier.rule.perm if isinstance(carrier.rule, Transpose) else ()


def _rule(carrier: Carrier) -> Shuffle:
    rule = carrier.rule
    return rule if isinstance(rule, Shuffle) else Shuffle(1, 1, True, True)
