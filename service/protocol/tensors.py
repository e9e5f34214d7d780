"""Tensors from the wire: JSON numbers and binary blobs to arrays, checked against what the model takes."""

from __future__ import annotations

import array
import functools
import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.bundle import TensorSpec
from bnfold.datatypes import DATATYPES, WIRE, DType
from bnfold.errors import BundleError
from service.errors import BadRequest

Array = np.ndarray[Any, np.dtype[Any]]

# Python's own arrays are strict where numpy converts: they refuse text, null, fractions and what is out of range.
_CODES = {
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "FP16": "d", "FP32": "d", "FP64": "d",
}  # fmt: skip


_MOST_LETTERS = 64
_MOST_SHAPES = 256  # that a port remembers


@dataclass(frozen=True)
class Port:
    """One input or output of a model on the wire. datatype: the protocol's name. shape: -1 where free."""

    name: str
    datatype: str
    dtype: DType
    shape: tuple[int, ...]

    @staticmethod
    def of(spec: TensorSpec) -> Port:
        """The port of a tensor of a bundle. Raises BundleError for a dtype that cannot be sent or run."""
        if spec.dtype not in DATATYPES:
            raise BundleError(
                f"tensor {spec.name!r:.80} has dtype {spec.dtype}, which the server cannot run; "
                f"expected one of {', '.join(DATATYPES)}; build the bundle with another dtype"
            )
        datatype = DATATYPES[spec.dtype]
        return Port(spec.name, datatype, WIRE[datatype], spec.shape)

    @property
    def has_batch(self) -> bool:
        """Whether the first axis is free, and so counts the rows."""
        return bool(self.shape) and self.shape[0] == -1

    @functools.cached_property
    def _fitting(self) -> set[tuple[int, ...]]:
        """Shapes that were found to fit."""
        return set()

    def check_shape(self, shape: object) -> tuple[int, ...]:
        """A shape from a request. Raises BadRequest unless it is a list of sizes from 1 that fits the port."""
        if not isinstance(shape, list) or len(shape) > 64 or not set(map(type, shape)) <= {int}:
            raise BadRequest(f"input {self.name!r} has {shape!r:.80} as its shape; expected a list of whole numbers")
        found = tuple(shape)
        if found in self._fitting:
            return found
        fits = len(shape) == len(self.shape) and all(
            size in (wanted, -1) for size, wanted in zip(self.shape, shape, strict=True)
        )
        if not fits or not all(0 < size < 2**40 for size in shape):
            raise BadRequest(
                f"input {self.name!r} has shape {shape!r:.120}; expected {list(self.shape)}, from 1 on where it says -1"
            )
        if len(self._fitting) < _MOST_SHAPES:
            self._fitting.add(found)
        return found


def read_blob(blob: memoryview, port: Port, shape: tuple[int, ...]) -> Array:
    """The array of a binary blob, little-endian, row-major; it shares the blob's memory. Raises BadRequest."""
    size = math.prod(shape) * port.dtype.itemsize
    if len(blob) != size:
        raise BadRequest(
            f"input {port.name!r} has {len(blob)} bytes of binary data; "
            f"expected {size} for {port.datatype} {list(shape)}"
        )
    if port.datatype == "BOOL" and np.frombuffer(blob, np.uint8).max(initial=0) > 1:
        raise BadRequest(f"input {port.name!r} is BOOL and has a byte above 1; expected 0 or 1 in each")
    found = np.frombuffer(blob, port.dtype).reshape(shape)
    return found if found.flags.aligned else found.copy()


def pack_texts(texts: Sequence[str]) -> bytes:
    """A blob of BYTES elements: each its length in four bytes, little-endian, and its UTF-8."""
    encoded = [text.encode() for text in texts]
    return b"".join([part for element in encoded for part in (struct.pack("<I", len(element)), element)])


def read_numbers(data: object, port: Port, shape: tuple[int, ...], *, holds_truths: bool = True) -> Array:
    """The array of JSON numbers, flat in row-major order or nested as the shape says. Raises BadRequest.

    holds_truths: False where the JSON is known to have no true and no false, which need not be looked for then.
    """
    if not isinstance(data, list):
        raise BadRequest(f"input {port.name!r} has data that is no list; expected a list of numbers")
    flat = _flatten(data, port, shape) if data and isinstance(data[0], list) else data
    count = math.prod(shape)
    if len(flat) != count:
        raise BadRequest(f"input {port.name!r} has {len(flat)} numbers; expected {count} for the shape {list(shape)}")
    if holds_truths or port.datatype != "FP32":
        return _convert(flat, port).reshape(shape)
    return _pack(flat, port).reshape(shape)


def find_truths(text: bytes) -> bool:
    """Whether true or false stands in a JSON text, be it in a name; said too of one that has many of their letters."""
    for letter, word in ((b"u", b"true"), (b"l", b"false")):
        at = text.find(letter)
        for _ in range(_MOST_LETTERS):
            if at < 0:
                break
            if text.startswith(word, max(0, at - 2)):
                return True
            at = text.find(letter, at + 1)
        if at >= 0:
            return True
    return False


def nested_shape(data: object) -> list[int]:
    """The shape of a nested list, told from its first elements."""
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return shape


def _flatten(data: list[Any], port: Port, shape: tuple[int, ...]) -> list[Any]:
    level = data
    for depth, size in enumerate(shape):
        if depth and (set(map(type, level)) != {list} or set(map(len, level)) != {size}):
            break
        level = list(itertools.chain.from_iterable(level)) if depth else level
    else:
        if shape and len(data) == shape[0]:
            return level
    raise BadRequest(f"input {port.name!r} has data nested unlike its shape {list(shape)}; nest it so, or send it flat")


def _pack(flat: Sequence[Any], port: Port) -> Array:
    """FP32 from numbers that are no truth values; half the work of an array of doubles, and the same rounding."""
    try:
        packed = _packer(len(flat)).pack(*flat)
    except (struct.error, OverflowError):  # what is wrong is found, and said, on the slower way
        return _convert(flat, port)
    return np.frombuffer(packed, np.float32)


@functools.lru_cache(maxsize=64)
def _packer(count: int) -> struct.Struct:
    return struct.Struct(f"={count}f")


def _convert(flat: Sequence[Any], port: Port) -> Array:
    if port.datatype == "BOOL":
        if not set(map(type, flat)) <= {bool}:
            raise BadRequest(f"input {port.name!r} is BOOL; expected true and false alone")
        return np.array(flat, port.dtype)
    try:
        if bool in set(map(type, flat)):  # Python takes true for 1
            raise TypeError
        numbers = np.asarray(array.array(_CODES[port.datatype], flat))
    except (TypeError, OverflowError):
        kind = "numbers" if port.dtype.kind == "f" else "whole numbers in its range"
        raise BadRequest(
            f"input {port.name!r} is {port.datatype}; expected {kind}, and no null, text or truth value"
        ) from None
    with np.errstate(over="ignore"):
        converted = numbers.astype(port.dtype)
    if port.dtype.kind == "f" and not np.isfinite(converted).all():
        raise BadRequest(f"input {port.name!r} has a number beyond {port.datatype}; send smaller ones")
    return converted
