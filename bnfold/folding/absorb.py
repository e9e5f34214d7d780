"""What takes an affine map in: a linear, or a norm. The conditions, the changes, and carrying them out on the bench.

Nothing is changed before everything is known to be legal: an attempt collects `Changes`, `commit` makes them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bnfold.folding.affine import AffineMap, is_zero, values, vector
from bnfold.folding.bench import Bench, LinearState, NormState
from bnfold.folding.edits import SetSlope
from bnfold.folding.facts import Norm, Reason
from bnfold.folding.weights import Weights, mapped_before, mapped_behind


@dataclass
class Changes:
    """What an attempt would change: linears by id (new numbers, largest factor, bound on what the bias gains)."""

    linears: dict[str, tuple[Weights, float, float]] = field(default_factory=dict)
    norms: dict[str, AffineMap] = field(default_factory=dict)
    passed: list[Norm] = field(default_factory=list)  # elementwise maps that went along
    slopes: list[SetSlope] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        """The ids of what takes the map in."""
        return [*self.linears, *self.norms]


def norm_problem(state: NormState, wanted: AffineMap) -> Reason | None:
    """Why a norm cannot take another map in: it is kept by name, is no fixed map, or runs over another axis."""
    if state.norm.refusal or state.norm.obstacle:
        return Reason("NO_LINEAR_BEFORE", f"{state.norm.label} is beside it, and may not be touched")
    if state.map is None:
        return Reason("AXIS_UNKNOWN", f"the rank of the input of {state.norm.label} is not known")
    if len(wanted.axes | state.map.axes) > 1:
        return Reason("AXIS_MISMATCH", f"{state.norm.label} beside it runs over another axis")
    return None


def behind_problem(state: LinearState, wanted: AffineMap) -> Reason | None:
    """Why a linear cannot take in a map of its output: it must vary along the channels alone."""
    return _axis_problem(state, wanted, state.weights.channels)


def before_problem(state: LinearState, wanted: AffineMap) -> Reason | None:
    """Why a linear cannot take in a map of its input: the axis, or a shift that meets zeros of the border."""
    problem = _axis_problem(state, wanted, state.weights.in_channels)
    if problem is None and not is_zero(wanted.shift) and meets_zeros(state):
        return Reason(
            "PAD_SHIFT",
            f"its shift would have to pass the zero padding of {state.linear.label}, where there is nothing to shift",
        )
    return problem


def meets_zeros(state: LinearState) -> bool:
    """True when some output of a linear is made from fewer inputs than others, so that a shift is no constant there.

    A transposed convolution has that at its borders and, with stride, between them, unless kernel and stride are 1.
    """
    window = state.weights.window
    if window is None:
        return False
    if state.linear.is_transposed:
        is_pointwise = all(size == 1 for size in (*window.kernel, *window.stride))
        return not is_pointwise or window.is_padded or any(window.output_padding)
    return window.is_padded


def _axis_problem(state: LinearState, wanted: AffineMap, channels: int) -> Reason | None:
    linear = state.linear
    if linear.obstacle:
        return linear.obstacle
    if not wanted.axes:
        return None
    if linear.axis is None:
        return Reason("AXIS_UNKNOWN", f"the rank of the data of {linear.label} is not known, nor its channel axis")
    others = sorted(wanted.axes - {linear.axis})
    if others:
        return Reason(
            "AXIS_MISMATCH", f"it runs over axis {others[0]}, the channels of {linear.label} are axis {linear.axis}"
        )
    if wanted.size(linear.axis) != channels:
        return Reason("AXIS_MISMATCH", f"it has {wanted.size(linear.axis)} channels, {linear.label} has {channels}")
    return None


def taken_in(
    bench: Bench, changes: Changes, state: LinearState, problem: Reason | None, wanted: AffineMap, *, behind: bool
) -> Reason | None:
    """Note what a linear becomes by a map behind or before it, or say why it cannot."""
    problem = problem or sharing_problem(bench, state)
    if problem:
        return problem
    linear, weights = state.linear, state.weights
    channels = weights.channels if behind else weights.in_channels
    scale = wanted.scale if not wanted.scale.shape else vector(wanted.scale, linear.axis or 0, channels)
    shift = wanted.shift if not wanted.shift.shape else vector(wanted.shift, linear.axis or 0, channels)
    new = (mapped_behind if behind else mapped_before)(weights, scale, shift)
    grown, moved = (float(np.max(np.abs(values(part)), initial=0.0)) for part in (scale, shift))
    added = moved
    if not behind:
        bench.measure(state)
        added = moved * (state.peak or 0.0) * bench.fan_in(state)
    problem = bench.range_problem(state, new, max(grown, 0.0 if behind else 1.0), added)
    if problem is None:
        changes.linears[linear.id] = (new, max(grown, 0.0 if behind else 1.0), added)
    return problem


def sharing_problem(bench: Bench, state: LinearState) -> Reason | None:
    """Why a shared weight may not be changed: a copy of it would make the model larger."""
    key = state.linear.weight.key
    if key in bench.tied:
        count = bench.graph.tensor_readers.get(key, 1)
        return Reason(
            "COSTS_MORE",
            f"the weight '{state.linear.weight.name}' of {state.linear.label} has {count} users, and each would need "
            "a copy of its own (moves: copy_shared_weight)",
        )
    return None


def affordable(bench: Bench, found: Changes | Reason) -> Changes | Reason:
    """The changes, unless they cost more than the norm: several products would get an addition each in its place."""
    if isinstance(found, Reason) or "extra_additions" in bench.allowed:
        return found
    added = [id for id, (new, _, _) in found.linears.items() if _gets_addition(bench.linears[id], new)]
    if len(added) < 2:
        return found
    return Reason(
        "COSTS_MORE",
        f"{bench.label(added[0])} and {len(added) - 1} more have no bias, and each would need an addition of its own "
        "(moves: extra_additions)",
    )


def _gets_addition(state: LinearState, new: Weights) -> bool:
    """True for a product without a bias that gets one: a MatMul has no place for it."""
    return state.linear.kind == "MatMul" and state.weights.bias is None and new.bias is not None


def commit(bench: Bench, norm: Norm, changes: Changes, *, is_gone: bool, is_right_behind: bool) -> None:
    """Make the changes of an attempt. is_gone: the norm leaves; is_right_behind: it stood right behind a linear."""
    taken = [*bench.norms[norm.id].taken, norm]
    for id, (weights, grown, added) in changes.linears.items():
        state = bench.linears[id]
        bench.grow(state, grown, added)
        state.weights = weights
        state.norms += taken
        if is_right_behind and state.behind is not None:
            state.behind = [*state.behind, norm]
        else:
            state.behind = None
    for id, moving in changes.norms.items():
        other = bench.norms[id]
        other.map, other.is_changed = moving, True
        other.taken += taken
    for passed in changes.passed:
        bench.bypass(passed, changes.targets)
    for slope in changes.slopes:
        bench.set_slope(slope)
    if is_gone:
        bench.bypass(norm, changes.targets)
