"""The scale of a norm goes downstream; its shift stays behind as one addition.

Algebra: `a * x + b = a * (x + b / a)`: the addition stays where the norm was, the factor goes to its readers.
Condition: a is not zero in any channel; every reader takes the scale (zero padding does not mind it).
Source: linearity. What is left costs an addition: about what the norm did on one thread, so it is no default.
"""

from __future__ import annotations

from bnfold.folding.absorb import Changes, commit, downstream
from bnfold.folding.affine import AffineMap, is_one, is_zero, values
from bnfold.folding.bench import Bench, NormState
from bnfold.folding.expressions import ONE, ZERO, div
from bnfold.folding.facts import Reason
from bnfold.folding.moves.linear_to_norm import obstacle


def leftover_shift(bench: Bench) -> bool:
    """Reduce every norm that is left to an addition, where that can be; True when anything moved."""
    changed = False
    for state in reversed(bench.live_norms()):
        found = _scale_downstream(bench, state)
        if found is None or state.map is None:
            continue
        scale, shift = state.map.scale, state.map.shift
        commit(bench, state.norm, found, is_gone=False, is_right_behind=False)
        state.map, state.is_changed = AffineMap(ONE, div(shift, scale)), True
        bench.reduced[state.norm.id] = found.targets
        changed = True
    return changed


def _scale_downstream(bench: Bench, state: NormState) -> Changes | None:
    if not state.norm.is_norm or obstacle(state) is not None or state.map is None or state.taken:
        return None
    scale, shift = state.map.scale, state.map.shift
    if is_one(scale) or is_zero(shift) or has_zero(state.map):
        return None
    found = downstream(bench, state, AffineMap(scale, ZERO))
    return None if isinstance(found, Reason) or found.norms else found


def has_zero(moving: AffineMap) -> bool:
    """True when some channel is scaled by zero, which cannot be divided out."""
    return bool((values(moving.scale) == 0).any())
