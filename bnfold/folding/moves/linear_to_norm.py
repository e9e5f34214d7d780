"""A linear absorbs the norm behind it, at once or through what stands between.

Algebra: `scale * (W . x + c) + shift = (scale[o] * W[o]) . x + (scale * c + shift)`.
Condition: the norm's axis is the axis of the linear's output channels, followed through every carrier between by the
rules of `bnfold.folding.transport`; every reader of a value on the way takes the same map (a graph output is a
reader); the folded weight and bias are finite in their dtype. A norm upstream takes a map in as well.
Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2. It costs nothing at run time.
"""

from __future__ import annotations

from bnfold.folding.absorb import Changes, affordable, commit
from bnfold.folding.bench import Bench, NormState
from bnfold.folding.facts import Linear, Reason
from bnfold.folding.upstream import upstream


def linear_to_norm(bench: Bench) -> bool:
    """Let what stands before a norm take it in, for every norm from the front; True when anything moved."""
    changed = False
    for state in bench.live_norms():
        if bench.is_gone(state.norm.id) or not state.norm.is_norm:
            continue
        problem = obstacle(state)
        found = problem or affordable(bench, upstream(bench, state, state.map))  # type: ignore[arg-type]
        if isinstance(found, Reason):
            bench.explain(state.norm, found)
            continue
        commit(bench, state.norm, found, is_gone=True, is_right_behind=_is_right_behind(bench, state, found))
        changed = True
    return changed


def obstacle(state: NormState) -> Reason | None:
    """Why a norm may not be touched at all; None when it may."""
    norm = state.norm
    if norm.refusal or norm.obstacle:
        return norm.refusal or norm.obstacle
    if state.map is None:
        return Reason("AXIS_UNKNOWN", f"the rank of the input of {norm.label} is not known, nor is its channel axis")
    return None


def _is_right_behind(bench: Bench, state: NormState, changes: Changes) -> bool:
    node = bench.producer(bench.input_of(state.norm))
    return isinstance(node, Linear) and not state.is_changed and list(changes.linears) == [node.id]
