"""The wire format of inference over REST, with the binary tensor data extension.

A body is JSON followed by the blobs of the binary inputs in order; `Inference-Header-Content-Length` is the JSON's.
Sources: the protocol's "Inference Request JSON Object"; the binary tensor data extension in the documentation of the
Triton server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from bnfold.datatypes import BINARY_ONLY
from service.errors import BadRequest, Fault
from service.http.flat import check_marked, cut_numbers, read_list
from service.http.plans import answer_alike, fill, find_plan, follow, keep_head, keep_plan, plan_key, with_id
from service.protocol.classification import classify
from service.protocol.outputs import to_blob
from service.protocol.requests import (
    Entry,
    InferRequest,
    Limits,
    Signature,
    Wanted,
    check_finite,
    check_json_size,
    check_request,
    choose_outputs,
    parse_json,
    read_flag,
    read_inputs,
    read_parameters,
    refuse_shared_memory,
)
from service.protocol.tensors import Array, Port, find_truths, read_blob, read_numbers


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
    if header_length is None:
        request = _flat_request(body, signature, limits)
        if request is not None:
            return request
    elif body[:1] != b"\0":  # so begin the keys of heads with an id, and no JSON
        plan = find_plan(signature, body[:header_length], len(body) - header_length)
        if plan is not None:
            return follow(plan, body, header_length)
    view = memoryview(body)
    split = len(body) if header_length is None else header_length
    document = parse_json(view[:split], limits.json_bytes, limits.json_values)
    if not isinstance(document, dict):
        raise BadRequest("the body is no JSON object; expected one")
    parameters, identity = _read_frame(document)
    if header_length is not None:
        key = plan_key(document, body[:header_length])
        plan = find_plan(signature, key, len(body) - header_length)
        if plan is not None:
            return follow(plan, body, header_length, identity)
    blobs = _Blobs(view[split:], holds_truths=header_length is not None or find_truths(body))
    arrays = read_inputs(_objects(document, "inputs"), signature, blobs.read)
    blobs.check_empty()
    outputs = _read_outputs(document, parameters, signature)
    request = check_request(identity, parameters, arrays, outputs, signature, limits)
    if header_length is not None and len(blobs.spans) == len(arrays):
        keep_plan(signature, key, request, blobs.spans)
    return request


def _flat_request(body: bytes, signature: Signature, limits: Limits) -> InferRequest | None:
    """The request of a JSON body that is one flat list of FP32, and little else.

    None for every other, and for one that is not in order: what is wrong with it is found, and said, on the longer way.
    """
    if len(signature.inputs) != 1 or signature.inputs[0].datatype != "FP32":
        return None
    parts = cut_numbers(body)
    if parts is None:
        return None
    head, numbers = parts
    identity = None
    try:
        check_json_size(body, limits.json_bytes, limits.json_values)
        plan = None if head[:1] == b"\0" else find_plan(signature, head, 0)  # see parse_request
        if plan is None:
            document = orjson.loads(head)
            if not isinstance(document, dict):
                return None
            parameters, identity = _read_frame(document)
            key = plan_key(document, head)
            plan = find_plan(signature, key, 0)
        if plan is not None:
            [(name, _, shape, _, _)] = plan.parts
            return fill(plan, {name: read_list(numbers, shape)}, identity)
        arrays = read_inputs(_objects(document, "inputs"), signature, _Blobs(memoryview(b""), cut=numbers).read)
        outputs = _read_outputs(document, parameters, signature)
        request = check_request(identity, parameters, arrays, outputs, signature, limits)
        keep_plan(signature, key, request, dict.fromkeys(arrays, (0, 0)))
    except (Fault, ValueError):
        return None
    return request


def _read_frame(document: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The parameters and the id of a request."""
    parameters = read_parameters(document, "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadRequest("the request has an id that is no text; expected text")
    return parameters, identity or None


def _read_outputs(
    document: Mapping[str, Any], parameters: Mapping[str, Any], signature: Signature
) -> tuple[Wanted, ...]:
    binary = read_flag(parameters, "binary_data_output", "the request")
    entries = _objects(document, "outputs") if document.get("outputs") is not None else ()
    return choose_outputs(entries, signature, binary=binary)


def build_response(
    model: str, version: str, request: InferRequest, outputs: Mapping[str, Array]
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON when blobs follow it. Raises BadRequest for NaN in JSON."""
    if request.heads:
        answer = answer_alike(request, outputs)
        if answer is not None:
            return answer
    entries: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for wanted in request.outputs:
        entry, blob = _write(wanted, outputs[wanted.port.name])
        if blob is not None:
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None and request.heads is None:
        document["id"] = request.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if request.heads is not None:
        keep_head(request, outputs, head)
        head = with_id(head, request.id)
    return (b"".join([head, *blobs]), len(head)) if blobs else (head, None)


def _write(wanted: Wanted, array: Array) -> tuple[dict[str, Any], bytes | None]:
    """The entry of one output, with its data, or beside its blob."""
    port = wanted.port
    if wanted.binary:
        datatype, shape, blob = to_blob(wanted, array)
        return {"name": port.name, "datatype": datatype, "shape": shape}, blob
    if wanted.classes:
        texts, sizes = classify(array, port, wanted.classes, wanted.labels)
        return {"name": port.name, "datatype": "BYTES", "shape": sizes, "data": texts}, None
    check_finite(array, port.name, "ask for it with binary_data")
    data = np.ascontiguousarray(array).reshape(-1)
    return {"name": port.name, "datatype": port.datatype, "shape": array.shape, "data": data}, None


class _Blobs:
    """The binary inputs of one body, read from the front.

    holds_truths: see read_numbers. cut: the list that was cut out of the JSON, which has to be the data of the input.
    """

    def __init__(self, view: memoryview, *, holds_truths: bool = True, cut: bytes | None = None) -> None:
        self._view = view
        self._at = 0
        self._holds_truths = holds_truths
        self._cut = cut
        self.spans: dict[str, tuple[int, int]] = {}

    def read(self, entry: Entry, port: Port, shape: tuple[int, ...]) -> Array:
        """The data of one input, from the blobs or from JSON. Raises BadRequest, Unsupported."""
        size = self._size(entry, port)
        if size is not None:
            self._at += size
            self.spans[port.name] = self._at - size, self._at
            return read_blob(self._view[self._at - size : self._at], port, shape)
        if port.datatype in BINARY_ONLY:
            raise BadRequest(f"input {port.name!r} is {port.datatype}, which JSON cannot carry; send it as binary data")
        if self._cut is not None:
            check_marked(entry)
            return read_list(self._cut, shape)
        return read_numbers(entry.get("data"), port, shape, holds_truths=self._holds_truths)

    def check_empty(self) -> None:
        """Raise BadRequest when bytes are left."""
        left = len(self._view) - self._at
        if left:
            raise BadRequest(f"{left} bytes follow the last binary input; expected none")

    def _size(self, entry: Entry, port: Port) -> int | None:
        what = f"input {port.name!r}"
        parameters = read_parameters(entry, what)
        refuse_shared_memory(parameters, what)
        size = parameters.get("binary_data_size")
        if size is None:
            return None
        if "data" in entry:
            raise BadRequest(f"{what} has both data and binary_data_size; send one of them")
        left = len(self._view) - self._at
        if type(size) is not int or not 0 <= size <= left:
            raise BadRequest(f"{what} has binary_data_size {size!r:.40}; expected at most the {left} bytes left")
        return size


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
    return check_request(None, {}, arrays, signature.all_binary, signature, limits)


def _objects(document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not set(map(type, items)) <= {dict}:
        raise BadRequest(f"the request has no list of objects as {key!r}; expected one")
    return items
