"""Clients that ask without a pause, know what every version must answer, and account for every request they sent.

A request counts as lost when it was sent whole on a connection that the server had taken, and no answer came; answers
are compared with those of a session of the campaign's own. Sockets and bytes only: no client library tries again here.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

CLOSE = 1e-4  # rounding of other batch sizes is below 1e-5; the versions differ by more than 1e-2
_PATIENCE = 60.0
_KEPT = 20  # complaints of one kind


@dataclass
class Tally:
    """What became of all requests. untaken: reset on a new connection after the signal, so never the server's."""

    versions: Counter[str] = field(default_factory=Counter)
    busy: int = 0
    untaken: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def right(self) -> int:
        """Requests answered with the rows of the version in the header."""
        return sum(self.versions.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; times in ms."""
        times = np.array(self.seconds or [0.0]) * 1e3
        return {
            "answered right": self.right, "answered wrongly": len(self.wrong), "lost": len(self.lost),
            "503 after the signal": self.busy, "never taken, at the closed socket": self.untaken,
            "versions that answered": len(self.versions),
            "latency ms": {name: round(float(np.percentile(times, at)), 2)
                           for name, at in (("p50", 50), ("p99", 99), ("max", 100))},
            "complaints": [*self.wrong[:_KEPT], *self.lost[:_KEPT]],
        }  # fmt: skip


@dataclass
class Answer:
    """One response as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Clients:
    """A crowd of them. requests: as `write_request` makes them. expected: by version, a row for each of them."""

    def __init__(
        self, address: tuple[str, int], requests: Sequence[bytes], expected: Mapping[str, Array], output: str
    ) -> None:
        self.tally = Tally()
        self.stopping = threading.Event()  # from the signal on, 503 and closed sockets are in order
        self._address, self._requests, self._expected, self._output = address, requests, expected, output
        self._lock = threading.Lock()
        self._threads: Sequence[threading.Thread] = ()
        self._end = threading.Event()

    @contextlib.contextmanager
    def pounding(self, count: int) -> Iterator[None]:
        """So many clients ask until the block ends, or until nobody takes their connection."""
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(count)]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            self.join()

    def join(self) -> None:
        """Wait until every client has gone home."""
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _ask(self, number: int) -> None:
        connection: socket.socket | None = None
        stream: BinaryIO | None = None
        fresh = True
        for serial in itertools.count():
            if self._end.is_set():
                break
            if connection is None or stream is None:
                try:
                    connection = socket.create_connection(self._address, timeout=_PATIENCE)
                except OSError as problem:
                    if not self.stopping.is_set():
                        self._complain(self.tally.lost, f"no connection: {problem!r}")
                    break
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stream, fresh = connection.makefile("rb"), True
            sample = (serial * 7 + number) % len(self._requests)
            started = time.perf_counter()
            try:
                connection.sendall(self._requests[sample])
                answer = _read(stream)
            except (OSError, EOFError) as problem:
                self._note_reset(problem, fresh)
                connection.close()
                connection = None
                continue
            self._note(answer, sample, time.perf_counter() - started)
            fresh = False
            if answer.headers.get("connection") == "close":
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _note_reset(self, problem: Exception, fresh: bool) -> None:
        if fresh and self.stopping.is_set():
            with self._lock:
                self.tally.untaken += 1
        else:
            self._complain(self.tally.lost, f"no answer on a connection that was taken: {problem!r}")

    def _note(self, answer: Answer, sample: int, seconds: float) -> None:
        if answer.status == 503 and self.stopping.is_set() and "retry-after" in answer.headers:
            with self._lock:
                self.tally.busy += 1
            return
        version = answer.headers.get("bnfold-model-version", "")
        if not is_right(answer, self._expected.get(version), sample, self._output):
            self._complain(self.tally.wrong, f"{answer.status} from version {version!r}: {answer.body[:200]!r}")
            return
        with self._lock:
            self.tally.versions[version] += 1
            self.tally.seconds.append(seconds)

    def _complain(self, where: list[str], what: str) -> None:
        with self._lock:
            where.append(what)


def is_right(answer: Answer, expected: Array | None, sample: int, output: str) -> bool:
    """Whether an answer has the row that this version gives for this sample, and says so of itself."""
    if answer.status != 200 or expected is None:
        return False
    length = answer.headers.get("inference-header-content-length")
    head = json.loads(answer.body if length is None else answer.body[: int(length)])
    found = next(each for each in head["outputs"] if each["name"] == output)
    values = found["data"] if length is None else np.frombuffer(answer.body[int(length) :], "<f4")
    if head["model_version"] != answer.headers["bnfold-model-version"] or head["id"] != str(sample):
        return False
    row = np.asarray(values, np.float64)
    return row.shape == expected[sample].shape and bool(np.abs(row - expected[sample]).max() < CLOSE)


def write_request(path: str, sample: Array, number: int, name: str) -> bytes:
    """The bytes of an inference request for one row: every other one has its tensor as binary data, and asks so."""
    tensor: dict[str, Any] = {"name": name, "shape": [1, *sample.shape], "datatype": "FP32"}
    document: dict[str, Any] = {"id": str(number), "inputs": [tensor]}
    blob = b""
    if number % 2:
        blob = np.ascontiguousarray(sample, "<f4").tobytes()
        tensor["parameters"] = {"binary_data_size": len(blob)}
        document["parameters"] = {"binary_data_output": True}
    else:
        tensor["data"] = sample.ravel().tolist()
    text = json.dumps(document).encode("ascii")
    lines = [f"POST {path} HTTP/1.1", "Host: campaign", f"Content-Length: {len(text) + len(blob)}"]
    lines += [f"Inference-Header-Content-Length: {len(text)}"] if blob else []
    return "\r\n".join([*lines, "", ""]).encode("ascii") + text + blob


def _read(stream: BinaryIO) -> Answer:
    """One response. Raises EOFError when the connection ends before it does."""
    status = stream.readline()
    if not status.endswith(b"\r\n"):
        raise EOFError(f"the connection ended after {status!r}")
    headers: dict[str, str] = {}
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    length = int(headers["content-length"])
    body = stream.read(length)
    if len(body) != length:
        raise EOFError(f"the connection ended after {len(body)} of {length} bytes")
    return Answer(int(status.split()[1]), headers, body)
