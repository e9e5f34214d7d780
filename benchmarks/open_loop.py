"""Open-loop load on an HTTP server: when a request is due is settled beforehand, whatever the server does.

    python benchmarks/open_loop.py --port 8000 --path /v2/models/m/infer --body request.bin \
        --header 'Inference-Header-Content-Length: 135' --rate 500 --seconds 10 --arrivals poisson

Latency counts from the moment a request was due, also while it waits for a free connection, so that a server that
stalls cannot hold back the requests that would have seen it (coordinated omission; Tene 2013). Percentiles are exact,
by nearest rank over all latencies. One thread, raw sockets; `late` says how much the generator itself was behind.
Standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Arrivals = Literal["constant", "poisson"]
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
LATE_S = 0.001  # p99 of the generator's own delay above which its latencies say little about the server
_PATIENCE_S = 10.0  # for answers after the last request
_READ = 1 << 18
_SEND_BUFFER = 1 << 20  # a request is written in one go


@dataclass(frozen=True)
class Ask:
    """One HTTP/1.1 request, ready to be sent again and again over a connection that stays open."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def message(self, host: str) -> bytes:
        """Head and body."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


@dataclass
class Outcome:
    """What a run saw. latencies: seconds from due to answered, of answers 200. late: seconds from due to noticed."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    queued: int = 0
    last_body: bytes = b""

    @property
    def answered(self) -> int:
        """Answers with status 200."""
        return self.statuses.get(200, 0)

    @property
    def failed(self) -> int:
        """Other answers, and requests without one."""
        return sum(self.statuses.values()) - self.answered + self.lost

    @property
    def fell_behind(self) -> bool:
        """Whether the generator could not keep its own schedule."""
        return bool(self.late) and percentile(sorted(self.late), 99.0) > LATE_S

    def summary(self) -> dict[str, Any]:
        """Counts, percentiles in ms, and whether the generator kept up."""
        return {
            "n": self.answered, "failed": self.failed, "rate": round(self.answered / self.seconds, 1),
            "ms": percentiles_ms(self.latencies),
            "waited_for_a_connection": self.queued,
            "generator_late_ms_p99": round(1e3 * percentile(sorted(self.late), 99.0), 3) if self.late else None,
            "fell_behind": self.fell_behind,
        }  # fmt: skip


