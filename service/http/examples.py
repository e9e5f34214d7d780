"""Examples for /docs that work when they are pressed: made of the golden vectors of a model that is served here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnfold.datatypes import BINARY_ONLY
from service.engine import Engine
from service.hub import Hub
from service.protocol.tensors import Array

_DIGITS = 4


def choose_engine(hub: Hub) -> Engine | None:
    """The model that the examples are of: one that takes pictures before one that does not, then by name."""
    served = [entry.engine for entry in hub.repository.entries.values() if entry.engine is not None]
    if not served:
        return None
    return min(served, key=lambda engine: (not engine.sample, engine.manifest.preprocessing is None, engine.name))


def infer_example(engine: Engine) -> dict[str, Any] | None:
    """The body of an inference; None where JSON cannot carry it, or it is long."""
    signature = engine.signature
    if not engine.sample or any(port.datatype in BINARY_ONLY for port in (*signature.inputs, *signature.outputs)):
        return None
    inputs = [
        {
            "name": port.name,
            "shape": list(engine.sample[port.name].shape),
            "datatype": port.datatype,
            "data": _numbers(engine.sample[port.name].reshape(-1)),
        }
        for port in signature.inputs
    ]
    outputs = [{"name": port.name, "parameters": {"binary_data": False}} for port in signature.outputs]
    return {"id": "42", "inputs": inputs, "outputs": outputs}


def predict_example(engine: Engine) -> dict[str, Any] | None:
    """The body of a prediction; None for a model that has no rows."""
    ports = engine.signature.inputs
    if not engine.sample or not all(port.has_batch for port in ports):
        return None
    rows: Mapping[str, Any] = {port.name: _numbers(engine.sample[port.name][0]) for port in ports}
    return {"instances": [rows[ports[0].name] if len(ports) == 1 else dict(rows)]}


def _numbers(array: Array) -> Any:
    """Nested lists, with as few digits as a page wants to show."""
    if array.dtype.kind != "f":
        return array.tolist()
    return np.round(array.astype(np.float64), _DIGITS).tolist()
