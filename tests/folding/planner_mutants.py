"""Ways to get one side condition of the planner wrong, and the network that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bnfold.api  # noqa: F401  (loads every module that is looked up below)
from bnfold.folding.absorb import _axis_problem
from bnfold.folding.affine import AffineMap
from bnfold.folding.bench import Bench
from bnfold.folding.carriers import Sum, Window
from bnfold.folding.expressions import Given, Take, spread, view
from bnfold.folding.facts import Carrier
from bnfold.folding.upstream import _Upstream

FOLDING = "bnfold.folding."
NOT_FIXED = dict.fromkeys(("relu", "elu", "hardswish"), 2.0)  # right for ReLU and ELU
NEGATIVE = dict.fromkeys(("relu", "elu", "hardswish"), -1.0)


@dataclass(frozen=True)
class Mutant:
    """A function of the planner by name ('upstream._Upstream._ignores'), what stands in for it, and who must notice.

    Two names, with " + " between them: conditions of which each stands in for the other.
    """

    target: str
    replacement: Any
    network: str

    @property
    def name(self) -> str:
        return f"{self.target} ({self.network})"

    def apply(self, patch: Any) -> None:
        """Put the replacement in every module of the engine that holds the function. patch: pytest's monkeypatch."""
        for target in self.target.split(" + "):
            self._apply(patch, target)

    def _apply(self, patch: Any, target: str) -> None:
        module, _, name = target.rpartition(".")
        *_, owner = module.rpartition(".")
        if owner[:1].isupper() or owner.startswith("_U"):
            patch.setattr(getattr(sys.modules[FOLDING + module.rpartition(".")[0]], owner), name, self.replacement)
            return
        original = getattr(sys.modules[FOLDING + module], name)
        holders = [held for key, held in sys.modules.items() if key.startswith(FOLDING) and held is not None]
        for holder in holders:
            if getattr(holder, name, None) is original:
                patch.setattr(holder, name, self.replacement)