def schedule(arrivals: Arrivals, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """When requests are due, in seconds from the start: evenly, or as a Poisson process of that rate."""
    if arrivals == "constant":
        return [at / rate for at in range(math.floor(rate * seconds))]
    source, at, due = random.Random(seed), 0.0, []
    while (at := at + source.expovariate(rate)) < seconds:
        due.append(at)
    return due


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` percent do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100 - 1e-9) - 1)]


def percentiles_ms(latencies: Sequence[float]) -> dict[str, float | None]:
    """p50 to p99.9 in ms; None where fewer than one latency lies beyond the percentile."""
    ordered = sorted(latencies)
    return {
        f"p{share:g}": round(1e3 * percentile(ordered, share), 3)
        if len(ordered) * (100 - share) >= 100 - 1e-6
        else None
        for share in PERCENTILES
    }


class Load:
    """Connections to one server, kept open over several runs."""

    def __init__(self, port: int, connections: int, host: str = "127.0.0.1") -> None:
        self._host, self._port = host, port
        self._poll = select.epoll()
        self._lines = {line.number: line for line in (self._connect() for _ in range(connections))}
        self._free: deque[Line] = deque(self._lines.values())

    def close(self) -> None:
        """Leave."""
        for line in self._lines.values():
            line.socket.close()
        self._poll.close()

    def open_loop(self, ask: Ask, due: Sequence[float]) -> Outcome:
        """Send a request at each of these times (seconds from now on), over whatever connection is free."""
        return self._run(ask, due, math.inf)

    def closed_loop(self, ask: Ask, seconds: float) -> Outcome:
        """Send the next request as soon as an answer is there, on all connections: the server is never idle."""
        return self._run(ask, None, seconds)

    def _run(self, ask: Ask, due: Sequence[float] | None, seconds: float) -> Outcome:
        message, found = ask.message(f"{self._host}:{self._port}"), Outcome()
        with _no_collection():
            begun = time.perf_counter()
            if due is None:
                self._rush(message, begun + seconds, found)
            else:
                self._follow(message, begun, due, found)
            found.seconds = time.perf_counter() - begun
        found.lost += len(self._lines) - len(self._free)
        for line in [line for line in self._lines.values() if line.due is not None]:
            self._free.append(self._replace(line))
        return found

    def _rush(self, message: bytes, end: float, found: Outcome) -> None:
        while (now := time.perf_counter()) < end:
            while self._free:
                self._send(self._free.popleft(), message, now)
            self._read(end - now, found)
        self._drain(found)

    def _follow(self, message: bytes, begun: float, due: Sequence[float], found: Outcome) -> None:
        waiting: deque[float] = deque()
        at, count, free = 0, len(due), self._free
        while at < count or waiting:
            now = time.perf_counter()
            while at < count and begun + due[at] <= now:
                found.late.append(now - begun - due[at])
                found.queued += not free
                waiting.append(begun + due[at])
                at += 1
            while waiting and free:
                self._send(free.popleft(), message, waiting.popleft())
            if at < count:
                self._read(max(0.0, begun + due[at] - time.perf_counter()), found)
            elif waiting and not self._read(_PATIENCE_S, found):
                found.lost += len(waiting)
                break
        self._drain(found)

    def _drain(self, found: Outcome) -> None:
        end = time.perf_counter() + _PATIENCE_S
        while len(self._free) < len(self._lines) and (now := time.perf_counter()) < end:
            self._read(end - now, found)

    def _send(self, line: Line, message: bytes, due: float) -> None:
        line.due = due
        line.socket.sendall(message)

    def _read(self, seconds: float, found: Outcome) -> int:
        """Take in what arrives within the time. epoll counts in ms, select in µs, and sleeps instead of spinning."""
        ready, _, _ = select.select([self._poll], [], [], seconds)
        if not ready:
            return 0
        done = 0
        for number, _ in self._poll.poll(0):
            line = self._lines[number]
            answer = line.read()
            if answer is None:
                continue
            now = time.perf_counter()
            if line.due is None:  # the server has left a connection that waited for its next request
                self._free.remove(line)
                self._free.append(self._replace(line))
                continue
            status, found.last_body = answer
            found.statuses[status] = found.statuses.get(status, 0) + 1
            if status == 200:
                found.latencies.append(now - line.due)
            line.due = None
            done += 1
            self._free.append(self._replace(line) if line.closing else line)
        return done

    def _connect(self) -> Line:
        peer = socket.create_connection((self._host, self._port), timeout=_PATIENCE_S)
        peer.settimeout(None)  # with one, Python polls before each call
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._poll.register(peer.fileno(), select.EPOLLIN)
        return Line(peer)

    def _replace(self, line: Line) -> Line:
        del self._lines[line.number]
        self._poll.unregister(line.number)
        line.socket.close()
        fresh = self._connect()
        self._lines[fresh.number] = fresh
        return fresh


class Line:
    """One connection. due: when the request on it was due, None while it is free."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer
        self.number = peer.fileno()
        self.due: float | None = None
        self.closing = False
        self._parts = b""

    def read(self) -> tuple[int, bytes] | None:
        """The status and body of an answer, once it is there in whole; status 0 when the server has left."""
        try:
            piece = self.socket.recv(_READ)
        except OSError:
            piece = b""
        if not piece:
            self.closing, self._parts = True, b""
            return 0, b""
        data = self._parts + piece if self._parts else piece
        answer = _parse(data)
        self._parts = data if answer is None else b""
        if answer is None:
            return None
        status, body, self.closing = answer
        return status, body


def _parse(data: bytes) -> tuple[int, bytes, bool] | None:
    """(status, body, whether the server closes) of a whole answer, by Content-Length or in chunks (RFC 9112, 6)."""
    split = data.find(b"\r\n\r\n")
    if split < 0:
        return None
    head, rest = data[:split].lower(), data[split + 4 :]
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        body = rest if len(rest) >= length else None
    else:
        body = _join_chunks(rest)
    if body is None:
        return None
    return int(head[9:12]), body, b"\r\nconnection: close" in head


def _join_chunks(data: bytes) -> bytes | None:
    """The body that was sent in chunks (RFC 9112, 7.1), None while it is not there in whole."""
    parts: list[bytes] = []
    at = 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].split(b";", 1)[0], 16)
        if size == 0:
            return b"".join(parts) if data.endswith(b"\r\n\r\n") else None
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def main() -> int:
    """One run from the command line; a JSON object on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--body", type=Path, required=True, help="a file with the body of the request")
    parser.add_argument("--header", action="append", default=[], metavar="NAME: VALUE")
    parser.add_argument("--rate", type=float, required=True, help="requests a second; 0 for a closed loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--arrivals", choices=("constant", "poisson"), default="poisson")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    headers = tuple(
        (name.strip(), value.strip()) for name, _, value in (text.partition(":") for text in options.header)
    )
    ask = Ask(options.path, options.body.read_bytes(), headers)
    load = Load(options.port, options.connections, options.host)
    with contextlib.closing(load):
        if options.rate:
            found = load.open_loop(ask, schedule(options.arrivals, options.rate, options.seconds, options.seed))
        else:
            found = load.closed_loop(ask, options.seconds)
    print(json.dumps(found.summary(), indent=2))
    if found.fell_behind:
        print("the generator fell behind its schedule; take a lower rate or a quieter machine", file=sys.stderr)
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
