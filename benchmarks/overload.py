"""What a server does when it is asked for five times what it can: who is answered, how fast the rest is told, memory.

    python benchmarks/overload.py --seconds 60 --times 5 -o benchmarks/results/overload.json

One residual network of 10 ms a row or more behind `bnfold serve`. The load is open-loop: when a request is due is
settled beforehand (Poisson), and its latency counts from then, also while it waits for a connection. The client is a
process of its own; it and the server share the cores of the machine, so the capacity is measured beside it, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from serving.machine import describe
from serving.networks import SHAPE, resnet8, sample
from serving.processes import Tree, free_port, started

import bnfold

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (160, 320, 640)  # of the stages: 100 times the work of ResNet-8
MODEL = "wide"
CONNECTIONS = 512
RECOVERY_S = 5.0
PATIENCE_S = 10.0


@dataclass
class Phase:
    """What a client saw. Latencies in seconds from due to answered, by status. late: of the client itself."""

    sent: int = 0
    latencies: dict[int, list[float]] = field(default_factory=dict)
    served: list[float] = field(default_factory=list)  # seconds from sent to answered with 200
    refused: list[float] = field(default_factory=list)  # and to answered with a 503 at once
    expired: int = 0  # accepted, and not answered in time
    retry_after: list[int] = field(default_factory=list)
    without_retry_after: int = 0
    late: list[float] = field(default_factory=list)
    unanswered: int = 0
    last_refusal: float = 0.0  # seconds after the start


def message(timeout: float) -> bytes:
    """One request of one row, with its deadline."""
    blob = sample().tobytes()
    entry = {"name": "x", "shape": [1, *SHAPE], "datatype": "FP32", "parameters": {"binary_data_size": len(blob)}}
    parameters = {"binary_data_output": True, "timeout": round(timeout * 1e6)}
    head = json.dumps({"inputs": [entry], "parameters": parameters}).encode()
    lines = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(head) + len(blob)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    )
    return lines.encode() + head + blob


class Client:
    """Sends requests when they are due, over connections that stay open."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._free: list[socket.socket] = []
        self._busy: dict[int, tuple[socket.socket, float, float, bytearray]] = {}
        self._poll = select.epoll()
        self.connections = 0

    def closed(self, seconds: float, width: int) -> float:
        """Answers a second when `width` requests are always under way: the capacity."""
        phase = Phase()
        began = time.perf_counter()
        while (now := time.perf_counter()) < began + seconds:
            while len(self._busy) < width:
                self._send(now)
            self._collect(phase, began, 0.05)
        answered = len(phase.latencies.get(200, ()))
        rate = answered / (time.perf_counter() - began)
        self._drain(phase, began)
        return rate

    def open(self, rate: float, seconds: float, seed: int) -> Phase:
        """Poisson arrivals for so long."""
        chance, phase = random.Random(seed), Phase()
        began = time.perf_counter()
        due, waiting = began + chance.expovariate(rate), deque[float]()
        while due < began + seconds or waiting:
            now = time.perf_counter()
            while due <= now and due < began + seconds:
                waiting.append(due)
                phase.late.append(now - due)
                due += chance.expovariate(rate)
            while waiting and (self._free or self.connections < CONNECTIONS):
                self._send(waiting.popleft())
                phase.sent += 1
            pause = due - time.perf_counter() if due < began + seconds else 0.01
            self._collect(phase, began, max(0.0, min(pause, 0.01)))
        self._drain(phase, began)
        return phase

    def _send(self, due: float) -> None:
        if self._free:
            connection = self._free.pop()
        else:
            connection = socket.create_connection(("127.0.0.1", self._port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._poll.register(connection, select.EPOLLIN)
            self.connections += 1
        connection.sendall(self._request)
        self._busy[connection.fileno()] = (connection, due, time.perf_counter(), bytearray())

    def _collect(self, phase: Phase, began: float, timeout: float) -> None:
        for number, _ in self._poll.poll(timeout):
            if number not in self._busy:
                continue
            connection, due, sent, buffer = self._busy[number]
            buffer += connection.recv(65536)
            head, end, body = bytes(buffer).partition(b"\r\n\r\n")
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]) if end else {}
            if not end or len(body) < int(headers[b"content-length"]):
                continue
            now = time.perf_counter()
            status = int(head[9:12])
            phase.latencies.setdefault(status, []).append(now - due)
            if status == 200:
                phase.served.append(now - sent)
            if status == 503:
                if b"no answer within" in body:
                    phase.expired += 1
                else:
                    phase.refused.append(now - sent)
                phase.last_refusal = now - began
                if b"retry-after" in headers:
                    phase.retry_after.append(int(headers[b"retry-after"]))
                else:
                    phase.without_retry_after += 1
            del self._busy[number]
            self._free.append(connection)

    def _drain(self, phase: Phase, began: float) -> None:
        until = time.perf_counter() + PATIENCE_S
        while self._busy and time.perf_counter() < until:
            self._collect(phase, began, 0.05)
        phase.unanswered += len(self._busy)


