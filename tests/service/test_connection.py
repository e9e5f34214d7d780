"""Connections that want too much: slow readers, idle ones, too many of them, long heads, and JSON of many lists."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_runs import PATIENCE, Running, running, until

from service.http.bounds import Bounds
from service.settings import Settings

SIDE = 1448  # pixels; the answer then has 16 MiB, which no socket buffer takes
INPUT = json.dumps(
    {
        "inputs": [
            {
                "name": "input",
                "shape": [1, 1, SIDE, SIDE],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 4 * SIDE**2},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
).encode()


def large(*more: str) -> bytes:
    """A request with a large answer."""
    lines = [
        "POST /v2/models/free/infer HTTP/1.1",
        "Host: x",
        f"Inference-Header-Content-Length: {len(INPUT)}",
        f"Content-Length: {len(INPUT) + 4 * SIDE**2}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + INPUT + bytes(4 * SIDE**2)


@pytest.fixture(scope="module")
def tight(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("tight")
    for name in ("free", "digits"):
        (root / name).symlink_to(repository / name)
    settings = Settings(
        repository=root, device="cpu", port=0, threads=1, max_body_bytes=10 * 2**20, max_memory_bytes=24 * 2**20,
        write_timeout=0.5, keep_alive_timeout=0.5, max_connections=4,
    )  # fmt: skip
    with running(settings) as started:
        yield started


@contextlib.contextmanager
def connect(server: Running) -> Iterator[socket.socket]:
    """A client with a small buffer."""
    with socket.socket() as stream:
        stream.settimeout(PATIENCE)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        stream.connect((server.host, server.port))
        yield stream


def read_to_the_end(stream: socket.socket) -> bytes:
    """All that comes until the server closes or cuts the connection."""
    found = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := stream.recv(65536):
            found += chunk
    return bytes(found)


def is_open(server: Running) -> bool:
    """Whether the server takes a connection and answers."""
    try:
        return httpx.get(f"{server.url}/v2/health/live", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False


def count(server: Running, reason: str) -> float:
    labels = {"model": "", "version": "", "reason": reason}
    registry = server.hub.metrics.registry
    return registry.get_sample_value("bnfold_inference_request_failure_total", labels) or 0.0


@pytest.mark.parametrize("more", [(), ("Connection: close",)])
def test_a_client_that_never_reads_is_cut(tight: Running, more: tuple[str, ...]):
    before = count(tight, "slow_client")
    with connect(tight) as stream:
        stream.sendall(large(*more))
        until(lambda: count(tight, "slow_client") == before + 1)
        assert len(read_to_the_end(stream)) < 8 * SIDE**2
    until(lambda: is_open(tight))


def test_a_client_that_reads_gets_all_of_a_large_answer(tight: Running):
    before = count(tight, "slow_client")
    with connect(tight) as stream:
        stream.sendall(large("Connection: close"))
        assert len(read_to_the_end(stream)) > 8 * SIDE**2
    assert count(tight, "slow_client") == before


def test_answers_that_nobody_reads_are_bounded_all_together(repository: Path, tmp_path: Path):
    (tmp_path / "free").symlink_to(repository / "free")
    settings = Settings(
        repository=tmp_path, device="cpu", port=0, threads=1, max_body_bytes=10 * 2**20, max_memory_bytes=24 * 2**20
    )
    with running(settings) as server, contextlib.ExitStack() as stack:
        for _ in range(4):  # the first may keep what it holds for 20 s
            stack.enter_context(connect(server)).sendall(large())
            until(lambda: server.hub.batcher is not None and is_open(server))
        until(lambda: count(server, "slow_client") >= 1)


def test_answers_that_pile_up_unread_on_one_connection_are_cut_too(tight: Running):
    before = count(tight, "slow_client")
    with connect(tight) as stream:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        stream.sendall(request * 400)
        until(lambda: count(tight, "slow_client") == before + 1)


@pytest.mark.parametrize("idle", [b"", b"\r\n", b"\r\n\r\n\r\n"])
def test_an_idle_connection_is_closed_and_empty_lines_do_not_keep_it(tight: Running, idle: bytes):
    with connect(tight) as stream:
        stream.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stream.recv(65536).startswith(b"HTTP/1.1 200 ")
        stream.sendall(idle)
        assert stream.recv(65536) == b""


def test_a_connection_too_many_is_told_so_at_once_and_counted(tight: Running):
    until(lambda: not tight_connections(tight))
    before = count(tight, "busy")
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(tight)) for _ in range(4)]
        until(lambda: tight_connections(tight) == 4)
        with connect(tight) as stream:  # it says nothing
            answer = read_to_the_end(stream)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in answer
        assert list(json.loads(answer.partition(b"\r\n\r\n")[2])) == ["error"]
        with connect(tight) as stream:  # it sends a large body before it reads
            with contextlib.suppress(ConnectionError):
                stream.sendall(large())
            assert read_to_the_end(stream).startswith(b"HTTP/1.1 503 ")
        assert count(tight, "busy") == before + 2
        held[0].sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200 ")
    until(lambda: is_open(tight))


def tight_connections(server: Running) -> int:
    text = httpx_free_page(server)
    (line,) = [line for line in text.splitlines() if line.startswith("bnfold_connections")]
    return int(float(line.split()[-1]))


def httpx_free_page(server: Running) -> str:
    """The page of metrics without a connection, which would count."""
    return server.hub.metrics.page().decode()


def test_many_beyond_the_bound_do_not_take_all_descriptors(tight: Running):
    with contextlib.ExitStack() as stack:
        for _ in range(4 + 16 + 40):
            stack.enter_context(connect(tight))
        until(lambda: tight_connections(tight) == 4)
    until(lambda: is_open(tight))


def test_an_answer_before_the_end_of_a_body_is_followed_by_an_end_and_no_reset(server: Running):
    head = b"PUT /v2/health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 4000\r\n\r\n"
    with connect(server) as stream:
        stream.sendall(head)
        answer = b""
        while not answer.endswith(b"}"):
            answer += stream.recv(65536)
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nconnection: close\r\n" in answer
        for _ in range(2):  # to a connection that was closed the first is a reset, and the second a broken pipe
            stream.sendall(b"x" * 2000)
            assert stream.recv(65536) == b""


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /" + b"a" * 8100 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 99 + b"\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431),
    ],
)
def test_a_long_address_and_many_headers_are_refused(tight: Running, head: bytes, status: int):
    until(lambda: is_open(tight))
    with connect(tight) as stream:
        stream.sendall(head)
        assert stream.recv(65536).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(("more", "status"), [(96, 200), (97, 200), (98, 431)])
def test_many_headers_are_refused_on_inference_too(tight: Running, more: int, status: int):
    until(lambda: is_open(tight))
    with connect(tight) as stream:
        head = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n"
        raw = b"Inference-Header-Content-Length: 0\r\n"
        stream.sendall(head + raw + b"A: b\r\n" * more + b"\r\n" + bytes(256))
        assert stream.recv(65536).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("[]," * 140_000, 413),
        ("[1]," * 140_000, 413),
        ("{}," * 140_000, 413),
        ("1," * 1_100_000, 413),
        ('{"a":1' + ',"a":1' * 600_000 + "},", 413),
        ("0," * 200_000, 400),
        ("[" * 1000 + "]" * 1000 + ",", 400),
        ("[" * 50_000 + "]" * 50_000 + ",", 400),
    ],
    ids=["empty lists", "lists of one", "objects", "numbers", "members", "few enough numbers", "deep", "too deep"],
)
@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/models/digits/predict"])
def test_json_of_many_values_is_refused_before_it_is_parsed(server: Running, path: str, data: str, status: int):
    inputs = f'[{{"name":"input","shape":[1,1,8,8],"datatype":"FP32","data":[{data}0]}}]'
    body = f'{{"inputs":{inputs},"instances":[{data}0]}}'
    answer = httpx.post(f"{server.url}{path}", content=body.encode(), timeout=PATIENCE)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert len(answer.text) < 1000


def test_nested_and_flat_data_of_the_largest_request_are_taken(server: Running):
    rows = [[[[0.5] * 8] * 8]] * 1024
    answer = httpx.post(f"{server.url}/models/digits/predict", json={"instances": rows}, timeout=PATIENCE)
    assert answer.status_code == 200
    flat = {"inputs": [{"name": "input", "shape": [1024, 1, 8, 8], "datatype": "FP32", "data": [0.25] * 65536}]}
    assert httpx.post(f"{server.url}/v2/models/digits/infer", json=flat, timeout=PATIENCE).status_code == 200


def test_connections_are_bounded_by_the_files_that_may_be_open():
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    bounds = Bounds.of(Settings(max_connections=2**20), lambda _: None)
    assert bounds.most_connections + bounds.most_connections // 8 < hard or hard == resource.RLIM_INFINITY
    assert Bounds.of(Settings(max_connections=3), lambda _: None).most_connections == 3
