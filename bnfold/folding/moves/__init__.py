"""The moves of the planner, one file each: its algebra, its condition, its source, its cost.

`MOVES` lists them in the order in which the planner tries them; adding a move means adding a file and a line here.
Those that cost nothing at run time are tried to a fixed point, those that cost something afterwards, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bnfold.errors import FoldError
from bnfold.folding.bench import Bench
from bnfold.folding.moves.constant_map import constant_map
from bnfold.folding.moves.leftover_shift import leftover_shift
from bnfold.folding.moves.linear_to_norm import linear_to_norm
from bnfold.folding.moves.merge_branches import merge_branches
from bnfold.folding.moves.norm_to_linear import norm_to_linear
from bnfold.folding.moves.ones_channel import ones_channel


@dataclass(frozen=True)
class Move:
    """A named change of the bench that tells whether it did anything. cost: what it costs at run time, '' if nothing.

    A move without a function of its own allows another one more than it may otherwise.
    """

    name: str
    does: str
    cost: str = ""
    apply: Callable[[Bench], bool] | None = None


MOVES: tuple[Move, ...] = (
    Move("compose_affine", "affine steps in a row are one map"),
    Move(
        "linear_to_norm", "a linear takes in the norm behind it, also through what stands between", "", linear_to_norm
    ),
    Move("merge_branches", "parallel branches that are summed become one", "", merge_branches),
    Move(
        "norm_to_linear", "a linear takes in the norm before it, also through what stands between", "", norm_to_linear
    ),
    Move("copy_shared_weight", "each user of a shared weight gets a copy of its own", "a larger model"),
    Move("extra_additions", "several products without a bias get one in place of a norm", "an addition for each"),
    Move("per_channel_slope", "a negative scale passes a LeakyReLU, which becomes a PReLU", "a slope for each channel"),
    Move("ones_channel", "a shift passes zero padding as a constant channel", "one more channel", ones_channel),
    Move("constant_map", "a shift passes zero padding as a constant map", "an addition and its map", constant_map),
    Move("leftover_shift", "a scale goes downstream, the shift stays", "an addition", leftover_shift),
)
FREE = frozenset(move.name for move in MOVES if not move.cost)


def chosen(moves: object) -> frozenset[str]:
    """The names of the moves that "default", "all" or a list of names stands for. Raises FoldError for any other."""
    known = [move.name for move in MOVES]
    if isinstance(moves, str) and moves in ("default", "all"):
        return FREE if moves == "default" else frozenset(known)
    if not isinstance(moves, str) and not isinstance(moves, Sequence):
        raise FoldError(f"moves is {moves!r}; expected 'default', 'all' or names out of {', '.join(known)}")
    names = [moves] if isinstance(moves, str) else list(moves)
    for name in names:
        if name not in known:
            raise FoldError(f"move '{name}' is not known; choose 'default', 'all' or names out of {', '.join(known)}")
    return frozenset(names)
