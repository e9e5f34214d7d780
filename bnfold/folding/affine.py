"""Affine maps on values: `y = scale * x + shift` with constants that broadcast against the value.

A map's scale and shift have the rank of the value, with size 1 along every axis on which they do not depend (the
batch always), or no axes at all. So a map can be followed through transposition, reshape, concatenation and slicing
by doing the same to its constants, and it fits a linear when it varies along the channel axis alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnfold.folding import algebra
from bnfold.folding.expressions import ONE, ZERO, Expr, Spread, Take, add, mul, size_of, spread, view
from bnfold.folding.facts import Norm


@dataclass(frozen=True, eq=False)
class AffineMap:
    """`y = scale * x + shift`; scale and shift have the rank of the value, or shape ()."""

    scale: Expr
    shift: Expr

    @property
    def is_identity(self) -> bool:
        """True when the map is written as doing nothing."""
        return self.scale == ONE and self.shift == ZERO

    @property
    def is_nothing(self) -> bool:
        """True when the map does nothing, however it is written."""
        return is_one(self.scale) and is_zero(self.shift)

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which the map varies."""
        return axes_of(self.scale) | axes_of(self.shift)

    def size(self, axis: int) -> int:
        """The number of different slices along an axis: 1 where the map does not vary."""
        sizes = [part.shape[axis] for part in (self.scale, self.shift) if part.shape]
        return max(sizes, default=1)

    def each(self, change: Callable[[Expr], Expr]) -> AffineMap:
        """The map with a change of layout made to both of its constants; those without axes stay as they are."""
        scale, shift = (change(part) if part.shape else part for part in (self.scale, self.shift))
        return AffineMap(scale, shift)

    def with_shift(self, shift: Expr) -> AffineMap:
        """The same scale with another shift."""
        return AffineMap(self.scale, shift)

    def equals(self, other: AffineMap) -> bool:
        """True when both maps are written alike, as they are when they come from one norm."""
        return self is other or (_same(self.scale, other.scale) and _same(self.shift, other.shift))


IDENTITY = AffineMap(ONE, ZERO)

_NEAR = 1e-6  # far more than float64 is off; what is near is looked at more closely


def after(outer: AffineMap, inner: AffineMap) -> AffineMap:
    """outer after inner: `s2 * (s1 * x + t1) + t2 = (s2 * s1) * x + (s2 * t1 + t2)`."""
    return AffineMap(mul(outer.scale, inner.scale), add(mul(outer.scale, inner.shift), outer.shift))


def map_of(norm: Norm, rank: int | None) -> AffineMap | None:
    """The map of a norm on a value of this rank; None when it has an axis and the rank is not known."""
    if norm.axis is None:
        return AffineMap(_scalar(norm.scale), _scalar(norm.shift))
    if rank is None or not 0 <= norm.axis < rank:
        return None
    axis = norm.axis

    def aligned(part: Expr) -> Expr:
        if not part.shape:
            return part
        return view(part, tuple(size_of(part) if at == axis else 1 for at in range(rank)))

    return AffineMap(aligned(norm.scale), aligned(norm.shift))


def vector(part: Expr, axis: int, channels: int) -> Expr:
    """A constant that varies along one axis only, as a vector (channels,); one without axes stays as it is."""
    if not part.shape or part.shape[axis] == 1:
        return view(part, ()) if part.shape else part
    return view(part, (channels,))


def axes_of(part: Expr) -> frozenset[int]:
    """The axes along which a constant varies."""
    return frozenset(axis for axis, size in enumerate(part.shape) if size != 1)


def take(part: Expr, axis: int, indices: tuple[int, ...]) -> Expr:
    """Some slices of a constant; itself where it does not vary along the axis."""
    return part if part.shape[axis] == 1 else Take(part, axis, indices)


def widened(part: Expr, rank: int, axis: int, size: int) -> Expr:
    """A constant with `size` equal slices along an axis where it did not vary."""
    full = part if part.shape else view(part, (1,) * rank)
    return spread(full, tuple(size if at == axis else old for at, old in enumerate(full.shape)))


def compressed(part: Expr) -> Expr:
    """The constant without the axes along which its numbers are all equal."""
    for axis in sorted(axes_of(part)):
        if isinstance(part, Spread) and part.of.shape[axis] == 1 and axes_of(part) == {axis}:
            return part.of
        if is_constant_along(part, axis):
            part = Take(part, axis, (0,))
    return part


def is_constant_along(part: Expr, axis: int) -> bool:
    """True when all slices of a constant along an axis are equal."""
    found = algebra.evaluate(part)
    return all(bool((part_of == part_of.take([0], axis=axis)).all()) for part_of in (found.hi, found.lo))


def values(part: Expr) -> Any:
    """The numbers of a constant in float64, near enough to judge their size and, for products, their signs."""
    return algebra.magnitude(part)


def is_zero(part: Expr) -> bool:
    """True when a constant is zero everywhere."""
    if part == ZERO:
        return True
    return not values(part).any() and not algebra.evaluate(part).hi.any()


def is_one(part: Expr) -> bool:
    """True when a constant is one everywhere."""
    if part == ONE:
        return True
    if not (abs(values(part) - 1) < _NEAR).all():
        return False
    found = algebra.evaluate(part)
    return bool((found.hi == 1).all() and (found.lo == 0).all())


def _scalar(part: Expr) -> Expr:
    return view(part, ()) if part.shape else part


def _same(left: Expr, right: Expr) -> bool:
    return left is right or left == right
