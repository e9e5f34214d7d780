"""The inputs of `assert_parity`: one batch or several, each an array, a tuple of arguments, or arrays by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import DataError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Batch: TypeAlias = tuple[Array, ...]


def batches_of(inputs: Any, names: Sequence[str] | None) -> tuple[Batch, ...]:
    """Every batch as a tuple of arrays, in the order of the model's inputs.

    inputs: a batch, or a list of them. names: of the model's inputs, None where they are not known. Raises TypeError
    for what is no batch, DataError for one that does not fit.
    """
    given = inputs if isinstance(inputs, list) else [inputs]
    if not given:
        raise DataError("inputs is an empty list, expected at least one batch")
    found = tuple(_batch(batch, names) for batch in given)
    if len({len(batch) for batch in found}) != 1:
        raise DataError("the batches of inputs have different numbers of arrays, expected one for each input in each")
    return found


def labels_of(labels: Any, batches: Sequence[Batch]) -> Array | None:
    """The labels of all rows of all batches, (N,) int64. Raises DataError for others."""
    if labels is None:
        return None
    parts = labels if isinstance(labels, list) and labels and np.ndim(_array(labels[0])) else [labels]
    array = np.concatenate([np.atleast_1d(_array(part)) for part in parts])
    rows = sum(len(batch[0]) for batch in batches)
    if array.shape != (rows,) or array.dtype.kind not in "iu":
        raise DataError(
            f"labels have shape {list(array.shape)} and dtype {array.dtype}, expected one class number a row, "
            f"[{rows}] integers"
        )
    return array.astype(np.int64)


def _batch(batch: Any, names: Sequence[str] | None) -> Batch:
    if isinstance(batch, Mapping):
        values = _by_name(batch, names)
    elif isinstance(batch, tuple):
        values = batch
    else:
        values = (batch,)
    arrays = tuple(_array(value) for value in values)
    if not arrays or any(not array.ndim or not array.size for array in arrays):
        raise DataError("a batch of inputs is empty, expected arrays with at least one row")
    if any(array.dtype.kind in "fc" and not np.isfinite(array).all() for array in arrays):
        raise DataError("inputs hold NaN or infinite values, which prove nothing; expected finite ones")
    return arrays


def _by_name(batch: Mapping[str, Any], names: Sequence[str] | None) -> tuple[Any, ...]:
    if names is None or not set(batch) <= set(names) or list(names)[: len(batch)] != [n for n in names if n in batch]:
        expected = "a tuple of arguments" if names is None else f"the names of the model's inputs, {list(names)}"
        raise DataError(f"inputs are named {sorted(map(str, batch))}, expected {expected}")
    return tuple(batch[name] for name in names if name in batch)


def _array(value: Any) -> Array:
    """A tensor or an array as an array of numbers."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    if tensor is not None and isinstance(value, tensor):
        from bnfold.folding.torch_tensors import to_numpy

        return to_numpy(value)
    if not isinstance(value, np.ndarray | np.generic | list | int | float):
        raise TypeError(
            f"inputs hold a {type(value).__name__}; expected an array or tensor, a tuple or a mapping of them, "
            "or a list of such batches"
        )
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError("inputs hold rows of different lengths, expected arrays") from None
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise DataError(f"inputs have dtype {array.dtype}, expected numbers")
    return array
