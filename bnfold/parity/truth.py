"""The float64 truth by torch where it is installed, several times as fast; by the ONNX reference evaluator otherwise.

The truths of a bundle are computed by the source module or by the evaluator (`bnfold.parity.oracle`); to check them
with another program than the one they come from is worth more than to run the same one again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx

from bnfold.errors import ParityError
from bnfold.parity.oracle import run_float64

Array = np.ndarray[Any, np.dtype[Any]]
Truth: TypeAlias = Callable[[Mapping[str, Array]], dict[str, Array]]


def open_truth(model: onnx.ModelProto) -> Truth:
    """What runs a model in float64: inputs by name in, outputs by name out.

    What torch has no rule for goes to the evaluator, which raises ParityError for what it cannot evaluate either.
    """
    try:
        from bnfold.parity.torch_float64 import TorchGraph

        graph = TorchGraph(model)
    except (ImportError, ParityError):
        return lambda inputs: dict(run_float64(model, inputs))

    def truth(inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return dict(graph.truth(inputs))
        except ParityError:
            return dict(run_float64(model, inputs))

    return truth
