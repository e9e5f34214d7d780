"""Open Inference Protocol v2: what a request may ask for, checked once for both doors, REST and gRPC.

Both doors hand over plain values: an entry is a dict with name, datatype, shape and parameters. How numbers travel is
each door's own business (service/http/rest.py, service/rpc/).
Sources: the protocol's "Inference" section; the extensions for classification, parameters and scheduling in the
documentation of the Triton server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import orjson

from bnfold.datatypes import BINARY_ONLY
from service.errors import BadRequest, TooLarge, Unsupported
from service.protocol.tensors import Array, Port

Entry = Mapping[str, Any]
ReadData = Callable[[Entry, Port, tuple[int, ...]], Array]

_AS_LONG_AS = 8
_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class Limits:
    """rows: of one request. json_bytes, json_values: of the JSON in it, see parse_json. pixels: of one picture."""

    rows: int
    json_bytes: int
    json_values: int = 2**20
    pixels: int = 2**25


@dataclass(frozen=True)
class Wanted:
    """One output of a response.

    binary: as a blob rather than as JSON numbers. classes: so many of the largest scores of each row as text instead,
    0 for the numbers themselves; labels: the names of the classes, if there are any.
    """

    port: Port
    binary: bool
    classes: int = 0
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    batched: the first axis of every tensor counts the same rows. labels: of the classes that the first output scores.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batched: bool
    labels: tuple[str, ...] = ()

    @cached_property
    def plans(self) -> dict[bytes, Any]:
        """What was understood of the heads of earlier requests, by their bytes; see service.http.plans."""
        return {}

    @cached_property
    def inputs_by_name(self) -> Mapping[str, Port]:
        """The inputs."""
        return {port.name: port for port in self.inputs}

    @cached_property
    def outputs_by_name(self) -> Mapping[str, Port]:
        """The outputs."""
        return {port.name: port for port in self.outputs}

    @cached_property
    def all_binary(self) -> tuple[Wanted, ...]:
        """Every output, as blobs."""
        return tuple(Wanted(port, binary=True) for port in self.outputs)

    @cached_property
    def all_json(self) -> tuple[Wanted, ...]:
        """Every output, as JSON. Raises BadRequest where JSON cannot carry one."""
        return tuple(_carriable(Wanted(port, binary=False)) for port in self.outputs)


class InferRequest(NamedTuple):
    """A checked request.

    inputs: in the model's order. timeout: seconds, None where the request says nothing. priority: 1 is served before 2,
    0 is the default. heads: the JSON of earlier responses to requests like this one, by the shapes of the outputs.
    """

    id: str | None
    inputs: dict[str, Array]
    rows: int
    outputs: tuple[Wanted, ...]
    timeout: float | None
    priority: int = 0
    heads: dict[tuple[tuple[int, ...], ...], bytes] | None = None

    @property
    def ranks(self) -> bool:
        """Whether an output is classified: sorting a large one is no work for the event loop."""
        return any(wanted.classes for wanted in self.outputs)


def read_inputs(entries: Sequence[Entry], signature: Signature, read: ReadData) -> dict[str, Array]:
    """The arrays of a request, in the model's order; `read` gets the data of one entry. Raises BadRequest."""
    ports = signature.inputs_by_name
    found: dict[str, Array] = {}
    for entry in entries:
        name = entry.get("name")
        port = ports.get(name) if isinstance(name, str) else None
        if port is None:
            raise BadRequest(f"the model has no input {name!r:.80}; expected {', '.join(map(repr, ports))}")
        if port.name in found:
            raise BadRequest(f"input {port.name!r} stands twice in the request; send it once")
        if entry.get("datatype") != port.datatype:
            raise BadRequest(
                f"input {port.name!r} has datatype {entry.get('datatype')!r:.40}; expected {port.datatype}"
            )
        found[port.name] = read(entry, port, port.check_shape(entry.get("shape")))
    missing = [name for name in ports if name not in found]
    if missing:
        raise BadRequest(f"the request has no input {missing[0]!r}; expected every input of the model")
    return {name: found[name] for name in ports}


def choose_outputs(entries: Sequence[Entry], signature: Signature, *, binary: bool) -> tuple[Wanted, ...]:
    """What the response shall hold: every output where `entries` names none. Raises BadRequest, Unsupported."""
    if not entries:
        return signature.all_binary if binary else signature.all_json
    ports = signature.outputs_by_name
    found: dict[str, Wanted] = {}
    for entry in entries:
        name = entry.get("name")
        port = ports.get(name) if isinstance(name, str) else None
        if port is None:
            raise BadRequest(f"the model has no output {name!r:.80}; expected {', '.join(map(repr, ports))}")
        if port.name in found:
            raise BadRequest(f"output {port.name!r} stands twice in the request; name it once")
        what = f"output {port.name!r}"
        parameters = read_parameters(entry, what)
        refuse_shared_memory(parameters, what)
        found[port.name] = _carriable(
            Wanted(
                port,
                read_flag(parameters, "binary_data", what, default=binary),
                classes=_classes(parameters, what),
                labels=signature.labels if port is signature.outputs[0] else (),
            )
        )
    return tuple(found.values())