def always(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_given: value


YES, NO, FINE = always(True), always(False), always(None)


def unpadded(state: Any) -> bool:
    """Transposed convolutions are forgotten."""
    return state.weights.window is not None and state.weights.window.is_padded


def unstrided(state: Any) -> bool:
    """The stride of a pointwise transposed convolution is forgotten."""
    window = state.weights.window
    if window is None:
        return False
    return window.is_padded or (state.linear.is_transposed and any(size > 1 for size in window.kernel))


def begins_padded(window: Window) -> bool:
    return any(begin for begin, _ in window.pads or ())


def surely_padded(window: Window) -> bool:
    return window.pads is not None and any(begin or end for begin, end in window.pads)


def any_axis(state: Any, wanted: AffineMap, channels: int) -> Any:
    """A map over any one axis, as long as the sizes agree."""
    return state.linear.obstacle or (
        None if wanted.axes and max(wanted.scale.shape) == channels else _axis_problem(state, wanted, channels)
    )


_asked = _Upstream._wanted


def without_readers(self: Any, value: str) -> Any:
    """Nobody else reads anything."""
    kept, self.bench.readers = self.bench.readers, always([])
    try:
        return _asked(self, value)
    finally:
        self.bench.readers = kept


_readers = Bench.readers


def without_outputs(self: Bench, value: str) -> Any:
    """A graph output is no reader."""
    return [slot for slot in _readers(self, value) if slot[0] in self.graph.by_id]


def corner(_small: Window, _large: Window, _axis: int) -> tuple[int, int]:
    """Put a small kernel in the corner of the large one."""
    return 0, 1


def centre(small: Window, large: Window, axis: int) -> tuple[int, int]:
    """Put a small kernel in the middle of the large one, whatever the paddings."""
    return (large.kernel[axis] - small.kernel[axis]) // 2, 1


def no_axis(_carrier: Carrier, _maps: Any, _axes: Any, _what: str) -> None:
    """Nothing crosses anything."""


def plus(carrier: Carrier) -> tuple[int, ...]:
    return (1,) * (len(carrier.rule.signs) if isinstance(carrier.rule, Sum) else 1)


def whole(part: Any, axis: int, indices: Any) -> Any:
    """Slices as if they were in order."""
    return part if part.shape[axis] == 1 else Take(part, axis, tuple(sorted(indices)))


def one_run(before: Any, after: Any) -> Any:
    """Axes in pairs, from the front."""
    short = min(len(before), len(after)) - 1
    pairs = [((one,), (two,)) for one, two in zip(before[:short], after[:short], strict=True)]
    return [*pairs, (before[short:], after[short:])]


def channel_first(channels: int, rule: Any) -> list[tuple[int, ...]]:
    return [tuple(range(c * rule.factor, (c + 1) * rule.factor)) for c in range(channels)]


def block_first(channels: int, rule: Any) -> list[tuple[int, ...]]:
    return [tuple(range(c, channels * rule.factor, channels)) for c in range(channels)]


def everywhere(window: Window, axis: int, _before: int, after: int, *, transposed: bool) -> Given:
    """Every tap meets data at every place."""
    del transposed
    return Given((1.0,) * window.kernel[axis] * after, (window.kernel[axis], after))


def first_group(rows: Any, w: Any, spatial: tuple[int, ...]) -> Any:
    """Every group gets the numbers of the first one."""
    first, columns = w.channels if w.out_first else w.in_channels, rows.shape[2]
    return spread(view(Take(rows, 0, (0,)), (1, columns, *spatial)), (first, columns, *spatial))


MUTANTS = [
    Mutant("transport.activations.is_negative_somewhere", NO, "a rectifier keeps a negative scale"),
    Mutant("transport.space.is_negative_somewhere", NO, "a maximum keeps negative scales"),
    Mutant("transport.activations.is_homogeneous", YES, "a function that is not homogeneous passes nothing"),
    Mutant("transport.activations._problem", FINE, "a rectifier keeps a shift"),
    Mutant(
        "transport.activations._picks", lambda flags: (0,) * len(flags), "a leaky rectifier turns with a negative scale"
    ),
    Mutant("transport.space.is_weighted_unevenly", NO, "an average that counts padding keeps the shift"),
    Mutant("transport.space.is_weighted_unevenly", YES, "an average that counts padding where there is none passes"),
    Mutant("transport.space.leaves_constant", YES, "a border of zeros keeps a shift"),
    Mutant("transport.space.leaves_constant", YES, "a border of another number keeps a scale"),
    Mutant("transport.space.leaves_constant", YES, "a crop with points outside keeps the shift"),
    Mutant("transport.space.is_one", YES, "a border of another number keeps a scale"),
    Mutant("transport.space.is_one", YES, "a crop with another number outside keeps a scale"),
    Mutant("transport.space.pool_problem", FINE, "a maximum whose places are read passes nothing"),
    Mutant("transport.space.pool_problem", FINE, "an average that counts padding keeps the shift"),
    Mutant("transport.space.pad_problem", FINE, "a border of zeros keeps a shift"),
    Mutant("transport.space.resize_problem", FINE, "a crop with points outside keeps the shift"),
    Mutant("transport.passage.crossing", no_axis, "a mean over the channels does not pass another map"),
    Mutant("transport.sums.is_broadcast", FINE, "a sum that is broadcast over channels is kept"),
    Mutant("transport.sums._signs", plus, "a shift that only a subtrahend can take is turned"),
    Mutant("transport.sums.negative", lambda part: part, "a shift that only a subtrahend can take is turned"),
    Mutant("affine.AffineMap.equals", YES, "a sum of norms of one scale goes forward only where the scales are one"),
    Mutant("affine.AffineMap.equals", YES, "readers that want different maps of one value keep their norms"),
    Mutant("transport.layout.is_equal_in_blocks", YES, "pixel unshuffle keeps a map that is not"),
    Mutant("transport.layout._blocks", channel_first, "pixel shuffle by depth first repeats the map"),
    Mutant("transport.layout._blocks", block_first, "pixel shuffle by columns first repeats the map"),
    Mutant("affine.take", whole, "channels in another order go forward with their map"),
    Mutant(
        "transport.parts._ranges",
        lambda sizes: [tuple(range(size)) for size in sizes],
        "each branch of a concatenation takes its slices",
    ),
    Mutant("transport.reshaping.runs", one_run, "a reshape that mixes channels with places does not pass"),
    Mutant("absorb.meets_zeros", NO, "a shift that meets zero padding is kept"),
    Mutant("absorb.meets_zeros", unpadded, "a transposed convolution meets the shift at its borders"),
    Mutant("absorb.meets_zeros", unstrided, "a pointwise transposed convolution with stride does not"),
    Mutant("carriers.Window.is_padded", property(begins_padded), "padding at one end alone meets the shift as well"),
    Mutant("carriers.Window.is_padded", property(surely_padded), "padding that is chosen at run time meets the shift"),
    Mutant("absorb._axis_problem", FINE, "a norm on another axis of the same size is kept"),
    Mutant("absorb._axis_problem", any_axis, "a dense layer over another axis than the norm does not"),
    Mutant("absorb.norm_problem", FINE, "a norm that is kept by name takes nothing in"),
    Mutant("absorb.sharing_problem", FINE, "two linears of one weight keep norms that differ"),
    Mutant("plan._torn", always(frozenset()), "a linear whose weight another one reads keeps its norm"),
    Mutant("moves.linear_to_norm.obstacle", FINE, "a norm that is kept by name takes nothing in"),
    Mutant("upstream._Upstream._wanted", without_readers, "another reader of a linear keeps the norm"),
    Mutant("upstream._Upstream._ignores", YES, "another reader of a linear keeps the norm"),
    Mutant("upstream._Upstream._ignores", YES, "a graph output is a reader"),
    Mutant("bench.Bench.readers", without_outputs, "a graph output is a reader"),
    Mutant("bench.Bench.readers", without_outputs, "a norm with an output behind it is kept"),
    Mutant("bench.Bench.range_problem", FINE, "a fold beyond the range of its dtype is kept"),
    Mutant("faults.fault", FINE, "a negative variance is refused"),
    Mutant("moves.merge_branches._place", corner, "a small kernel is embedded in a large one"),
    Mutant("moves.merge_branches._place", centre, "a kernel beside the window of the other is left"),
    Mutant("moves.merge_branches._place", centre, "a dilated kernel is embedded in a dense one"),
    Mutant("moves.merge_branches._may_leave", YES, "a branch that is taken away is not what stays"),
    Mutant("moves.merge_branches._fits_sum", YES, "branches of an unknown number of channels are not merged"),
    Mutant("moves.merge_branches._is_free", YES, "an identity norm that is kept by name is not merged"),
    Mutant(
        "moves.merge_branches._is_square + moves.merge_branches._fits_sum", YES, "a skip of another size is not merged"
    ),
    Mutant("moves.merge_branches._same_axis", YES, "norms over different axes are not merged"),
    Mutant(
        "moves.merge_branches._signed", lambda part, _sign: part, "a difference of branches is merged with its sign"
    ),
    Mutant(
        "moves.merge_branches._is_plain + moves.merge_branches._may_leave", YES, "sums of three are not taken apart"
    ),
    Mutant("moves.ones_channel._are_free", YES, "a channel of ones does not go into a grouped convolution"),
    Mutant(
        "moves.ones_channel.FIXED_POINT", NOT_FIXED, "a channel of ones carries a shift past padding, behind HardSwish"
    ),
    Mutant("moves.ones_channel.FIXED_POINT", NEGATIVE, "a channel of ones carries a shift past padding, behind Relu"),
    Mutant("moves.leftover_shift.has_zero", NO, "a scale of zero cannot be divided out of a shift"),
    Mutant("moves.constant_map._mask", everywhere, "a constant map carries a shift past padding"),
    Mutant("moves.compose_affine._composable", YES, "steps that somebody else reads are not composed"),
    Mutant("weights._over_groups", first_group, "a grouped convolution takes in the norm before it"),
]
