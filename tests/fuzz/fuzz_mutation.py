"""Changes to a request that keep most of its structure, so that they reach what lies behind the first check."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

from fuzz_seeds import GRPC, LENGTH, MODELS, MOST_BYTES

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 63, 64, 65, 2**31, -(2**31), 2**53 + 1, 2**63, 10**25, 0.5, -0.0, 1e-320, 1e39,
    1e308, "", "0", "input", "left", "total", "logits", "digits", "\x00", "\ud7ff\uffff", "é" * 50, "a" * 3000, [], {},
    [[]], [[1.0]], [None], [1] * 70, {"a": {}}, [-1, 1, 8, 8], [1, 1, 8, 8], [2, 4], [2**62, 4], [0], [1.0, 8], "FP32",
    "FP16", "FP64", "INT64", "UINT8", "BOOL", "BYTES", "fp32",
)  # fmt: skip
_KEYS = ("id", "inputs", "outputs", "parameters", "name", "shape", "datatype", "data", "instances", "ready", "")
_PARAMETERS: tuple[tuple[str, Any], ...] = (
    ("binary_data", True), ("binary_data_output", True), ("binary_data_size", 256), ("classification", 2),
    ("classification", 10**9), ("timeout", 1), ("timeout", 10**7), ("priority", 3), ("sequence_id", 1),
    ("shared_memory_region", "r"), ("binary_data", 1),
)  # fmt: skip
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (LENGTH, b"0"), (LENGTH, b"1"), (LENGTH, b"99999999999999999999"), (LENGTH, b"-1"), (LENGTH, b" 12 "),
    (b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"deflate"), (b"Content-Encoding", b"br"),
    (b"Accept-Encoding", b"gzip"), (b"Accept-Encoding", b"deflate;q=0.5, *;q=0"), (b"Accept-Encoding", b"\xff;q=q"),
    (b"Content-Type", b"image/png"), (b"Content-Type", b"multipart/form-data; boundary=b"),
    (b"Expect", b"100-continue"), (b"Content-Type", b"multipart/form-data"), (b"Transfer-Encoding", b"chunked"),
    (b"Transfer-Encoding", b"gzip, chunked"), (b"Content-Length", b"5"), (b"Content-Length", b"+5"),
    (b"Connection", b"close"), (b"Connection", b"upgrade"),
    (b"Upgrade", b"h2c"), (b"X-Request-Id", b"a" * 300), (b"X-Request-Id", b"\xe9"), (b"Authorization", b"Bearer x"),
    (b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"), (b"", b""), (b"Range", b"bytes=0-"),
)  # fmt: skip
_PIECES = (
    "digits%00", "..", "%2e%2e", "%2F", "%ff", "é", "digits/versions/1", "digits/versions/0",
    "digits/versions/99999999999999", "digits/versions/01", "digits/versions/-1", "", " ", "a" * 9000,
    "digits;x", "stranger", *MODELS,
)  # fmt: skip
_PATHS = (
    "/v2/models/{}/infer",
    "/models/{}/predict?top=3",
    "/v2/models/{}",
    "/v2/models/{}/stats",
    "/v2/models/{}/parity",
)
_WHOLE = (
    "/predict", "*", "http://x/v2", "/v2/repository/index", "/v2/repository/models/digits/load", "/v2/models/stats",
    "/v2/systemsharedmemory/status", "/v2/logging", "/docs", "/docs-assets/../x", "//v2",
    "/models/digits/predict?top=\x00",
)  # fmt: skip
_METHODS = (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"post")

Chance = random.Random


def mutate(data: bytes, chance: Chance, most: int, others: Callable[[], bytes]) -> bytes:
    """Another input of at most `most` bytes. others: gives some other input to join with."""
    for _ in range(1 + min(4, int(chance.expovariate(1)))):
        data = _mutate_once(data, chance, others)
    return data[:most]


def _mutate_once(data: bytes, chance: Chance, others: Callable[[], bytes]) -> bytes:
    if chance.random() < 0.08:
        return others()
    if chance.random() < 0.12:
        return change_bytes(data, chance)
    if data.startswith(GRPC):
        method, _, message = data.partition(b"\n")
        return method + b"\n" + change_bytes(message, chance)
    if chance.random() < 0.04 and b"\r\n\r\n" in data:
        return data + others() if not data.startswith(GRPC) else data
    return _Request(data, chance).change()


def change_bytes(data: bytes, chance: Chance) -> bytes:
    """Flip, cut, repeat, insert, overwrite with a number."""
    if not data:
        return chance.randbytes(chance.randint(1, 8))
    at, many = chance.randrange(len(data)), chance.choice((1, 1, 2, 4, 8, 64))
    kind = chance.randrange(6)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[at + many :]
    if kind == 2:
        return data[:at] + data[at : at + many] * chance.choice((2, 3, 50)) + data[at + many :]
    if kind == 3:
        return data[:at] + chance.randbytes(many) + data[at:]
    if kind == 4:
        value = chance.choice((0, 1, -1, 2**31 - 1, 2**63 - 1)).to_bytes(8, "little", signed=True)
        return data[:at] + value[: chance.choice((1, 2, 4, 8))] + data[at + many :]
    return data[:at]


class _Request:
    """One HTTP request in its parts: the head's lines, the JSON, the blobs behind it."""

    def __init__(self, data: bytes, chance: Chance) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.line, *lines = head.split(b"\r\n")
        self.headers = [tuple(line.partition(b":")[::2]) for line in lines]
        self.chance = chance
        self.coding = self._value(b"content-encoding").strip().lower()
        self._unpack()
        split = self._value(LENGTH.lower()).strip()
        self.split = int(split) if split.isdigit() and len(split) < 9 else len(self.body)

    def change(self) -> bytes:
        """The request with one thing changed, and most times with lengths that fit again."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.50:
            self._change_json()
        elif kind < 0.65:
            self.body = self.body[: self.split] + change_bytes(self.body[self.split :], chance)
        elif kind < 0.80:
            self._change_headers()
        elif kind < 0.92:
            self._change_line()
        else:
            self.coding = chance.choice((b"gzip", b"deflate", b""))
            if chance.random() < 0.05:
                self.body = bytes(MOST_BYTES + chance.choice((0, 1, 10**6)))
        return self._join()

    def _value(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key.strip().lower() == name), b"")

    def _put(self, name: bytes, value: bytes) -> None:
        kept = [header for header in self.headers if header[0].strip().lower() != name.lower()]
        self.headers = [*kept, (name, b" " + value)] if value else kept

    def _unpack(self) -> None:
        if self.coding in (b"gzip", b"deflate"):
            try:
                machine = zlib.decompressobj(31 if self.coding == b"gzip" else 15)
                self.body = machine.decompress(self.body, MOST_BYTES)
            except zlib.error:
                self.coding = b""

    def _change_json(self) -> None:
        text, blobs = self.body[: self.split], self.body[self.split :]
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            self.body = change_bytes(text, self.chance) + blobs
            return
        document = _change_tree(document, self.chance)
        try:
            text = json.dumps(document).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            return
        if self.chance.random() < 0.1:
            text = text.replace(b'"name"', b'"name": "x", "name"', 1)
        self.body, old = text + blobs, self.split
        if self._value(LENGTH.lower()) and self.chance.random() < 0.95:
            self._put(LENGTH, b"%d" % len(text))
        self.split = len(text) if old else 0

    def _change_headers(self) -> None:
        chance = self.chance
        if self.headers and chance.random() < 0.3:
            self.headers.pop(chance.randrange(len(self.headers)))
        elif self.headers and chance.random() < 0.1:
            self.headers += [chance.choice(self.headers)] * chance.choice((1, 2, 120))
        else:
            name, value = chance.choice(_HEADERS)
            self.headers.insert(chance.randint(0, len(self.headers)), (name, b" " + value))

    def _change_line(self) -> None:
        chance = self.chance
        method, _, rest = self.line.partition(b" ")
        path, _, version = rest.rpartition(b" ")
        kind = chance.random()
        if kind < 0.15:
            method = chance.choice(_METHODS)
        elif kind < 0.25:
            version = chance.choice((b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"", b"HTTP/1.1 x"))
        elif kind < 0.40:
            path = chance.choice(_WHOLE).encode("latin-1")
        else:
            path = chance.choice(_PATHS).format(chance.choice(_PIECES)).encode("utf-8")
        self.line = b" ".join((method, path, version))

    def _join(self) -> bytes:
        body = self.body
        if self.coding == b"gzip":
            body = gzip.compress(body, 1, mtime=0)
        elif self.coding == b"deflate":
            body = zlib.compress(body, 1)
        chunked = b"chunked" in self._value(b"transfer-encoding").lower()
        if self.chance.random() < 0.95:
            self._put(b"Content-Encoding", self.coding)
            if not chunked:
                self._put(b"Content-Length", b"%d" % len(body))
        if chunked and self.chance.random() < 0.7 and not body.endswith(b"0\r\n\r\n"):
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        lines = [self.line, *(name + b":" + value for name, value in self.headers)]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _change_tree(document: Any, chance: Chance) -> Any:
    """A JSON document with one node changed."""
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting and len(places) < 500:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        # The numbers of a tensor are many and alike.
        keys = list(keys) if len(keys) <= 8 else chance.sample(list(keys), 3)
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
    if not places or chance.random() < 0.03:
        return chance.choice(_VALUES)
    node, key = chance.choice(places)
    kind = chance.random()
    if kind < 0.45:
        node[key] = _change_value(node[key], chance)
    elif kind < 0.55:
        del node[key]
    elif kind < 0.65 and isinstance(node, list):
        node.insert(chance.randint(0, len(node)), node[key])
    elif kind < 0.80 and isinstance(document, dict):
        entries = document.get("outputs") or document.get("inputs")
        first = entries[0] if isinstance(entries, list) and entries else document
        _add_parameter(chance.choice([document, first]), chance)
    elif isinstance(node, dict):
        node[chance.choice(_KEYS)] = chance.choice(_VALUES)
    else:
        node[key] = chance.choice(_VALUES)
    return document


def _change_value(value: Any, chance: Chance) -> Any:
    if isinstance(value, bool) or chance.random() < 0.5:
        return chance.choice(_VALUES)
    if isinstance(value, int | float):
        return chance.choice((value + 1, value - 1, -value, value * 2, float(value), str(value)))
    if isinstance(value, str):
        return chance.choice((value + "x", value[:-1], value * 2, value.upper(), [value]))
    if isinstance(value, list):
        return chance.choice((value[:-1], value + value[:1], [value], value[::-1], dict(enumerate(value[:3]))))
    return [value]


def _add_parameter(entry: Any, chance: Chance) -> None:
    if isinstance(entry, dict):
        parameters = entry.get("parameters")
        name, value = chance.choice(_PARAMETERS)
        entry["parameters"] = {**(parameters if isinstance(parameters, dict) else {}), name: value}