def check_request(
    identity: str | None,
    parameters: Mapping[str, Any],
    arrays: dict[str, Array],
    outputs: tuple[Wanted, ...],
    signature: Signature,
    limits: Limits,
) -> InferRequest:
    """A request from its parts, with its parameters read. Raises BadRequest, Unsupported."""
    rows = count_rows(arrays, signature, limits)
    if not parameters:
        return InferRequest(identity, arrays, rows, outputs, None)
    if parameters.get("sequence_id", 0) not in (0, ""):
        raise Unsupported("the request has a sequence_id; the models here keep no state; leave it out")
    timeout = _whole(parameters, "timeout", "whole microseconds")
    return InferRequest(
        id=identity,
        inputs=arrays,
        rows=rows,
        outputs=outputs,
        timeout=timeout / 1e6 if timeout else None,
        priority=_whole(parameters, "priority", "a whole number, 1 for the most urgent"),
    )


def parse_json(text: bytes | memoryview, limit: int, values: int = 2**20) -> Any:
    """A JSON document of at most `limit` bytes and so many values. Raises BadRequest, TooLarge."""
    check_json_size(text, limit, values)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as problem:
        hint = "; NaN and infinity are no JSON: send them as binary data" if b"N" in bytes(text[:limit]) else ""
        raise BadRequest(f"the body is not JSON ({problem}){hint}") from None


def check_json_size(text: bytes | memoryview, limit: int, values: int) -> None:
    """Raise TooLarge for JSON of more than `limit` bytes, or of more than so many values.

    The parser holds the interpreter's lock: nothing else is answered meanwhile, in whatever thread it runs. Its time
    goes by values, not by bytes (16 MiB of empty lists: 1.2 s; of long numbers: 0.04 s). A list or an object takes
    about as long as eight numbers, the name of a member as long as one.
    """
    if len(text) > limit:
        raise TooLarge(f"the JSON has {len(text)} bytes; expected at most {limit}; send tensors as binary data")
    if len(text) > values // _AS_LONG_AS:  # in fewer bytes there cannot be more
        whole = bytes(text)
        found = whole.count(b",") + whole.count(b":") + _AS_LONG_AS * (whole.count(b"[") + whole.count(b"{"))
        if found > values:
            raise TooLarge(
                f"the JSON counts as {found} values, each list and object as eight; expected at most {values}; "
                "send flat data, or binary data"
            )


def count_rows(arrays: Mapping[str, Array], signature: Signature, limits: Limits) -> int:
    """The rows of a request: the largest free first axis; 1 where the model has none. Raises BadRequest."""
    sizes = {arrays[port.name].shape[0] for port in signature.inputs if port.has_batch}
    if len(sizes) > 1 and signature.batched:
        raise BadRequest(f"the inputs have {', '.join(map(str, sorted(sizes)))} rows; expected the same number in each")
    rows = max(sizes, default=1)
    if rows > limits.rows:
        raise BadRequest(f"the request has {rows} rows; expected at most {limits.rows}; send fewer at a time")
    return int(rows)


def check_finite(array: Array, name: str, remedy: str) -> None:
    """Raise BadRequest for NaN and infinity: JSON has neither, and null or a guess would be taken for an answer."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(f"output {name!r} holds NaN or infinity for this input, which JSON cannot carry; {remedy}")


def read_parameters(entry: Entry, what: str) -> dict[str, Any]:
    """The parameters of a request or of a tensor. Raises BadRequest."""
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequest(f"{what} has parameters that are no JSON object; expected one")
    return parameters


def read_flag(parameters: Mapping[str, Any], key: str, what: str, *, default: bool = False) -> bool:
    """A parameter that is true or false. Raises BadRequest."""
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{what} has {value!r:.40} as {key}; expected true or false")
    return value


def refuse_shared_memory(parameters: Mapping[str, Any], what: str) -> None:
    """Raise Unsupported for a tensor that lies in shared memory."""
    if _SHARED_MEMORY in parameters:
        raise Unsupported(f"{what} is in shared memory, which is not offered here; send data in the request")


def _whole(parameters: Mapping[str, Any], key: str, expected: str) -> int:
    value = parameters.get(key)
    if value is None:
        return 0
    if type(value) is not int or value < 0:
        raise BadRequest(f"the request has {value!r:.40} as {key}; expected {expected}")
    return value


def _classes(parameters: Mapping[str, Any], what: str) -> int:
    value = parameters.get("classification", 0)
    if type(value) is not int or value < 0:
        raise BadRequest(f"{what} has {value!r:.40} as classification; expected a whole number of classes")
    return value


def _carriable(wanted: Wanted) -> Wanted:
    port = wanted.port
    if port.datatype in BINARY_ONLY and not wanted.binary and not wanted.classes:
        raise BadRequest(
            f"output {port.name!r} is {port.datatype}, which JSON cannot carry; ask for it with binary_data"
        )
    if wanted.classes and port.datatype == "BOOL":
        raise BadRequest(
            f"output {port.name!r} is BOOL, which has no largest scores; ask for it without classification"
        )
    return wanted
