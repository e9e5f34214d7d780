"""/predict, the door for people: JSON rows or pictures in, classes with labels and probabilities out.

The manifest's output kind says what comes back: `logits` become probabilities by softmax, `probabilities` are taken as
they are, every other output comes back as it is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np

from bnfold.errors import DataError
from bnfold.preprocessing import decode_image
from bnfold.scores import rank, to_chances
from service.engine import Engine
from service.errors import BadRequest
from service.http.forms import read_files
from service.protocol.requests import Limits, check_finite, count_rows, parse_json
from service.protocol.tensors import Array, Port, nested_shape, read_numbers

DEFAULT_TOP = 5
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")


async def read_inputs(
    body: bytes, content_type: str, engine: Engine, limits: Limits, pool: Executor | None
) -> tuple[dict[str, Array], int]:
    """The inputs of a prediction, by name, and how many rows they have. Raises BadRequest, TooLarge.

    A picture (its Content-Type says image/..., or its first bytes do), a form with pictures, otherwise JSON.
    pool: where pictures are decoded; its threads bound how many are in memory at once.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        # Not on the loop: 60 MiB of almost-boundaries keep the parser busy for seconds.
        loop = asyncio.get_running_loop()
        files = await loop.run_in_executor(pool, read_files, body, content_type, limits.rows)
        inputs = await _read_pictures(files, engine, limits, pool)
    elif kind.startswith("image/") or kind == "application/octet-stream" or body.startswith(_PICTURES):
        inputs = await _read_pictures([body], engine, limits, pool)
    else:
        inputs = _read_instances(parse_json(body, limits.json_bytes, limits.json_values), engine)
    return inputs, count_rows(inputs, engine.signature, limits)


def describe(engine: Engine, outputs: Mapping[str, Array], top: int) -> list[dict[str, Any]]:
    """One prediction a row. top: how many classes to name. Raises BadRequest when an output is not finite."""
    for port in engine.signature.outputs:
        check_finite(outputs[port.name], port.name, "check the range of the input")
    scores = outputs[engine.signature.outputs[0].name]
    if engine.manifest.output_kind == "raw" or scores.ndim != 2:
        return _raw_rows(engine.signature.outputs, outputs)
    chances = to_chances(scores, engine.manifest.output_kind)
    return [
        _ranked([_class(int(index), float(row[index]), engine.manifest.labels) for index in best])
        for row, best in zip(chances, rank(scores, top), strict=True)
    ]


def _ranked(classes: list[dict[str, Any]]) -> dict[str, Any]:
    return {**classes[0], "top": classes}


def _class(index: int, chance: float, labels: Sequence[str] | None) -> dict[str, Any]:
    return {"class": index, "label": None if labels is None else labels[index], "probability": chance}


def _raw_rows(ports: Sequence[Port], outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
    plain = {port.name: _for_json(outputs[port.name]) for port in ports}
    if not all(port.has_batch for port in ports):
        return [{"outputs": plain}]
    return [
        {"outputs": {name: array[row] for name, array in plain.items()}} for row in range(len(plain[ports[0].name]))
    ]


def _for_json(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else None)


# ------------------------------------------------------------------------------------------------------------- JSON


def _read_instances(document: Any, engine: Engine) -> dict[str, Array]:
    instances = document.get("instances") if isinstance(document, dict) else document
    if not isinstance(instances, list) or not instances:
        raise BadRequest('the request has no list of rows as "instances"; expected {"instances": [row, ...]}')
    ports = engine.signature.inputs
    if not all(port.has_batch for port in ports):
        raise BadRequest(f"model {engine.label} has a fixed batch size; use /v2/models/{engine.name}/infer")
    if len(ports) == 1 and not isinstance(instances[0], dict):
        return {ports[0].name: _stack(instances, ports[0])}
    names = [port.name for port in ports]
    for row in instances:
        if not isinstance(row, dict) or set(row) != set(names):
            raise BadRequest(f"a row is no object with the inputs {', '.join(map(repr, names))}; expected these")
    return {port.name: _stack([row[port.name] for row in instances], port) for port in ports}


def _stack(rows: list[Any], port: Port) -> Array:
    """Rows of numbers, nested like the model's input or flat; one row may stand without the list around it."""
    shape = nested_shape(rows)
    fixed = port.shape[1:]
    if len(shape) == 2 != len(port.shape) and -1 not in fixed and shape[1] == math.prod(fixed):
        return read_numbers(rows, port, (shape[0], shape[1])).reshape(shape[0], *fixed)
    if shape and len(shape) == len(fixed):
        rows, shape = [rows], [1, *shape]
    return read_numbers(rows, port, port.check_shape(shape))


# --------------------------------------------------------------------------------------------------------- pictures


async def _read_pictures(
    pictures: Sequence[bytes], engine: Engine, limits: Limits, pool: Executor | None
) -> dict[str, Array]:
    preprocessing, port = engine.manifest.preprocessing, engine.signature.inputs[0]
    if preprocessing is None or port.dtype.kind != "f":
        raise BadRequest(f"model {engine.label} has no preprocessing for pictures; send JSON rows")

    loop = asyncio.get_running_loop()
    try:
        # One by one, so that a request whose time is over stops taking threads.
        decode = partial(decode_image, preprocessing=preprocessing, max_pixels=limits.pixels)
        decoded = [await loop.run_in_executor(pool, decode, picture) for picture in pictures]
    except DataError as problem:
        raise BadRequest(str(problem)) from None
    batch = np.stack(decoded).astype(port.dtype, copy=False)
    port.check_shape(list(batch.shape))
    return {port.name: batch}