def percentiles(values: list[float]) -> dict[str, float]:
    """In milliseconds, by nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
    found = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in ranks.items()}
    return {name: round(value * 1e3, 2) for name, value in {**found, "max": ordered[-1]}.items()}


def summary(phase: Phase, timeout: float) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "sent": phase.sent,
        "by_status": {str(status): len(found) for status, found in sorted(phase.latencies.items())},
        "unanswered": phase.unanswered,
        "latency_ms": {str(status): percentiles(found) for status, found in sorted(phase.latencies.items())},
        "answered_after_their_deadline": sum(1 for seconds in phase.served if seconds > timeout),
        "accepted_and_expired": phase.expired,
        "from_sent_to_answered_ms": percentiles(phase.served),
        "from_sent_to_refused_ms": percentiles(phase.refused),
        "refused_without_retry_after": phase.without_retry_after,
        "retry_after_s": [min(phase.retry_after, default=0), max(phase.retry_after, default=0)],
        "last_refusal_s": round(phase.last_refusal, 3),
        "late_ms": percentiles(phase.late),
    }


def run_client(arguments: argparse.Namespace) -> dict[str, Any]:
    """The phases, in the process of the client."""
    client = Client(arguments.port, message(arguments.timeout))
    client.closed(2.0, 4)
    alone = Client(arguments.port, message(30.0)).closed(3.0, 1)
    capacity = Client(arguments.port, message(30.0)).closed(5.0, 32)
    over = client.open(arguments.times * capacity, arguments.seconds, seed=1)
    after = client.open(0.3 * capacity, RECOVERY_S, seed=2)
    return {
        "one_at_a_time_ms": round(1e3 / alone, 2),
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(over.sent / arguments.seconds, 1),
        "connections": client.connections,
        "overload": summary(over, arguments.timeout),
        "recovery": summary(after, arguments.timeout),
    }


def watch(tree: Tree, child: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The server's memory while the client runs, in MiB: before, at its most, and at the end."""
    sizes = [tree.resident_bytes()]
    while child.poll() is None:
        time.sleep(0.5)
        sizes.append(tree.resident_bytes())
    half = sizes[len(sizes) // 2]
    found = {"start": sizes[0], "half_way": half, "most": max(sizes), "end": sizes[-1]}
    return {name: round(size / 2**20, 1) for name, size in found.items()}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Server and client, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        repository, log, port = arguments.repository, Path(folder) / "server.log", free_port()
        if not (repository / MODEL / "1").is_dir():
            bnfold.build_bundle(resnet8(WIDTHS), repository / MODEL / "1", output_kind="logits")
        serve = [sys.executable, "-m", "bnfold", "serve", str(repository), "--port", str(port), "--device", "cpu"]
        with started(serve, {"OMP_NUM_THREADS": "1"}, ROOT, port, log) as tree:
            result = Path(folder) / "client.json"
            child = subprocess.Popen(
                [
                    sys.executable, __file__, "--client", "--port", str(port), "-o", str(result),
                    "--seconds", str(arguments.seconds), "--times", str(arguments.times),
                    "--timeout", str(arguments.timeout),
                ]
            )  # fmt: skip
            memory = watch(tree, child)
            cpu = tree.cpu_seconds()
            found = json.loads(result.read_text()) if child.returncode == 0 else {}
        tracebacks = log.read_text().count("Traceback")
    return {
        "timeout_s": arguments.timeout,
        **found,
        "memory_mib": memory,
        "server_cpu_s": cpu,
        "tracebacks": tracebacks,
    }


def main() -> int:
    """Run it, print it, and write it where it was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--times", type=float, default=5.0, help="the capacity")
    parser.add_argument("--timeout", type=float, default=0.5, help="seconds that each request allows")
    parser.add_argument(
        "--repository", type=Path, default=ROOT / "build" / "overload", help="where the bundle is built"
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client:
        document = run_client(arguments)
    else:
        document = {
            "machine": describe(None, ()),
            "load": "the client shares the cores, as did other programs where load_average is above 4",
            "load_average": round(os.getloadavg()[1], 1),
            "command": f"overload.py --seconds {arguments.seconds:g} --times {arguments.times:g}",
            "n": 1,
            **measure(arguments),
        }  # fmt: skip
    text = json.dumps(document, indent=1) + "\n"
    if arguments.output is not None:
        with contextlib.suppress(FileExistsError):
            arguments.output.parent.mkdir(parents=True)
        arguments.output.write_text(text)
    if not arguments.client:
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
