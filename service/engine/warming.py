"""The first calls of a model: they warm it up, and tell whether its rows depend on one another."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from bnfold.bundle import Golden
from bnfold.errors import BnfoldError, first_line
from service.engine.runtimes import Array, Runtime
from service.protocol.tensors import Port

_logger = logging.getLogger(__name__)

# Rows of one model that are run together may differ from rows run alone by rounding, as other kernels are chosen;
# rows that leak into each other differ by as much as they are large.
_ROUNDING = 1e-3
_PROBED_ROWS = 4


def rows_are_independent(
    runtime: Runtime, inputs: Sequence[Port], outputs: Sequence[Port], goldens: Sequence[Golden], label: str
) -> bool:
    """Whether a row gives the same alone as in a batch, tried on golden vectors. Raises BnfoldError."""
    if not all(port.has_batch for port in (*inputs, *outputs)):
        return False
    for golden in goldens:
        batch = _at_least_two_rows(golden.inputs)
        rows = len(next(iter(batch.values())))
        if any(len(array) != rows for array in batch.values()):
            return False
        together = _run(runtime, batch, rows, label)
        for row in {round(at) for at in np.linspace(0, rows - 1, _PROBED_ROWS)}:
            alone = _run(runtime, {name: array[row : row + 1] for name, array in batch.items()}, 1, label)
            if not all(_is_row(together[name], row, rows, alone[name]) for name in alone):
                _logger.warning("model %s mixes the rows of a batch; each request to it runs alone", label)
                return False
    return True


def warm_up(runtime: Runtime, golden: Golden, sizes: Sequence[int], label: str) -> None:
    """Run a golden vector at each of the sizes, its rows repeated. Raises BnfoldError."""
    for size in sizes:
        _run(runtime, {name: np.resize(array, (size, *array.shape[1:])) for name, array in golden.inputs.items()},
             size, label)  # fmt: skip


def _run(runtime: Runtime, inputs: Mapping[str, Array], rows: int, label: str) -> dict[str, Array]:
    try:
        return runtime.run(inputs, rows)
    except Exception as problem:  # ONNX Runtime raises its own types, generated at run time
        raise BnfoldError(f"model {label} cannot run its golden vectors here: {first_line(problem)}") from problem


def _at_least_two_rows(inputs: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: np.ascontiguousarray(array if len(array) > 1 else np.concatenate([array, np.zeros_like(array)]))
        for name, array in inputs.items()
    }


def _is_row(together: Array, row: int, rows: int, alone: Array) -> bool:
    if together.shape[:1] != (rows,) or alone.shape != (1, *together.shape[1:]):
        return False
    found, expected = together[row].astype(np.float64), alone[0].astype(np.float64)
    scale = np.abs(expected).max(initial=0.0) + _ROUNDING * np.abs(together.astype(np.float64)).max(initial=0.0)
    return bool((np.abs(found - expected) <= _ROUNDING * scale).all())
