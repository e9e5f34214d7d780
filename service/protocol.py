"""The wire format of inference: Open Inference Protocol v2 over REST, with its binary tensor data extension.

Sources: the protocol's "Inference" section, and the extension's document in the Triton server's documentation. A body
is JSON followed by the blobs of the binary inputs in order; `Inference-Header-Content-Length` is the JSON's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from bnfold.datatypes import BINARY_ONLY
from service.errors import BadRequest, TooLarge, Unsupported
from service.tensors import Array, Port, read_blob, read_numbers

_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class Limits:
    """rows: of one request. json_bytes: of the JSON in one body."""

    rows: int
    json_bytes: int


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives. batched: the first axis of every tensor counts the same rows."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batched: bool


@dataclass(frozen=True)
class Wanted:
    """One output of a response; binary: as a blob rather than as JSON numbers."""

    port: Port
    binary: bool


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A checked request. inputs: in the model's order. timeout: seconds, None where the request says nothing."""

    id: str | None
    inputs: dict[str, Array]
    rows: int
    outputs: tuple[Wanted, ...]
    timeout: float | None


def parse_header_length(value: bytes | None, body_length: int) -> int | None:
    """The length of the JSON, None when all of the body is JSON. Raises BadRequest for what is no such length."""
    if value is None:
        return None
    text = value.strip()
    if not text.isdigit() or len(text) > 18 or int(text) > body_length:
        raise BadRequest(
            f"Inference-Header-Content-Length is {text.decode('latin-1')!r:.40}; "
            f"expected a number of bytes up to the {body_length} of the body"
        )
    return int(text)


def parse_request(body: bytes, header_length: int | None, signature: Signature, limits: Limits) -> InferRequest:
    """Read the body of an inference request. Raises BadRequest, Unsupported, TooLarge."""
    if header_length == 0:
        return _raw_request(body, signature, limits)
    view = memoryview(body)
    split = len(body) if header_length is None else header_length
    document = parse_json(view[:split], limits.json_bytes)
    if not isinstance(document, dict):
        raise BadRequest("the body is no JSON object; expected one")
    parameters = _parameters(document, "the request")
    if parameters.get("sequence_id", 0) not in (0, ""):
        raise Unsupported("the request has a sequence_id; the models here keep no state; leave it out")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadRequest("the request has an id that is no text; expected text")
    arrays = _read_inputs(document, view[split:], signature.inputs)
    return InferRequest(
        id=identity,
        inputs=arrays,
        rows=count_rows(arrays, signature, limits),
        outputs=_wanted(document, signature.outputs, binary=_flag(parameters, "binary_data_output", "the request")),
        timeout=_timeout(parameters),
    )


def parse_json(text: bytes | memoryview, limit: int) -> Any:
    """A JSON document of at most `limit` bytes. Raises BadRequest, TooLarge."""
    if len(text) > limit:
        raise TooLarge(f"the JSON has {len(text)} bytes; expected at most {limit}; send tensors as binary data")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as problem:
        hint = "; NaN and infinity are no JSON: send them as binary data" if b"N" in bytes(text[:limit]) else ""
        raise BadRequest(f"the body is not JSON ({problem}){hint}") from None


def count_rows(arrays: Mapping[str, Array], signature: Signature, limits: Limits) -> int:
    """The rows of a request: the largest free first axis; 1 where the model has none. Raises BadRequest."""
    sizes = {arrays[port.name].shape[0] for port in signature.inputs if port.has_batch}
    if len(sizes) > 1 and signature.batched:
        raise BadRequest(f"the inputs have {', '.join(map(str, sorted(sizes)))} rows; expected the same number in each")
    rows = max(sizes, default=1)
    if rows > limits.rows:
        raise BadRequest(f"the request has {rows} rows; expected at most {limits.rows}; send fewer at a time")
    return int(rows)


