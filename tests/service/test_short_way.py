"""The short way of an inference: the same answers, counts and log as through ASGI, and nothing kept of what has ended.

A query has no meaning for inference and keeps a request off the short way, so each request is sent twice.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from service_runs import PATIENCE, Running, running, until

from service.http.express import Course
from service.settings import Settings

LENGTH = "Inference-Header-Content-Length"
ALIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ANSWER_WITH_NAMES = {"x-request-id", "date"}
ROUNDS = 150

Answer = tuple[int, list[tuple[str, str]], bytes]


def tensors(model: str, rows: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows)
    if model == "pair":
        return {name: generator.random((rows, 4), np.float32) for name in ("left", "right")}
    return {"input": generator.random((rows, 1, 8, 8) if model == "digits" else (rows, 1, 2, 3), np.float32)}


def json_body(model: str, rows: int = 1, **more: Any) -> bytes:
    entries = [
        {"name": name, "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
        for name, x in tensors(model, rows).items()
    ]
    return json.dumps({"inputs": entries, **more}).encode()


def binary_body(model: str, rows: int = 1, *, fill: float | None = None, **more: Any) -> tuple[bytes, int]:
    arrays = tensors(model, rows)
    if fill is not None:
        arrays = {name: np.full_like(x, fill) for name, x in arrays.items()}
    entries = [
        {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        for name, x in arrays.items()
    ]
    head = json.dumps({"inputs": entries, **more}).encode()
    return head + b"".join(x.tobytes() for x in arrays.values()), len(head)


@dataclass(frozen=True)
class Call:
    """One request. cut: where it is cut in two pieces. trailers: those of a chunked body, None for one of a length."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    version: str = "1.1"
    cut: int = 0
    trailers: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        """Short enough to be read."""
        return repr(self.write()[:2000])

    def write(self, query: str = "") -> bytes:
        lines = [f"{self.method} {self.path}{query} HTTP/{self.version}", "Host: x"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        body = self.body
        if self.trailers is None:
            lines.append(f"Content-Length: {len(body)}")
        else:
            lines.append("Transfer-Encoding: chunked")
            pieces = [piece for piece in (body[:7], body[7:100], body[100:]) if piece]
            body = b"".join(b"%x;extension=1\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n"
            body += "".join(f"{trailer}\r\n" for trailer in self.trailers).encode() + b"\r\n"
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Client:
    """A connection that reads one answer after another."""

    def __init__(self, server: Running) -> None:
        self.stream = socket.create_connection((server.host, server.port), timeout=PATIENCE)
        self._file = self.stream.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.stream.close()

    def send(self, data: bytes) -> None:
        self.stream.sendall(data)

    def read(self) -> Answer | None:
        """One answer, None at the end of the connection."""
        line = self._file.readline()
        if not line:
            return None
        headers: list[tuple[str, str]] = []
        while (header := self._file.readline().strip()) != b"":
            name, _, value = header.decode().partition(": ")
            headers.append((name, value))
        return int(line.split()[1]), headers, self._file.read(int(dict(headers)["content-length"]))


@pytest.fixture(scope="module")
def here(repository: Path) -> Iterator[Running]:
    with running(Settings(repository=repository, device="cpu", port=0, threads=1, max_body_bytes=2**17)) as started:
        yield started


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of the requests that took the short way."""
    found: list[str] = []
    begin = Course.begin

    def note(course: Course) -> None:
        found.append(course.target.model)
        begin(course)

    monkeypatch.setattr(Course, "begin", note)
    return found


def counts(server: Running) -> dict[Any, float]:
    """What the metrics count, without times."""
    wanted = ("_success_total", "_failure_total", "_inference_count_total", "_exec_count_total")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in server.hub.metrics.registry.collect()
        for sample in metric.samples
        if sample.name.endswith(wanted)
    }


class Lines(logging.Handler):
    """The log lines of the server, without what differs from request to request."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((record.levelname, record.getMessage().replace("infer?way=long", "infer")))


@contextlib.contextmanager
def log() -> Iterator[list[tuple[str, str]]]:
    lines = Lines()
    logging.getLogger("service").addHandler(lines)
    try:
        yield lines.found
    finally:
        logging.getLogger("service").removeHandler(lines)


@dataclass(frozen=True)
class Seen:
    """All that a request causes."""

    answers: list[Answer | None]
    counted: dict[Any, float]
    logged: list[tuple[str, str]]


def observe(server: Running, call: Call, query: str) -> Seen:
    before = counts(server)
    data = call.write(query)
    cut = min(call.cut, len(data))
    with log() as lines, Client(server) as client:
        client.send(data[:cut])
        client.send(data[cut:])
        found = [client.read()]
        if found[0] is not None and ("connection", "close") not in found[0][1]:
            client.send(ALIVE)
            found.append(client.read())
        else:
            found.append(client.read())
    sent_id = [value for name, value in call.headers if name.lower() == "x-request-id"]
    counted = {key: value - before.get(key, 0.0) for key, value in counts(server).items() if value != before.get(key)}
    return Seen([_plain(answer, sent_id) for answer in found], counted, lines)


def differences(short: Seen, long: Seen) -> list[str]:
    """Where two requests were seen to differ, in a few lines."""
    pairs = [*zip(short.answers, long.answers, strict=True), (short.counted, long.counted), (short.logged, long.logged)]
    return [f"{one!r:.1500} and {other!r:.1500}" for one, other in pairs if one != other]


def _plain(answer: Answer | None, sent_id: Sequence[str]) -> Answer | None:
    """An answer without its date, and without the id that the server made for it."""
    if answer is None:
        return None
    status, headers, body = answer
    kept = [(name, value if name not in ANSWER_WITH_NAMES or value in sent_id else "...") for name, value in headers]
    return status, kept, body


# ----------------------------------------------------------------------------------------------- the same both ways

MODELS = ("digits", "pair", "free", "mixing")
PATHS = [
    *(f"/v2/models/{model}/infer" for model in (*MODELS, "unbuilt", "nobody", "d%69gits", "digits%3F", "%C3%A4")),
    *(f"/v2/models/digits/versions/{version}/infer" for version in ("1", "2", "01", "x", "")),
    "/v2/models//infer", "/v2/models/a/b/infer",
]  # fmt: skip
MORE: list[dict[str, Any]] = [
    {}, {"id": "seven"}, {"id": ""}, {"id": 7}, {"outputs": []}, {"outputs": [{"name": "nothing"}]},
    {"parameters": {"binary_data_output": True}}, {"parameters": {"priority": 1}}, {"parameters": {"priority": -1}},
    {"parameters": {"timeout": 20_000_000}}, {"parameters": {"timeout": "soon"}}, {"parameters": 3},
    {"parameters": {"sequence_id": 5}}, {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]},
    {"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]},
    {"outputs": [{"name": "doubled"}, {"name": "total", "parameters": {"binary_data": True}}]},
]  # fmt: skip
HEADERS: list[tuple[str, str]] = [
    ("Accept-Encoding", "gzip"), ("Accept-Encoding", "identity;q=0, deflate"), ("Accept-Encoding", "*;q=0"),
    ("Connection", "close"), ("Connection", "keep-alive"), ("X-Request-Id", "mine-1"), ("X-Request-Id", "not sane"),
    ("Content-Type", "application/json"), ("Content-Encoding", "identity"), ("Content-Encoding", "br"),
    ("X-API-Key", "nobody-asks-for-one"), ("Upgrade", "h2c"), ("Cookie", "a=b"),
    (LENGTH, "0"), (LENGTH, "-1"), (LENGTH, "+5"), (LENGTH, "9" * 30), (LENGTH, ""), (LENGTH, "12"),
]  # fmt: skip
TRAILERS = (None, None, (), ("X-Request-Id: trailer", f"{LENGTH}: 3"))


@some.composite
def bodies(draw: Callable[..., Any], model: str) -> tuple[bytes, list[tuple[str, str]]]:
    """A body and the headers that belong to it."""
    rows, more = draw(some.sampled_from((1, 1, 2, 300))), draw(some.sampled_from(MORE))
    match draw(some.sampled_from(("json", "binary", "raw", "nan", "packed", "bytes"))):
        case "json":
            body, headers = json_body(model, rows, **more), []
        case "binary":
            body, split = binary_body(model, rows, **more)
            headers = [(LENGTH, str(split))]
        case "nan":
            body, split = binary_body(model, rows, fill=np.nan, **more)
            headers = [(LENGTH, str(split))]
        case "raw":
            body, headers = next(iter(tensors(model, rows).values())).tobytes(), [(LENGTH, "0")]
        case "packed":
            body, headers = gzip.compress(json_body(model, rows, **more), mtime=0), [("Content-Encoding", "gzip")]
        case _:
            body, headers = draw(some.binary(max_size=40)), []
    if draw(some.integers(0, 4)) == 0:  # damaged
        at = draw(some.integers(0, max(0, len(body) - 1)))
        body = body[:at] + draw(some.binary(max_size=2)) + body[at + draw(some.integers(0, 2)) :]
    return body, headers


@some.composite
def calls(draw: Callable[..., Any]) -> Call:
    model = draw(some.sampled_from(MODELS))
    body, headers = draw(bodies(model))
    more = draw(some.lists(some.sampled_from(HEADERS), max_size=2))
    path = f"/v2/models/{model}/infer" if draw(some.integers(0, 3)) else draw(some.sampled_from(PATHS))
    return Call(
        path,
        body,
        tuple(draw(some.permutations([*headers, *more]))),
        draw(some.sampled_from(("POST",) * 8 + ("PUT", "GET"))),
        draw(some.sampled_from(("1.1",) * 8 + ("1.0",))),
        draw(some.sampled_from((0, 0, 20, 150, 400))),
        draw(some.sampled_from(TRAILERS)),
    )


def test_both_ways_give_the_same_answers_counts_and_log(here: Running, begun: list[str]):
    statuses: set[int] = set()

    @settings(max_examples=ROUNDS, deadline=None, database=None)
    @given(calls())
    def compare(call: Call) -> None:
        short, long = observe(here, call, ""), observe(here, call, "?way=long")
        assert differences(short, long) == []
        statuses.update(answer[0] for answer in short.answers if answer is not None)

    compare()
    assert {200, 400, 404} <= statuses
    assert ROUNDS // 4 < len(begun) < ROUNDS  # never the second of two
    assert all(engine.in_flight == 0 for engine in here.hub.repository.engines)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("ranks", [True, False])
def test_an_answer_is_compressed_where_the_server_may(digits_only: Path, compress: bool, ranks: bool):
    more = {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]} if ranks else {}
    accept = (("Accept-Encoding", "gzip, identity;q=0"),)
    call = Call("/v2/models/digits/infer", json_body("digits", 20, **more), accept)
    with running(
        Settings(repository=digits_only, device="cpu", port=0, threads=1, compress_answers=compress)
    ) as server:
        short, long = observe(server, call, ""), observe(server, call, "?way=long")
    assert differences(short, long) == []
    assert short.answers[0] is not None
    assert (("content-encoding", "gzip") in short.answers[0][1]) == compress


def test_the_comparison_sees_another_answer_count_or_line_of_the_log(here: Running):
    call = Call("/v2/models/digits/infer", json_body("digits"))
    seen = observe(here, call, "")
    assert seen != observe(here, replace(call, body=json_body("digits", 2)), "")
    assert seen != observe(here, replace(call, headers=(("Connection", "close"),)), "")
    assert seen != observe(here, replace(call, path="/v2/models/nobody/infer"), "")
    with log() as lines:
        logging.getLogger("service.http.express").error("a line")
    assert lines == [("ERROR", "a line")]


def test_what_nobody_foresaw_is_answered_and_logged_alike(here: Running, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr("service.http.express.parse_request", broken)
    monkeypatch.setattr("service.http.infer.parse_request", broken)
    call = Call("/v2/models/digits/versions/1/infer", json_body("digits"))
    short, long = observe(here, call, ""), observe(here, call, "?way=long")
    assert short == long
    assert short.answers[0] is not None
    assert short.answers[0][0] == 500
    assert len(short.logged) == 2


# ------------------------------------------------------------------------------------ requests on one connection


def infer(body: bytes, *headers: tuple[str, str]) -> bytes:
    return Call("/v2/models/digits/infer", body, headers).write()


GOOD, BAD = infer(json_body("digits")), infer(b"{")


@pytest.mark.parametrize("query", ["", "?way=long"])
@pytest.mark.parametrize(
    "rest",
    [b"garbage\r\n\r\n", b"\x16\x03\x01" * 9, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n"],
    ids=["words", "TLS", "headers"],
)
def test_what_cannot_be_read_is_refused_after_the_answers_to_what_came_before(here: Running, query: str, rest: bytes):
    whole = Call("/v2/models/digits/infer", json_body("digits", id="whole")).write(query)
    with Client(here) as client:
        client.send(whole + whole + rest)
        found = [client.read() for _ in range(4)]
    assert [answer and answer[0] for answer in found[:2]] == [200, 200]
    assert all(json.loads(answer[2])["id"] == "whole" for answer in found[:2] if answer is not None)
    assert found[2] is not None
    assert found[2][0] in (400, 431)
    assert found[3] is None


def test_more_bytes_than_the_content_length_do_not_cost_the_request_its_answer(here: Running):
    with Client(here) as client:
        client.send(GOOD + b"\0\0\0\0")
        first, second = client.read(), client.read()
    assert (first and first[0], second and second[0]) == (200, 400)


def test_a_trailer_is_no_header(here: Running):
    call = Call("/v2/models/digits/infer", json_body("digits"), trailers=(f"{LENGTH}: 3", "X-Request-Id: trailer"))
    for query in ("", "?way=long"):
        with Client(here) as client:
            client.send(call.write(query))
            found = client.read()
        assert found is not None
        assert found[0] == 200
        assert dict(found[1])["x-request-id"] != "trailer"


def test_pipelined_requests_are_answered_in_order_whichever_way_each_takes(here: Running):
    kinds = [Call("/v2/models/pair/infer", json_body("pair", rows, id=str(rows))) for rows in range(1, 9)]
    data = b"".join(call.write("?x" if at % 3 == 1 else "") + BAD for at, call in enumerate(kinds))
    with Client(here) as client:
        client.send(data)
        found = [client.read() for _ in range(2 * len(kinds))]
    assert [answer and answer[0] for answer in found] == [200, 400] * len(kinds)
    identities = [json.loads(answer[2])["id"] for answer in found[::2] if answer is not None]
    assert identities == [str(rows) for rows in range(1, 9)]


def test_addresses_that_strangers_make_up_do_not_fill_the_memory(here: Running):
    with Client(here) as client:
        for number in range(1200):
            client.send(Call(f"/v2/models/{number}{'x' * (number % 2 * 4000)}/infer", b"").write())
            answer = client.read()
            assert answer is not None
            assert answer[0] == 404
        connection = next(each for each in state_of(here).connections if each.client == client.stream.getsockname())
        kept = connection.targets
    assert 0 < len(kept) <= 1024
    assert sum(map(len, kept)) < 2**20


# --------------------------------------------------------------------------- nothing is kept of what has ended


def is_free(server: Running) -> bool:
    """Whether nothing is held: no engine, no memory, no place in the queue."""
    hub = server.hub
    return not any(engine.in_flight for engine in hub.repository.engines) and not hub.budget._used


@pytest.mark.parametrize("cut", [30, 100, 300, 10**6])
def test_a_client_that_leaves_at_any_stage_leaves_nothing_behind(here: Running, cut: int):
    for call in (
        GOOD,
        BAD,
        infer(json_body("digits", 200), ("Accept-Encoding", "gzip")),
        infer(json_body("digits", 2, outputs=[{"name": "logits", "parameters": {"classification": 3}}])),
        Call("/v2/models/digits/infer", json_body("digits"), trailers=()).write(),
        GOOD + GOOD + BAD + GOOD,
    ):
        for _ in range(5):
            with Client(here) as client:
                client.send(call[:cut])
    until(lambda: is_free(here))


@pytest.mark.parametrize("query", ["", "?way=long"])
def test_a_client_that_resets_amid_pipelined_requests_is_no_error_of_the_server(
    here: Running, caplog: pytest.LogCaptureFixture, query: str
):
    data = Call("/v2/models/digits/infer", json_body("digits")).write(query) * 5
    for wait in range(100):
        with Client(here) as client:
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.send(data)
            time.sleep(wait * 5e-5)
    until(lambda: is_free(here))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_requests_that_fail_at_once_on_a_connection_that_closes_are_given_back_once(repository: Path):
    with running(Settings(repository=repository, device="cpu", port=0, threads=1)) as server, Client(server) as client:
        client.send(ALIVE.replace(b"Connection: close\r\n", b""))
        assert client.read() is not None
        server.hub.lifecycle.drain()  # from now on the first answer closes its connection
        client.send(BAD * 8)
        assert client.read() is not None
        assert client.read() is None
        until(lambda: not any(engine.in_flight for engine in server.hub.repository.engines))


def test_a_broken_body_behind_an_answer_that_is_not_read_is_given_back(repository: Path):
    """The connection closes, but does not end while there is something to send: longer than a body is waited for."""
    quick = Settings(repository=repository, device="cpu", port=0, threads=1, write_timeout=2.5)
    with running(quick) as server, socket.socket() as stream:
        stream.settimeout(PATIENCE)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.connect((server.host, server.port))
        engine = server.hub.repository.find("digits")
        connection = until_connected(server)
        fill(server, connection, stream)
        broken = Call("/v2/models/digits/infer", json_body("digits"), trailers=()).write()
        stream.sendall(broken[: broken.index(b"\r\n\r\n") + 4] + b"5\r\nabcde\r\nno size\r\n")
        until(lambda: connection.transport.is_closing())
        assert engine.in_flight == 1  # it is not over yet: else this test shows nothing
        until(lambda: engine.in_flight == 0)


def until_connected(server: Running) -> Any:
    """The server's side of the only connection."""
    connections = state_of(server).connections
    until(lambda: len(connections) == 1)
    return next(iter(connections))


def state_of(server: Running) -> Any:
    """What uvicorn knows of all connections."""
    return server.hub.metrics._connections.__closure__[0].cell_contents.server_state


def fill(server: Running, connection: Any, stream: socket.socket) -> None:
    """Ask until the client's side takes no more, and a little waits here; less than what makes the server pause."""
    state = state_of(server)
    for _ in range(1000):
        before = state.total_requests
        stream.sendall(infer(json_body("digits", 200)))
        until(lambda before=before: state.total_requests > before)
        for _ in range(2):  # rounds of the loop: what is written at the end of one is written
            over = threading.Event()
            connection.loop.call_soon_threadsafe(over.set)
            assert over.wait(PATIENCE)
        if connection.transport.get_write_buffer_size():
            return
    raise AssertionError("the client's buffer has no end")
