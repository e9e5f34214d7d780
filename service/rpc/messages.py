"""Inference in protobuf messages: from bytes to a checked request, and from outputs to a response.

Source: the official grpc_service.proto. Data comes as raw blobs, one for each input in order, or as typed contents;
never as both. Answers are raw blobs, as Triton's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as pb

from bnfold.datatypes import BINARY_ONLY
from service.engine import Engine
from service.errors import BadRequest
from service.protocol.outputs import to_blob
from service.protocol.requests import (
    Entry,
    InferRequest,
    Limits,
    check_request,
    choose_outputs,
    read_inputs,
    refuse_shared_memory,
)
from service.protocol.tensors import Array, Port, read_blob

# InferTensorContents: where the elements of a datatype stand.
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip
_ONLY_REST = frozenset({"binary_data", "binary_data_output", "binary_data_size"})


def parse_message(body: bytes, kind: type[Message]) -> Any:
    """A message from its bytes. Raises BadRequest."""
    try:
        return kind.FromString(body)
    except DecodeError:
        raise BadRequest(
            f"the request is no {kind.DESCRIPTOR.name} in protobuf; build it from the official proto"
        ) from None


def read_request(message: Any, engine: Engine, limits: Limits) -> InferRequest:
    """Check a ModelInferRequest. Raises BadRequest, Unsupported."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadRequest(
            f"the request has {len(raw)} raw_input_contents for {len(message.inputs)} inputs; expected one for each"
        )
    entries = [
        {**_entry(tensor), "contents": tensor.contents, "raw": raw[at] if raw else None}
        for at, tensor in enumerate(message.inputs)
    ]
    arrays = read_inputs(entries, engine.signature, _read_data)
    outputs = choose_outputs([_entry(output) for output in message.outputs], engine.signature, binary=True)
    parameters = read_map(message.parameters)
    return check_request(message.id or None, parameters, arrays, outputs, engine.signature, limits)


def build_response(engine: Engine, request: InferRequest, outputs: Mapping[str, Array]) -> Any:
    """The ModelInferResponse. Raises BadRequest for NaN that is to be ranked."""
    response = pb.ModelInferResponse(model_name=engine.name, model_version=engine.version, id=request.id or "")
    for wanted in request.outputs:
        datatype, shape, blob = to_blob(wanted, outputs[wanted.port.name])
        response.outputs.add(name=wanted.port.name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(blob)
    return response


def read_map(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values; one without a value is None. Those that only REST has are left out."""
    return {
        name: None if (kind := value.WhichOneof("parameter_choice")) is None else getattr(value, kind)
        for name, value in parameters.items()
        if name not in _ONLY_REST
    }


def _entry(tensor: Any) -> dict[str, Any]:
    entry = {"name": tensor.name, "parameters": read_map(tensor.parameters) if tensor.parameters else None}
    if isinstance(tensor, pb.ModelInferRequest.InferInputTensor):
        entry.update(datatype=tensor.datatype, shape=list(tensor.shape))
    return entry


def _read_data(entry: Entry, port: Port, shape: tuple[int, ...]) -> Array:
    what = f"input {port.name!r}"
    refuse_shared_memory(entry["parameters"] or {}, what)
    filled = [field.name for field, _ in entry["contents"].ListFields()]
    if entry["raw"] is not None:
        if filled:
            raise BadRequest(f"{what} has both contents and raw_input_contents; send one of them")
        return read_blob(memoryview(entry["raw"]), port, shape)
    if port.datatype in BINARY_ONLY:
        raise BadRequest(f"{what} is {port.datatype}, which has no typed contents; send raw_input_contents")
    field = _FIELDS[port.datatype]
    if filled != [field]:
        found = f"it in {', '.join(filled)}" if filled else "no data"
        raise BadRequest(f"{what} has {found}; expected {port.datatype} in {field}, or raw_input_contents")
    return _from_contents(getattr(entry["contents"], field), port, shape)


def _from_contents(values: Any, port: Port, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    if len(values) != count:
        raise BadRequest(
            f"input {port.name!r} has {len(values)} elements; expected {count} for the shape {list(shape)}"
        )
    kind = port.dtype.kind
    if kind not in "iu":
        return np.array(values, port.dtype).reshape(shape)
    wide = np.array(values, np.int64 if kind == "i" else np.uint64)
    if port.dtype.itemsize < 4:  # the wire has them in 32 bits
        bounds = np.iinfo(port.dtype)
        if ((wide < bounds.min) | (wide > bounds.max)).any():
            raise BadRequest(f"input {port.name!r} has a number beyond {port.datatype}; send smaller ones")
    return wide.astype(port.dtype).reshape(shape)
