"""The scale of a norm goes elsewhere; its shift stays behind as one addition.

Algebra: upstream `a * x + b`, where what writes x takes the factor in; downstream `a * x + b = a * (x + b / a)`: the
addition stays where the norm was, the factor goes to its readers.
Condition: the scale alone may pass what the shift may not (zero padding, an average that counts it); downstream, a is
not zero in any channel.
Source: linearity. What is left costs an addition: about what the norm did on one thread, so it is no default.
"""

from __future__ import annotations

from bnfold.folding.absorb import Changes, commit
from bnfold.folding.affine import AffineMap, is_one, is_zero, values
from bnfold.folding.bench import Bench, NormState
from bnfold.folding.downstream import downstream
from bnfold.folding.expressions import ONE, ZERO, div
from bnfold.folding.facts import Reason
from bnfold.folding.moves.linear_to_norm import obstacle
from bnfold.folding.upstream import upstream


def leftover_shift(bench: Bench) -> bool:
    """Reduce every norm that is left to an addition, where that can be; True when anything moved."""
    changed = False
    for state in reversed(bench.live_norms()):
        moving = state.map
        if moving is None or not _is_candidate(state, moving):
            continue
        found, shift = upstream(bench, state, AffineMap(moving.scale, ZERO)), moving.shift
        if not _is_into_linears(found) and not has_zero(moving):
            found, shift = downstream(bench, state, AffineMap(moving.scale, ZERO)), div(moving.shift, moving.scale)
        if not isinstance(found, Changes) or not _is_into_linears(found):
            continue
        commit(bench, state.norm, found, is_gone=False, is_right_behind=False)
        state.map, state.is_changed = AffineMap(ONE, shift), True
        bench.reduced[state.norm.id] = found.targets
        changed = True
    return changed


def _is_candidate(state: NormState, moving: AffineMap) -> bool:
    is_free = state.norm.is_norm and obstacle(state) is None and not state.taken
    return is_free and not is_one(moving.scale) and not is_zero(moving.shift)


def _is_into_linears(found: Changes | Reason) -> bool:
    return isinstance(found, Changes) and not found.norms


def has_zero(moving: AffineMap) -> bool:
    """True when some channel is scaled by zero, which cannot be divided out."""
    return bool((values(moving.scale) == 0).any())
