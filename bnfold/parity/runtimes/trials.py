"""What the cells of the matrix are run on: the same rows in batches of every size, with their float64 truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import BnfoldError, ParityError
from bnfold.parity.evidence import Evidence
from bnfold.parity.oracle import run_float64
from bnfold.parity.rerounding import answers_of_copies
from bnfold.parity.weights.exact import FORMATS
from bnfold.runtime import run
from bnfold.samples import Samples

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Outputs: TypeAlias = Mapping[str, Array]
Session: TypeAlias = Any  # ONNX Runtime's, which has no types

MAX_ROWS = 64
SIZES = (1, 2, 7)  # one, an even number, a prime; the largest comes with the rows
_MAX_OUTPUT_ELEMENTS = 2**22  # of all rows together: an image to image network gets fewer rows
_TRUTH_ROWS = 16  # at a time, where the truth has to be computed


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one run. index: which rows of the pool they are."""

    inputs: Outputs
    index: Array


@dataclass(frozen=True, eq=False)
class Trials:
    """The batches by size, what the reference answers to them with optimisations off, and the truth.

    yardstick: on the CPU. refused: sizes that the reference itself does not take, with the reason. pool: the rows of
    the inputs. independent: whether a row's answer is its own, so that it can be compared over batches. fixed: the
    network has one batch size. copies_on: runs re-rounded copies of the folded model.
    """

    batches: Mapping[int, tuple[Batch, ...]]
    yardstick: Mapping[int, tuple[Outputs, ...]]
    truth: Mapping[int, tuple[Outputs, ...]]
    refused: Mapping[int, str]
    pool: Outputs
    independent: bool
    fixed: bool
    copies_on: Callable[[Sequence[Outputs]], Iterable[list[dict[str, Array]]]] = lambda _: ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that the reference takes."""
        return tuple(self.batches)

    @property
    def rows(self) -> int:
        """How many rows the pool has."""
        return len(_first(self.pool))

    def copies(self, size: int) -> Iterable[list[dict[str, Array]]]:
        """What re-rounded copies of the folded model answer to the batches of one size, each in turn."""
        return self.copies_on([batch.inputs for batch in self.batches[size]])

    def turned(self, size: int) -> tuple[Batch, ...]:
        """Batches of one size, in which the middle row of the pool is at the first, the middle and the last place."""
        starts = {(self.rows // 2 - place) % self.rows for place in (0, size // 2, size - 1)}
        return tuple(_cut(self.pool, (start + np.arange(size)) % self.rows) for start in sorted(starts))


def make_trials(evidence: Evidence, session: Session, samples: Samples | None, rows: int = MAX_ROWS) -> Trials:
    """Batches for a bundle. session: the reference on the CPU with optimisations off. rows: at most so many.

    Raises ParityError, BnfoldError when the reference cannot be run on its own golden vectors.
    """
    first_axes = {spec.shape[0] if spec.shape else 0 for spec in evidence.bundle.manifest.inputs} - {-1}
    if 0 in first_axes or len(first_axes) > 1:
        raise ParityError("the inputs of the network have no batch size in common; expected one first axis for all")
    limit = min(rows, _limit(evidence))
    pool, known = _golden_rows(evidence, limit) if samples is None else (_few(samples.inputs, limit), None)
    found = len(_first(pool))
    batches: dict[int, tuple[Batch, ...]] = {}
    refused: dict[int, str] = {}
    answers: dict[int, tuple[Outputs, ...]] = {}
    for size in sorted(first_axes or {*SIZES, found}):
        made = _batches(pool, size)
        try:
            answers[size] = tuple(run(session, batch.inputs) for batch in made)
        except BnfoldError as problem:
            refused[size] = str(problem)
        else:
            batches[size] = made
    if not batches:
        raise ParityError(f"the reference runs with no batch size: {next(iter(refused.values()))}")
    bare = Trials(batches, answers, {}, refused, pool, independent=True, fixed=bool(first_axes))
    independent = rows_are_independent(bare, session)
    if independent and known is None:
        known = _row_truth(evidence, pool, next(iter(first_axes), _TRUTH_ROWS))
    truth = {
        size: tuple(
            _computed(evidence, batch) if known is None or not independent else _of_rows(known, batch) for batch in made
        )
        for size, made in batches.items()
    }
    return replace(
        bare,
        truth=truth,
        independent=independent,
        copies_on=lambda inputs: answers_of_copies(evidence.folded_proto, inputs),
    )


def rows_are_independent(trials: Trials, session: Session) -> bool:
    """Whether the reference gives a row the same answer in every batch, up to its rounding.

    The bound is that of a doubtful truth in T3, the root of the unit roundoff: beyond it, the truth of a row alone
    would not fit the row in a batch.
    """
    seen: dict[int, Outputs] = {}
    rooms = {
        name: _room([outputs[name] for found in trials.yardstick.values() for outputs in found])
        for name in trials.yardstick[trials.sizes[0]][0]
    }
    runs = [pair for size, found in trials.batches.items() for pair in zip(found, trials.yardstick[size], strict=True)]
    if trials.fixed:
        size = trials.sizes[0]
        runs += [(batch, run(session, batch.inputs)) for batch in trials.turned(size)]
    for batch, outputs in runs:
        if any(array.shape[:1] != (len(batch.index),) for array in outputs.values()):
            return False
        for at, row in enumerate(batch.index.tolist()):
            answer = {name: array[at] for name, array in outputs.items()}
            if not all(
                _close(answer[name], other, rooms[name]) for name, other in seen.setdefault(row, answer).items()
            ):
                return False
    return True


def _room(outputs: Sequence[Array]) -> float:
    """By how much one output of a row may differ; 0 for integers."""
    form = FORMATS.get(outputs[0].dtype.name)
    if form is None:
        return 0.0
    wide = [np.abs(array.astype(np.float64)) for array in outputs]
    scale = max(float(array[np.isfinite(array)].max(initial=0.0)) for array in wide)
    return math.sqrt(form.unit_roundoff) * scale + form.smallest


def _close(left: Array, right: Array, room: float) -> bool:
    if left.shape != right.shape:
        return False
    first, second = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(first)
    if (finite != np.isfinite(second)).any():
        return False
    return bool((np.abs(first[finite] - second[finite]) <= room).all())


def _golden_rows(evidence: Evidence, limit: int) -> tuple[Outputs, Outputs | None]:
    """Rows out of all golden vectors, a fair share of each, and their truth where it is one row for each."""
    first = evidence.goldens[0]
    fitting = [
        golden for golden in evidence.goldens
        if _row_shapes(golden.inputs) == _row_shapes(first.inputs)
        and len({len(array) for array in golden.inputs.values()}) == 1
        and len(_first(golden.inputs))
    ]  # fmt: skip
    if not fitting:
        raise ParityError(
            "no golden vector has a row, one in each input; expected at least one; build the bundle again"
        )
    fitting.sort(key=lambda golden: len(_first(golden.inputs)))
    inputs: list[Outputs] = []
    truths: list[Outputs] = []
    left = limit
    for at, golden in enumerate(fitting):
        count = len(_first(golden.inputs))
        share = max(1, left // (len(fitting) - at)) if left else 0
        index = _spread(count, min(count, share))
        left = max(0, left - len(index))
        inputs.append({name: array[index] for name, array in golden.inputs.items()})
        if all(array.shape[:1] == (count,) for array in golden.truth.values()):
            truths.append({name: array[index] for name, array in golden.truth.items()})
    whole = len(truths) == len(inputs) and all(_row_shapes(truth) == _row_shapes(truths[0]) for truth in truths)
    return _joined(inputs), _joined(truths) if whole else None


def _row_shapes(arrays: Outputs) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in arrays.items()}


def _limit(evidence: Evidence) -> int:
    """How many rows are run: fewer where a row's outputs are large."""
    golden = evidence.goldens[0]
    rows = max(1, len(_first(golden.inputs)) if _first(golden.inputs).ndim else 1)
    elements = sum(array.size for array in golden.truth.values()) / rows
    return int(min(MAX_ROWS, max(1, _MAX_OUTPUT_ELEMENTS // max(1.0, elements))))


def _few(inputs: Outputs, limit: int) -> Outputs:
    index = _spread(len(_first(inputs)), limit)
    return {name: array[index] for name, array in inputs.items()}


def _spread(count: int, wanted: int) -> Array:
    """Numbers below count, evenly spread, each once."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))


def _batches(pool: Outputs, size: int) -> tuple[Batch, ...]:
    """All rows in batches of one size; the last one is filled up from the beginning."""
    rows = len(_first(pool))
    return tuple(_cut(pool, np.arange(begin, begin + size) % rows) for begin in range(0, rows, size))


def _cut(pool: Outputs, index: Array) -> Batch:
    return Batch({name: np.ascontiguousarray(array[index]) for name, array in pool.items()}, index)


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _first(arrays: Outputs) -> Array:
    return next(iter(arrays.values()))


def _of_rows(truth: Outputs, batch: Batch) -> Outputs:
    return {name: array[batch.index] for name, array in truth.items()}


def _row_truth(evidence: Evidence, pool: Outputs, size: int) -> Outputs:
    rows = len(_first(pool))
    parts = [_computed(evidence, batch) for batch in _batches(pool, size)]
    return {name: np.asarray(array[:rows]) for name, array in _joined(parts).items()}


def _computed(evidence: Evidence, batch: Batch) -> Outputs:
    return run_float64(evidence.reference_proto, batch.inputs)
