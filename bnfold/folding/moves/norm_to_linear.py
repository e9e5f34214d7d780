"""A linear absorbs the norm before it, at once or through what stands between.

Algebra: `W . (scale * x + shift) + c = (W[:, i] * scale[i]) . x + (c + sum(W[:, i] * shift[i]))`.
Condition: every reader of the norm takes its map in; a shift does not meet zero padding (dense layers, convolutions
without padding; transposed convolutions only with kernel and stride 1). A norm downstream takes a map in as well.
Source: linearity of the layer in its input. It costs nothing at run time.
"""

from __future__ import annotations

from bnfold.folding.absorb import affordable, commit
from bnfold.folding.bench import Bench
from bnfold.folding.downstream import downstream
from bnfold.folding.facts import Reason
from bnfold.folding.moves.linear_to_norm import obstacle


def norm_to_linear(bench: Bench) -> bool:
    """Let what stands behind a norm take it in, for every norm from the back; True when anything moved."""
    changed = False
    for state in reversed(bench.live_norms()):
        if bench.is_gone(state.norm.id) or not state.norm.is_norm or obstacle(state) is not None or state.map is None:
            continue
        found = affordable(bench, downstream(bench, state, state.map))
        if isinstance(found, Reason):
            bench.explain(state.norm, found)
            continue
        commit(bench, state.norm, found, is_gone=True, is_right_behind=False)
        changed = True
    return changed
