"""The moves of the planner, one file each: its algebra, its condition, its source.

A move maps facts to facts. `MOVES` lists them in the order in which the planner tries them; adding a move means
adding a file and a line here.

    compose_affine    two affine maps in a row are one
    linear_to_norm    a linear absorbs the norm behind it
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bnfold.folding.facts import Graph
from bnfold.folding.moves.compose_affine import compose_affine
from bnfold.folding.moves.linear_to_norm import linear_to_norm


@dataclass(frozen=True)
class Move:
    """A named function from facts to facts, None when it finds nothing to do."""

    name: str
    apply: Callable[[Graph], Graph | None]


MOVES: tuple[Move, ...] = (
    Move("compose_affine", compose_affine),
    Move("linear_to_norm", linear_to_norm),
)
