"""The numbers of a flat JSON list, read at once: no Python object is made for each of them.

A request that sends one FP32 tensor as JSON is nearly all numbers. They are cut out, a mark is put in their place, and
what is left is a short head, as it is in a binary request. What is cut out ends at the first closing bracket and is
read as a JSON document of its own, so it holds numbers alone, or it is not read here at all.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from service.protocol.tensors import Array

simdjson: Any = None
with contextlib.suppress(ImportError):  # there are platforms that it has no wheel for
    import simdjson

_LARGEST = 2**19  # bytes of a body: the parser takes some fourteen times as much for a moment
_LONGEST_HEAD = 4 * 2**10
_BEYOND = 2.0**128 - 2.0**103  # from half way between the largest FP32 and 2**128 on it rounds to infinity
_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')

# Where a head has the mark as a value, there the numbers stood. Nobody can send it: it is drawn anew in each process,
# and no answer says it.
_MARK = secrets.token_hex(16)
_MARKED = b'"%b"' % _MARK.encode("ascii")


def cut_numbers(body: bytes) -> tuple[bytes, bytes] | None:
    """The head of a JSON body with a mark where its first list of data stood, and that list; None if there is none."""
    if simdjson is None or len(body) > _LARGEST:
        return None
    found = _DATA.search(body)
    if found is None:
        return None
    start = found.end()
    end = body.find(b"]", start) + 1
    if not end or len(body) - (end - start) > _LONGEST_HEAD:
        return None
    return b"".join((body[:start], _MARKED, body[end:])), body[start:end]


def check_marked(entry: Mapping[str, Any]) -> None:
    """Raise ValueError unless the list that was cut out was the data of this input."""
    if entry.get("data") != _MARK:
        raise ValueError("the list was no data of an input")


def read_list(text: bytes, shape: tuple[int, ...]) -> Array:
    """FP32 of a shape from a flat list. Raises ValueError for every other text, and for numbers beyond FP32.

    The same bits as by way of Python's floats: each number is rounded to a double, and that to FP32.
    """
    try:
        # A parser of its own: one that is used again keeps the memory of the largest text that it has read.
        numbers = np.frombuffer(simdjson.Parser().parse(text).as_buffer(of_type="d"))
    except (TypeError, RuntimeError) as problem:
        raise ValueError("it is no list of numbers") from problem
    if np.minimum.reduce(numbers) <= -_BEYOND or np.maximum.reduce(numbers) >= _BEYOND:
        raise ValueError("a number is beyond FP32")
    return numbers.astype(np.float32).reshape(shape)
