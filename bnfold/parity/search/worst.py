"""The records of the search for the worst input: two models to tell apart, where it starts, and what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx

from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import ParityError
from bnfold.parity.decisions import Decisions
from bnfold.parity.hard_rule import HardCorner, Status
from bnfold.parity.triangle import Corner
from bnfold.runtime import Device, open_session, run

Array = np.ndarray[Any, np.dtype[Any]]
Inputs = Mapping[str, Array]
Run = Callable[[Inputs], dict[str, Array]]
Kind = Literal["gradient", "coordinate"]

Sought = dict[str, tuple[float, float]]  # root mean square and maximum of a difference, by output

NULLS = 2  # re-rounded copies that are searched against
_CHUNK = 64  # rows run at a time where the batch size is free
_LEAST = 1e-300
_MOST_BYTES = 2**31  # of a protobuf message


@dataclass(frozen=True, eq=False)
class Pair:
    """Two models to tell apart, their tensors in them. decided: the output whose largest element is an answer."""

    reference: onnx.ModelProto
    folded: onnx.ModelProto
    specs: Sequence[TensorSpec]
    decided: str | None = None
    device: Device = "cpu"
    threads: int = 1

    @property
    def batch(self) -> int | None:
        """The batch size, where it is fixed."""
        fixed = [spec.shape[0] for spec in self.specs if spec.shape and spec.shape[0] > 0]
        return fixed[0] if fixed else None

    def runner(self, model: onnx.ModelProto, *, optimise: bool) -> Run:
        """What runs any number of rows; the reference without optimisations, the folded model with them."""
        if model.ByteSize() >= _MOST_BYTES:
            raise ParityError("the model is larger than 2 GiB, which cannot be searched; verify it without a search")
        session = open_session(model.SerializeToString(), optimise=optimise, device=self.device, threads=self.threads)
        return lambda inputs: in_batches(lambda part: run(session, part), inputs, self.batch)


@dataclass(frozen=True, eq=False)
class WorstInput:
    """What the search found. inputs: rows by name, the worst one first.

    difference: the largest of |folded - unfolded| there, in ONNX Runtime, on the output where it grew most; on_data:
    the same on the goldens; ratio: of the two. top1_same: whether all rows keep their class, None without classes;
    margin: the smallest of the unfolded model's. steps: of ascent, or inputs tried. corners: T3's rule, an output each.
    note: why it was no gradient search.
    """

    kind: Kind
    inputs: dict[str, Array]
    output: str
    difference: float
    on_data: float
    top1_same: bool | None
    margin: float | None
    steps: int
    corners: tuple[HardCorner, ...]
    decisions: Decisions | None
    note: str = ""

    @property
    def ratio(self) -> float:
        """difference / on_data; 1 where both are zero or both infinite."""
        if self.difference == self.on_data:  # none at all, or what is not finite, there and here
            return 1.0
        return self.difference / self.on_data if self.on_data else math.inf

    @property
    def corner(self) -> Corner:
        """T3's record of the output that grew most."""
        return next(found.corner for found in self.corners if found.corner.output == self.output)

    @property
    def status(self) -> Status:
        """Fails by T3's rule or by a decision that no rounding excuses."""
        found = {corner.status for corner in self.corners}
        if "fails" in found or (self.decisions is not None and not self.decisions.holds):
            return "fails"
        return "cannot tell" if "cannot tell" in found else "holds" if "holds" in found else "left out"

    def sentences(self) -> tuple[str, ...]:
        """What is wrong, for a person."""
        said = [found.sentence() for found in self.corners if found.status in ("fails", "cannot tell")]
        if self.decisions is not None and not self.decisions.holds:
            said += self.decisions.sentences()
        return tuple(said)


def in_batches(ask: Run, inputs: Inputs, batch: int | None) -> dict[str, Array]:
    """The outputs for any number of rows; a fixed batch is filled up with rows whose answers are cut off again."""
    rows = len(next(iter(inputs.values())))
    size = batch or _CHUNK
    parts = []
    for begin in range(0, rows, size):
        count = min(size, rows - begin)
        index = np.arange(begin, begin + (batch or count)) % rows
        answers = ask({name: array[index] for name, array in inputs.items()})
        parts.append({name: array[:count] if array.ndim else array for name, array in answers.items()})
    return {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Clock:
    """The time of a search, and who is told of it."""

    begun: float
    seconds: float
    say: Callable[[str], None]

    def at(self, share: float) -> float:
        """The time at which this share of the budget is spent."""
        return self.begun + share * self.seconds

    def rest(self) -> Clock:
        """What is left of the time, as a budget of its own."""
        now = time.monotonic()
        return Clock(now, max(0.0, self.at(1.0) - now), self.say)


@dataclass(frozen=True, eq=False)
class Ground:
    """What a search starts from.

    starts: rows by input; ranges: (low, high) by input; scales: the size of the float outputs; on_data: the largest
    difference of each on the samples. unfolded, folded: run the models.
    """

    pair: Pair
    starts: dict[str, Array]
    ranges: Mapping[str, tuple[float, float]]
    scales: Mapping[str, float]
    on_data: Mapping[str, float]
    unfolded: Run
    folded: Run

    @property
    def parts(self) -> int:
        """How many searches there are: for the difference, for a decision, and between re-rounded copies."""
        return NULLS + (1 if self.pair.decided is None else 2)

    def cast(self, inputs: Inputs) -> dict[str, Array]:
        """Inputs in the dtypes of the network, within the range."""
        return {
            name: np.clip(array, *self.ranges[name]).astype(self.starts[name].dtype) for name, array in inputs.items()
        }


@dataclass(frozen=True, eq=False)
class Climb:
    """Rows that a search found, what the same search finds between right folds, and what tells the truth of rows."""

    kind: Kind
    inputs: dict[str, Array]
    sought: Sought
    steps: int
    truth: Run


def apart(one: Array, other: Array) -> Array:
    """|one - other| in float64; infinite where one of them alone is not finite, zero where both are not."""
    left, right = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        found = np.abs(left - right)
    alone = np.isfinite(left) != np.isfinite(right)
    return np.where(alone, np.inf, np.where(np.isfinite(found), found, 0.0))


def row_differences(one: Inputs, other: Inputs, scales: Mapping[str, float]) -> Array:
    """Of each row, the largest difference of an output, relative to the output's own size."""
    rows = max(len(one[name]) for name in scales)
    found = np.zeros(rows)
    for name, scale in scales.items():
        if len(one[name]) == rows:
            found = np.maximum(found, apart(one[name], other[name]).reshape(rows, -1).max(axis=1) / scale)
    return found


def output_size(array: Array) -> float:
    """The root mean square of what is finite."""
    values = array.astype(np.float64)
    values = values[np.isfinite(values)]
    return max(_LEAST, float(np.sqrt(np.mean(values**2)))) if values.size else 1.0


def margins(outputs: Array) -> Array:
    """The largest output less the second largest, (n,)."""
    top = np.partition(outputs.astype(np.float64), -2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def keep_largest(sought: Sought, one: Inputs, other: Inputs) -> None:
    """Enter the differences of two models' outputs where they are larger than what was known."""
    for name in one:
        found = apart(one[name], other[name])
        rms, most = sought.get(name, (0.0, 0.0))
        finite = np.where(np.isfinite(found), found, 0.0)
        sought[name] = max(rms, float(np.sqrt(np.mean(finite**2)))), max(most, float(finite.max(initial=0.0)))