def build_response(
    model: str, version: str, request: InferRequest, outputs: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON when blobs follow it. Raises BadRequest for NaN in JSON."""
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for wanted in request.outputs:
        array, port = outputs[wanted.port.name], wanted.port
        entry: dict[str, Any] = {"name": port.name, "datatype": port.datatype, "shape": array.shape}
        if wanted.binary:
            blob = array.astype(port.dtype, copy=False).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            check_finite(array, port.name, "ask for it with binary_data")
            entry["data"] = np.ascontiguousarray(array).reshape(-1)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def check_finite(array: Array, name: str, remedy: str) -> None:
    """Raise BadRequest for NaN and infinity: JSON has neither, and null or a guess would be taken for an answer."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"output {name!r} holds NaN or infinity for this input, which JSON cannot carry; {remedy}")


def _raw_request(body: bytes, signature: Signature, limits: Limits) -> InferRequest:
    """A body that is the one input's blob alone; the answer is binary, as the extension says."""
    inputs = signature.inputs
    if len(inputs) != 1:
        raise BadRequest(
            f"the body is one raw tensor, but the model has {len(inputs)} inputs; send a request with JSON"
        )
    port = inputs[0]
    free = [axis for axis, size in enumerate(port.shape) if size == -1]
    if len(free) > 1:
        raise BadRequest(f"input {port.name!r} has shape {list(port.shape)}, which a raw tensor leaves open; send JSON")
    known = math.prod(size for size in port.shape if size != -1) * port.dtype.itemsize
    shape = list(port.shape)
    if free:
        count, rest = divmod(len(body), known) if known else (0, 1)
        if rest or not count:
            raise BadRequest(f"the body has {len(body)} bytes; expected a multiple of {known} for {port.name!r}")
        shape[free[0]] = count
    arrays = {port.name: read_blob(memoryview(body), port, port.check_shape(shape))}
    wanted = tuple(Wanted(output, binary=True) for output in signature.outputs)
    return InferRequest(None, arrays, count_rows(arrays, signature, limits), wanted, None)


def _read_inputs(document: Mapping[str, Any], blobs: memoryview, ports: tuple[Port, ...]) -> dict[str, Array]:
    by_name = {port.name: port for port in ports}
    found: dict[str, Array] = {}
    at = 0
    for entry in _objects(document, "inputs"):
        name = entry.get("name")
        port = by_name.get(name) if isinstance(name, str) else None
        if port is None:
            raise BadRequest(f"the model has no input {name!r:.80}; expected {', '.join(map(repr, by_name))}")
        if port.name in found:
            raise BadRequest(f"input {port.name!r} stands twice in the request; send it once")
        if entry.get("datatype") != port.datatype:
            raise BadRequest(
                f"input {port.name!r} has datatype {entry.get('datatype')!r:.40}; expected {port.datatype}"
            )
        shape = port.check_shape(entry.get("shape"))
        size = _blob_size(entry, port, len(blobs) - at)
        if size is None:
            if port.datatype in BINARY_ONLY:
                raise BadRequest(
                    f"input {port.name!r} is {port.datatype}, which JSON cannot carry; send it as binary data"
                )
            found[port.name] = read_numbers(entry.get("data"), port, shape)
        else:
            found[port.name] = read_blob(blobs[at : at + size], port, shape)
            at += size
    if at != len(blobs):
        raise BadRequest(f"{len(blobs) - at} bytes follow the last binary input; expected none")
    missing = [port.name for port in ports if port.name not in found]
    if missing:
        raise BadRequest(f"the request has no input {missing[0]!r}; expected every input of the model")
    return {port.name: found[port.name] for port in ports}


def _blob_size(entry: Mapping[str, Any], port: Port, left: int) -> int | None:
    parameters = _parameters(entry, f"input {port.name!r}")
    if _SHARED_MEMORY in parameters:
        raise Unsupported(f"input {port.name!r} is in shared memory, which is not offered here; send its data")
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if "data" in entry:
        raise BadRequest(f"input {port.name!r} has both data and binary_data_size; send one of them")
    if type(size) is not int or not 0 <= size <= left:
        raise BadRequest(
            f"input {port.name!r} has binary_data_size {size!r:.40}; expected at most the {left} bytes left"
        )
    return size


def _wanted(document: Mapping[str, Any], ports: tuple[Port, ...], *, binary: bool) -> tuple[Wanted, ...]:
    by_name = {port.name: port for port in ports}
    found: dict[str, Wanted] = {}
    for entry in _objects(document, "outputs") if document.get("outputs") is not None else ():
        name = entry.get("name")
        port = by_name.get(name) if isinstance(name, str) else None
        if port is None:
            raise BadRequest(f"the model has no output {name!r:.80}; expected {', '.join(map(repr, by_name))}")
        if port.name in found:
            raise BadRequest(f"output {port.name!r} stands twice in the request; name it once")
        parameters = _parameters(entry, f"output {port.name!r}")
        for extension in ("classification", _SHARED_MEMORY):
            if parameters.get(extension):
                raise Unsupported(f"output {port.name!r} asks for {extension}, which is not offered here; leave it out")
        found[port.name] = Wanted(port, _flag(parameters, "binary_data", f"output {port.name!r}", default=binary))
    wanted = tuple(found.values()) or tuple(Wanted(port, binary) for port in ports)
    for one in wanted:
        if one.port.datatype in BINARY_ONLY and not one.binary:
            raise BadRequest(
                f"output {one.port.name!r} is {one.port.datatype}, which JSON cannot carry; ask for it with binary_data"
            )
    return wanted


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise BadRequest(f"the request has no list of objects as {key!r}; expected one")
    return items


def _parameters(entry: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest(f"{what} has parameters that are no JSON object; expected one")
    return parameters


def _flag(parameters: Mapping[str, Any], key: str, what: str, *, default: bool = False) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{what} has {value!r:.40} as {key}; expected true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    value = parameters.get("timeout")
    if value is None or value == 0:
        return None
    if type(value) is not int or value < 0:
        raise BadRequest(f"the request has {value!r:.40} as timeout; expected whole microseconds")
    return value / 1e6
