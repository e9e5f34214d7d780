"""An .onnx file split into its graph and its large tensors, which stay in the file: nothing is read that is not used.

The wire format is that of protocol buffers (encoding specification, "Message structure"): a message is a row of
fields, each a tag (number << 3 | type) and a value; a message within a message is a field with a length. Numbers of
the fields are those of onnx.proto3. Anything unexpected ends the split: then the parser gets the file as it is.
"""

from __future__ import annotations

import mmap
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

LARGE = 1 << 16  # bytes; smaller tensors are read along with the graph

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9  # of ModelProto, GraphProto, TensorProto
_DATA_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 2, 13, 14  # of TensorProto
_DEEPEST = 16  # graphs within graphs

# Which fields of a message lead to tensors: ModelProto.graph; GraphProto.node and initializer; NodeProto.attribute;
# AttributeProto.t and g.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}
WHOLE = frozenset(  # types of which an element is a number of bytes
    {
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT64,
        ir.DataType.INT32, ir.DataType.INT16, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.BOOL,
    }
)  # fmt: skip


class _Unexpected(Exception):
    """What was read is no message."""


@dataclass(frozen=True)
class Split:
    """A model without the data of its large tensors: these say that they are external, at `location`."""

    proto: bytes
    location: str


def split(data: mmap.mmap | bytes) -> Split | None:
    """Split a file, mapped or read; None for one that is no message, or has no large tensor."""
    location = secrets.token_hex(16)  # nobody can have written it into the file
    splitter = _Splitter(data, location)
    try:
        pieces = list(splitter.pieces(0, len(data), "model", 0))
    except _Unexpected:
        return None
    return Split(b"".join(pieces), location) if splitter.count else None


class _Splitter:
    def __init__(self, data: mmap.mmap | bytes, location: str) -> None:
        self._data = data
        self._location = location
        self.count = 0

    def pieces(self, start: int, end: int, kind: str, depth: int) -> Iterator[bytes]:
        """The bytes of a message with large tensors replaced, piece by piece."""
        if depth > _DEEPEST:
            yield self._data[start:end]
            return
        if kind == "tensor":
            yield self._tensor(start, end)
            return
        inside = _INSIDE[kind]
        copied = at = start
        while at < end:
            tag_at = at
            number, wire, at = self._tag(at, end)
            begin, at = self._value(wire, at, end)
            if wire != _LENGTH or number not in inside or at - begin < LARGE:
                continue
            yield self._data[copied:tag_at]
            deeper = depth + (inside[number] == "graph")
            message = b"".join(self.pieces(begin, at, inside[number], deeper))
            yield head(number, len(message)) + message
            copied = at
        yield self._data[copied:end]

    def _tensor(self, start: int, end: int) -> bytes:
        """A tensor; one with large raw data is told to be external instead."""
        rest, raw, data_type = [], [], 0
        at = start
        while at < end:
            tag_at = at
            number, wire, at = self._tag(at, end)
            begin, at = self._value(wire, at, end)
            if number == RAW_DATA and wire == _LENGTH:
                raw.append((begin, at))
                continue
            if number in (_EXTERNAL_DATA, _DATA_LOCATION):
                return self._data[start:end]
            if number == _DATA_TYPE and wire == _VARINT:
                data_type, _ = self._number(begin, end)
            rest.append(self._data[tag_at:at])
        if len(raw) != 1 or raw[0][1] - raw[0][0] < LARGE or data_type not in WHOLE:
            return self._data[start:end]
        self.count += 1
        begin, finish = raw[0]
        entries = {"location": self._location, "offset": str(begin), "length": str(finish - begin)}
        for key, value in entries.items():
            rest.append(_message(_EXTERNAL_DATA, _message(1, key.encode()) + _message(2, value.encode())))
        rest.append(_varint(_DATA_LOCATION << 3 | _VARINT) + _varint(onnx.TensorProto.EXTERNAL))
        return b"".join(rest)

    def _tag(self, at: int, end: int) -> tuple[int, int, int]:
        tag, at = self._number(at, end)
        return tag >> 3, tag & 7, at

    def _value(self, wire: int, at: int, end: int) -> tuple[int, int]:
        """Where the value of a field begins and ends, its length aside."""
        begin = at
        match wire:
            case 0:
                _, at = self._number(at, end)
            case 1:
                at += 8
            case 2:
                length, begin = self._number(at, end)
                at = begin + length
            case 5:
                at += 4
            case _:
                raise _Unexpected
        if at > end:
            raise _Unexpected
        return begin, at

    def _number(self, at: int, end: int) -> tuple[int, int]:
        result = shift = 0
        while at < end and shift < 70:
            byte = self._data[at]
            result |= (byte & 0x7F) << shift
            at += 1
            if byte < 0x80:
                return result, at
            shift += 7
        raise _Unexpected


def _varint(number: int) -> bytes:
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)


def head(number: int, length: int) -> bytes:
    """What stands before the content of a field with a length."""
    return _varint(number << 3 | _LENGTH) + _varint(length)


def _message(number: int, content: bytes) -> bytes:
    return head(number, len(content)) + content


def map_file(path: Path) -> mmap.mmap | None:
    """A file as memory; None for an empty one. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
