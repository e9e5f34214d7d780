"""Inputs for golden vectors: held-out samples where there are some, and always hard ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bnfold.bundle.manifest import TensorSpec
from bnfold.errors import DataError
from bnfold.parity.hard_inputs import EDGES, IMPULSES, LARGE, hard_inputs
from bnfold.samples import Array, Samples

MAX_ROWS = 512
MAX_BYTES = 8 * 2**20  # of one golden input; a 224-pixel colour image has 0.6 MB
_RANDOM_ROWS = 32
_IMPULSES = 3  # at the first, the middle and the last place
_LEFT_OUT = (*LARGE, EDGES)  # one edge at a time: the frame has them all


def golden_inputs(specs: Sequence[TensorSpec], samples: Samples | None) -> tuple[Samples, ...]:
    """Batches for golden vectors: the samples (or random ones), then hard inputs of the same range.

    A network with a fixed batch size gets batches of that size. Raises DataError when inputs cannot be made up
    (integers, several free sizes) and no samples are given, or when the inputs have no batch size in common.
    """
    batch = _batch_size(specs)
    given = samples if samples is not None else _random(specs)
    row_bytes = sum(array[:1].nbytes for array in given.inputs.values())
    most = max(batch or 1, min(MAX_ROWS, MAX_BYTES // max(1, row_bytes)))
    batches = _batches(given.rows(slice(0, most)), batch)
    if len(specs) == 1 and specs[0].dtype in ("float32", "float64", "float16"):
        batches += _batches(_hard(specs, given), batch)
    return batches


def _batch_size(specs: Sequence[TensorSpec]) -> int | None:
    for spec in specs:
        if not spec.shape:
            raise DataError(f"input '{spec.name}' is a single number, expected a batch; export it as a constant")
    sizes = {spec.shape[0] for spec in specs}
    fixed = sorted(sizes - {-1})
    if not sizes:
        raise DataError("the network has no input, and gives the same output always; expected at least one input")
    if len(fixed) > 1:
        found = " and ".join(str(size) for size in fixed)
        raise DataError(f"the inputs have {found} rows, expected one batch size for all; export with a free batch size")
    return fixed[0] if fixed else None


def _batches(samples: Samples, size: int | None) -> tuple[Samples, ...]:
    """One batch, or batches of the fixed size; the last one is filled up with its own first rows."""
    if size is None:
        return (samples,)
    found = []
    for start in range(0, len(samples), size):
        index = np.arange(start, start + size) % len(samples)
        labels = None if samples.labels is None else samples.labels[index]
        found.append(Samples({name: array[index] for name, array in samples.inputs.items()}, labels))
    return tuple(found[:16])


def _random(specs: Sequence[TensorSpec]) -> Samples:
    generator = np.random.default_rng(0)
    inputs: dict[str, Array] = {}
    for spec in specs:
        if not spec.dtype.startswith("float") or -1 in spec.shape[1:]:
            raise DataError(
                f"input '{spec.name}' is {spec.dtype} {list(spec.shape)}, for which no input can be made up; "
                "give samples with --data"
            )
        inputs[spec.name] = generator.standard_normal((_RANDOM_ROWS, *spec.shape[1:])).astype(spec.dtype)
    return Samples(inputs, None)


def _hard(specs: Sequence[TensorSpec], like: Samples) -> Samples:
    """A row of each kind of hard input, three of the impulses; none beyond the samples' range, which would outweigh
    all others in an error over all rows.
    """
    rows = [
        {name: array[: _IMPULSES if hard.kind == IMPULSES else 1] for name, array in hard.inputs.items()}
        for hard in hard_inputs(specs, like)
        if hard.kind not in _LEFT_OUT
    ]
    return Samples({spec.name: np.concatenate([row[spec.name] for row in rows]) for spec in specs}, None)
