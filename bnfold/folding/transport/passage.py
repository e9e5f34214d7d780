"""What the rules of transport share: a passage, shapes, and the question along which axes a map may vary."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from bnfold.folding.affine import AffineMap
from bnfold.folding.expressions import Expr
from bnfold.folding.facts import Carrier, Dim, Reason

Shapes: TypeAlias = Mapping[str, tuple[Dim, ...]]


@dataclass(frozen=True)
class Passage:
    """A way past a carrier, backward: the map that each input must get. slope: the one that a PReLU gets, (C,)."""

    maps: tuple[AffineMap, ...]
    slope: Expr | None = None
    axis: int = 0


def crossing(carrier: Carrier, maps: Collection[AffineMap], axes: Collection[int], what: str) -> Reason | None:
    """Why a map cannot pass: it varies along an axis over which the carrier runs. None when it does not."""
    crossed = sorted(axis for moving in maps for axis in moving.axes if axis in axes)
    if not crossed:
        return None
    return Reason("AXIS_MISMATCH", f"it runs over axis {crossed[0]}, along which {carrier.label} {what}")


def only(maps: tuple[AffineMap | None, ...]) -> AffineMap:
    """The map of the one output or input that carries data."""
    return next(moving for moving in maps if moving is not None)


def unknown_shape(carrier: Carrier, value: str) -> Reason:
    """The reason why a map cannot pass a carrier whose sizes are not known."""
    return Reason("AXIS_UNKNOWN", f"the shape of '{value}' at {carrier.label} is not known, nor is its channel axis")
