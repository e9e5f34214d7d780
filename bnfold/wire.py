"""The Open Inference Protocol v2 as a client speaks it: tensors as JSON, or as blobs behind the JSON.

Source: the protocol's "Inference" section and its binary tensor data extension, as in `service/protocol/`. What comes
back is from outside: each name, datatype, shape and count is checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from bnfold.datatypes import DATATYPES, WIRE
from bnfold.errors import DataError
from bnfold.remote import Reply

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

HEADER_LENGTH = "inference-header-content-length"
_MAX_RANK = 32


class Spec(Protocol):
    """What is known of a tensor; a bundle's TensorSpec is one. dtype: numpy's name. shape: -1 where it is free."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> str:
        """Its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


@dataclass(frozen=True)
class _Announced:
    """What an answer says of one of its outputs."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def write_rows(inputs: Mapping[str, Array]) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request to /predict. Raises ValueError for NaN and infinity."""
    if len(inputs) == 1:
        instances: list[Any] = next(iter(inputs.values())).tolist()
    else:
        columns = [array.tolist() for array in inputs.values()]
        instances = [dict(zip(inputs, row, strict=True)) for row in zip(*columns, strict=True)]
    return json.dumps({"instances": instances}, allow_nan=False).encode(), {"Content-Type": "application/json"}


def write_request(
    inputs: Mapping[str, Array],
    outputs: Sequence[str] | None,
    *,
    binary: bool,
    parameters: Mapping[str, int | bool] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """The body and headers of an inference request; outputs: None for all that the model has.

    JSON floats are written so that they read back as the same bits.
    """
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in inputs.items():
        datatype = DATATYPES[array.dtype.name]
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            blobs.append(np.ascontiguousarray(array, WIRE[datatype]).tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.reshape(-1).tolist()
        entries.append(entry)
    document: dict[str, Any] = {"inputs": entries}
    if outputs is not None:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": binary}} for name in outputs]
    elif binary:
        parameters = {**(parameters or {}), "binary_data_output": True}
    if parameters:
        document["parameters"] = dict(parameters)
    head = json.dumps(document, allow_nan=False).encode()
    if not binary:
        return head, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *blobs]), headers


def read_response(reply: Reply, specs: Sequence[Spec] | None) -> dict[str, Array]:
    """The outputs of a response by name, in the dtypes of the specs; None: of whatever the answer says they are.

    Raises DataError for what does not fit.
    """
    length = reply.headers.get(HEADER_LENGTH)
    if length is not None and not (length.isascii() and length.isdigit() and int(length) <= len(reply.body)):
        raise DataError(
            f"the answer has the header length {length!r:.40}, expected at most its {len(reply.body)} bytes"
        )
    split = len(reply.body) if length is None else int(length)
    try:
        document = Reply(reply.status, {}, reply.body[:split]).document()
    except ValueError as problem:
        raise DataError(f"the answer is no JSON ({str(problem)[:120]})") from None
    entries = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError("the answer has no list of outputs")
    blobs = reply.body[split:]
    wanted = {spec.name: spec for spec in (map(_announce, entries) if specs is None else specs)}
    found: dict[str, Array] = {}
    for entry in entries:
        name = entry.get("name")
        spec = wanted.get(name) if isinstance(name, str) else None
        if spec is None or spec.name in found:
            raise DataError(f"the answer has the output {name!r:.80}, expected {', '.join(wanted)}, each once")
        array, blobs = _read_output(entry, spec, blobs)
        found[spec.name] = array
    if missing := sorted(wanted.keys() - found.keys()):
        raise DataError(f"the answer has no output '{missing[0]}'")
    if blobs:
        raise DataError(f"{len(blobs)} bytes follow the last output of the answer")
    return found


def _announce(entry: Mapping[str, Any]) -> _Announced:
    name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
    known = WIRE.get(datatype) if isinstance(datatype, str) else None
    if not isinstance(name, str) or known is None or not isinstance(shape, list):
        raise DataError(
            f"the answer has an output {name!r:.80} of datatype {datatype!r:.40}, which is none that it may"
        )
    return _Announced(name, known.name, (-1,) * len(shape))


def _read_output(entry: Mapping[str, Any], spec: Spec, blobs: bytes) -> tuple[Array, bytes]:
    datatype = DATATYPES[spec.dtype]
    if entry.get("datatype") != datatype:
        raise DataError(f"output '{spec.name}' has datatype {entry.get('datatype')!r:.40}, expected {datatype}")
    shape = entry.get("shape")
    fits = isinstance(shape, list) and len(shape) == len(spec.shape) and all(
        type(size) is int and 0 <= size < 2**40 and known in (-1, size)
        for size, known in zip(shape, spec.shape, strict=True)
    )  # fmt: skip
    if not fits:
        raise DataError(f"output '{spec.name}' has shape {shape!r:.120}, expected {list(spec.shape)} (-1: any size)")
    count, parameters = math.prod(shape or []), entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return read_numbers(entry.get("data"), spec, count).reshape(shape or []), blobs
    if type(size) is not int or size != count * WIRE[datatype].itemsize or size > len(blobs):
        raise DataError(f"output '{spec.name}' has {size!r:.40} bytes, expected {count} numbers of {datatype}")
    return np.frombuffer(blobs[:size], WIRE[datatype]).reshape(shape or []), blobs[size:]


def read_numbers(data: object, spec: Spec, count: int) -> Array:
    """JSON numbers, flat or nested, as a flat array in the dtype of a spec. Raises DataError for anything else."""
    dtype = WIRE[DATATYPES[spec.dtype]]
    allowed: set[type] = {bool} if dtype.kind == "b" else {int} if dtype.kind in "iu" else {int, float}
    flat = list(_flatten(data, 0))
    if len(flat) != count or not set(map(type, flat)) <= allowed:
        raise DataError(f"output '{spec.name}' has data that are not the {count} numbers of its shape")
    try:
        with np.errstate(over="ignore"):
            wide = np.asarray(flat, np.float64) if dtype.kind == "f" else np.asarray(flat, dtype)
            return np.asarray(wide.astype(dtype))
    except OverflowError:
        raise DataError(f"output '{spec.name}' has a number beyond {spec.dtype}") from None


def _flatten(data: object, depth: int) -> Iterator[object]:
    if not isinstance(data, list) or depth > _MAX_RANK:
        yield data
        return
    for item in data:
        yield from _flatten(item, depth + 1)
