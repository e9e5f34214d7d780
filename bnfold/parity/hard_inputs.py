"""Hard inputs: what a network is seldom fed and a fold must survive, made from the samples' shapes and ranges.

Zeros and constants show shifts, impulses show single taps and their order, borders show paddings, a chequerboard and
random signs show cancellation, subnormal numbers show underflow, ten and a hundred times the data show overflow, and
samples of small margin show decisions. docs/hard-inputs.md has the list and what it catches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.bundle.manifest import TensorSpec
from bnfold.parity.weights.exact import FORMATS
from bnfold.samples import Array, Samples

ROWS = 4  # of one kind, at most
_SEED = 1
LOWEST, IMPULSES, EDGES = "lowest margins", "impulses", "edges"
LARGE = ("ten times the data", "a hundred times the data")


@dataclass(frozen=True, eq=False)
class HardInput:
    """Rows of one kind. inputs: by name, (n, ...) in the dtypes of the network, the same n for all."""

    kind: str
    inputs: dict[str, Array]

    def __len__(self) -> int:
        """The number of rows."""
        return len(next(iter(self.inputs.values())))


def hard_inputs(
    specs: Sequence[TensorSpec], like: Samples, *, lowest: Array | None = None, rows: int = ROWS
) -> tuple[HardInput, ...]:
    """Hard inputs of the samples' shapes, dtypes and range.

    specs: of the network; like: samples that fit them, which fix free sizes. lowest: what the unfolded network answers
    to these samples, (n, classes), for those whose two largest outputs are closest. rows: of one kind, at most.

    Several inputs are all of one kind at a time. Integers stay within the samples' own least and largest number; what
    has no meaning for them (zeros out of range, subnormals, ten times the data) is left out.
    """
    found: dict[str, dict[str, Array]] = {}
    for spec in specs:
        for kind, array in _kinds(np.asarray(like.inputs[spec.name]), rows):
            found.setdefault(kind, {})[spec.name] = array
    whole = [HardInput(kind, _alike(inputs)) for kind, inputs in found.items() if len(inputs) == len(specs)]
    if lowest is not None and lowest.ndim == 2 and lowest.shape[1] > 1:
        with np.errstate(all="ignore"):
            top = np.partition(lowest.astype(np.float64), -2, axis=1)[:, -2:]
        chosen = np.argsort(np.nan_to_num(top[:, 1] - top[:, 0], nan=np.inf), kind="stable")[:rows]
        whole.append(HardInput(LOWEST, {spec.name: np.asarray(like.inputs[spec.name])[chosen] for spec in specs}))
    return tuple(whole)


def _alike(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """As many rows of each input as the longest has, from its first again."""
    most = max(map(len, inputs.values()))
    return {name: array[np.arange(most) % len(array)] for name, array in inputs.items()}


@dataclass(frozen=True, eq=False)
class _Like:
    """The samples of one input: their range and shape."""

    data: Array
    low: float
    high: float
    rows: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape[1:])

    @property
    def whole(self) -> bool:
        """Whether they are integers."""
        return self.data.dtype.kind in "iub"

    @property
    def ground(self) -> float:
        """What an impulse stands out from: zero where that is allowed."""
        return self.low if self.whole else 0.0

    @property
    def peak(self) -> float:
        """The value of the range that is furthest from the ground."""
        return self.high if self.whole or abs(self.high) >= abs(self.low) else self.low

    def full(self, value: float) -> Array:
        return np.full((1, *self.shape), value)


def _kinds(data: Array, rows: int) -> Iterator[tuple[str, Array]]:
    like = _Like(data, float(data.min()), float(data.max()), rows)
    for kind, make in _MAKES.items():
        made = make(like)
        if not len(made):
            continue
        with np.errstate(over="ignore"):
            array = made[:rows].astype(data.dtype)
        if np.isfinite(array.astype(np.float64)).all():
            yield kind, array


def _zeros(like: _Like) -> Array:
    return like.full(0.0) if not like.whole or like.low <= 0 <= like.high else like.full(0.0)[:0]


def _impulses(like: _Like) -> Array:
    """One value: at the first, the middle and the last place, as far as rows go."""
    size = math.prod(like.shape)
    places = (0, size // 2, size - 1)[: max(1, like.rows)]
    found = np.full((len(places), size), like.ground)
    found[range(len(places)), places] = like.peak
    return found.reshape(-1, *like.shape)


def _channel_impulses(like: _Like) -> Array:
    """One value in the middle of a channel, for channels spread over all of them."""
    if len(like.shape) < 2:
        return like.full(0.0)[:0]
    channels = np.unique(np.linspace(0, like.shape[0] - 1, min(like.rows, like.shape[0])).astype(int))
    found = np.full((len(channels), *like.shape), like.ground)
    middle = tuple(size // 2 for size in like.shape[1:])
    for row, channel in enumerate(channels):
        found[(row, channel, *middle)] = like.peak
    return found


def _frame(like: _Like) -> Array:
    """High around, low within."""
    if len(like.shape) < 2:
        return like.full(0.0)[:0]
    found = like.full(like.high)
    found[(slice(None), slice(None), *(slice(1, -1),) * (len(like.shape) - 1))] = like.low
    return found


def _edges(like: _Like) -> Array:
    """One edge high, the rest low: the first and the last place of each spatial axis."""
    found = []
    for axis in range(2, len(like.shape) + 1):
        for place in (0, -1):
            row = like.full(like.low)
            row[(slice(None),) * axis + (place,)] = like.high
            found.append(row)
    return np.concatenate(found) if found else like.full(0.0)[:0]


def _chequerboard(like: _Like) -> Array:
    """Low and high by turns along every axis, and the other way round."""
    odd = np.indices(like.shape).sum(axis=0) % 2 == 1
    return np.stack([np.where(odd, like.high, like.low), np.where(odd, like.low, like.high)])


def _random_signs(like: _Like) -> Array:
    rng = np.random.default_rng(_SEED)
    return np.where(rng.random((min(2, like.rows), *like.shape)) < 0.5, like.low, like.high)


def _saturated(like: _Like) -> Array:
    """Samples driven ten times as far from the middle of the range, and cut off at its ends."""
    middle = (like.low + like.high) / 2
    return np.clip(middle + 10 * (like.data[:2].astype(np.float64) - middle), like.low, like.high)


def _ramp(like: _Like) -> Array:
    values = np.linspace(like.low, like.high, math.prod(like.shape))
    return (np.floor(values) if like.whole else values).reshape(1, *like.shape)


def _subnormal(like: _Like) -> Array:
    """All alike, and with random signs and sizes; 0.4 and less of the least normal number of the dtype."""
    form = FORMATS.get(like.data.dtype.name)
    if form is None:
        return like.full(0.0)[:0]
    most = 0.4 * math.ldexp(1.0, form.least_exponent)
    rng = np.random.default_rng(_SEED)
    return np.concatenate([like.full(most), most * rng.uniform(-1, 1, (1, *like.shape))])


def _times(factor: float) -> Callable[[_Like], Array]:
    def times(like: _Like) -> Array:
        return like.full(0.0)[:0] if like.whole else factor * like.data[:2].astype(np.float64)

    return times


_MAKES: Mapping[str, Callable[[_Like], Array]] = {
    "zeros": _zeros,
    "all lowest": lambda like: like.full(like.low),
    "all highest": lambda like: like.full(like.high),
    IMPULSES: _impulses,
    "an impulse in a channel": _channel_impulses,
    "frame": _frame,
    EDGES: _edges,
    "chequerboard": _chequerboard,
    "random signs": _random_signs,
    "saturated": _saturated,
    "ramp": _ramp,
    "subnormal": _subnormal,
    LARGE[0]: _times(10),
    LARGE[1]: _times(100),
}
