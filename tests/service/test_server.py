"""The process: start, drain, slow clients, and what a person sees when it cannot start."""

from __future__ import annotations

import json
import logging
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_faults import break_channel, copy_version
from service_runs import PATIENCE, ROOT, Running, process, running, until

from bnfold.errors import BnfoldError
from service.processes.server import bind_socket
from service.settings import Settings

X = np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)
BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": X.ravel().tolist()}]}
).encode()
HEAD = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response with a Content-Length."""
    found = b""
    while b"\r\n\r\n" not in found:
        chunk = connection.recv(65536)
        assert chunk, found
        found += chunk
    head, _, body = found.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return int(lines[0].split()[1]), headers, body


def test_a_signal_finishes_what_was_accepted_and_exits_0(digits_only: Path, tmp_path: Path):
    with (
        process(digits_only, tmp_path, BNFOLD_DRAIN_DELAY="4") as server,
        ThreadPoolExecutor(8) as pool,
        ExitStack() as stack,
    ):
        # Made before the signal: each takes 25 ms, of the little time in which the server is still open.
        probe, *clients = [stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE)) for _ in range(9)]
        halves = [connect(server.port) for _ in range(4)]
        for connection in halves:
            connection.sendall(HEAD + BODY[:100])
        until(lambda: probe.get("/v2/health/ready").status_code == 200)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: probe.get("/v2/health/ready").status_code == 503)
        # Not ready, but still open: a balancer may not have noticed yet.
        late = [pool.submit(client.post, "/v2/models/digits/infer", content=BODY) for client in clients]
        ready = probe.get("/v2/health/ready")
        assert ready.json()["error"] == "the server is stopping"
        assert ready.headers["connection"] == "close"
        assert probe.get("/v2/models/digits/ready").status_code == 503
        assert probe.get("/v2/health/live").status_code == 200
        assert [each.result(PATIENCE).status_code for each in late] == [200] * 8
        for connection in halves:
            connection.sendall(BODY[100:])
            status, headers, body = read_answer(connection)
            assert status == 200, body
            assert headers["bnfold-model-version"] == "1"
            connection.close()
        assert server.wait() == 0, server.text()
        assert "Traceback" not in server.text()
        with pytest.raises(OSError, match="refused"):
            connect(server.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_body_that_is_on_its_way_when_the_socket_closes_is_still_answered(
    digits_only: Path, tmp_path: Path, number: signal.Signals
):
    with process(digits_only, tmp_path, BNFOLD_DRAIN_DELAY="0") as server, connect(server.port) as connection:
        connection.sendall(HEAD + BODY[:100])
        until(lambda: httpx.get(f"{server.url}/v2/health/live").status_code == 200)
        server.child.send_signal(number)
        until(lambda: not _accepts(server.port))
        connection.sendall(BODY[100:])
        assert read_answer(connection)[0] == 200
        assert server.wait() == 0, server.text()


def test_a_stop_under_load_loses_no_accepted_request(digits_only: Path):
    stop = threading.Event()

    def hammer(url: str) -> list[int]:
        found = []
        with httpx.Client(base_url=url, timeout=PATIENCE) as client:
            while not stop.is_set():
                try:
                    found.append(client.post("/v2/models/digits/infer", content=BODY).status_code)
                except httpx.TransportError:
                    # Not accepted: refused, or reset in the kernel's queue when the socket closed.
                    break
        return found

    with ThreadPoolExecutor(8) as pool:
        with running(Settings(repository=digits_only, device="cpu", port=0, threads=2)) as server:
            tasks = [pool.submit(hammer, server.url) for _ in range(8)]
            until(lambda: _answered(server) > 200)
        stop.set()
        found = [status for task in tasks for status in task.result(PATIENCE)]
    assert set(found) <= {200, 503}
    assert found.count(200) == _answered(server)  # what the server answered has arrived, every one


def test_a_signal_while_models_are_still_loading_ends_with_0(digits_only: Path):
    script = (
        "import os, pathlib, signal, service.processes.server as server\n"
        "from service.settings import Settings\n"
        "server.create_app = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"server.serve(Settings(repository=pathlib.Path({str(digits_only)!r}), port=0))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].endswith("stopped")


def test_a_second_signal_ends_at_once(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path, BNFOLD_DRAIN_DELAY="600") as server:
        server.child.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/v2/health/ready").status_code == 503)
        server.child.send_signal(signal.SIGINT)
        assert server.wait() == 0, server.text()


def test_the_drain_ends_though_a_client_holds_on(digits_only: Path, tmp_path: Path):
    with (
        process(digits_only, tmp_path, BNFOLD_DRAIN_DELAY="0", BNFOLD_DRAIN_TIMEOUT="1") as server,
        connect(server.port) as idle,
        connect(server.port) as half,
    ):
        half.sendall(HEAD + BODY[:100])
        idle.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle)[0] == 200
        server.child.send_signal(signal.SIGTERM)
        assert server.wait() == 0, server.text()


def test_it_says_where_it_serves_what_and_on_which_provider(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path) as server:
        assert "model digits/1 is proven and served (CPUExecutionProvider" in server.text()
        assert f"serving on {server.url}" in server.text()
        httpx.post(f"{server.url}/v2/models/digits/infer", content=BODY)
        assert "infer" not in server.text()  # no access log


def run_serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bnfold", "serve", *arguments, "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def check_one_sentence(run: subprocess.CompletedProcess[str], *named: str) -> None:
    assert run.returncode == 2, run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("bnfold: ")
    for word in named:
        assert word in last
    assert "Traceback" not in run.stderr


def test_a_port_in_use_is_one_sentence_and_exit_2(digits_only: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check_one_sentence(run_serve(str(digits_only), "--port", port), f"127.0.0.1:{port}", "--port")


def test_a_refused_version_is_named_with_its_tensor_and_exit_2(repository: Path, tmp_path: Path):
    tensor = break_channel(copy_version(repository / "digits" / "1", tmp_path / "digits" / "1"))
    check_one_sentence(run_serve(str(tmp_path), "--port", "0"), "digits/1 was refused", tensor)


def test_an_empty_repository_is_one_sentence_and_exit_2(tmp_path: Path):
    check_one_sentence(run_serve(str(tmp_path), "--port", "0"), str(tmp_path), "<name>/<version>/")


@pytest.mark.parametrize("host", ["256.0.0.1", "no-such-host.invalid", "203.0.113.7"])
def test_an_address_of_somebody_else_is_one_sentence(host: str):
    with pytest.raises(BnfoldError, match="cannot listen") as refusal:
        bind_socket(host, 0)
    assert "\n" not in str(refusal.value)


def test_an_ipv6_address_works_where_there_is_one():
    try:
        with bind_socket("[::1]", 0) as listener:
            assert listener.getsockname()[0] == "::1"
    except BnfoldError:
        pytest.skip("no IPv6 here")


# ---------------------------------------------------------------------------------------------------- slow clients


@pytest.fixture(scope="module")
def impatient(digits_only: Path) -> Iterator[Running]:
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=1, header_timeout=0.75, body_timeout=0.75,
        max_body_bytes=2**20, max_json_bytes=2**20,
    )  # fmt: skip
    with running(settings) as started:
        yield started


@pytest.mark.parametrize("sent", [b"", b"POST /v2/models", HEAD[:-2]])
def test_a_head_that_does_not_come_is_not_waited_for(impatient: Running, sent: bytes):
    with connect(impatient.port) as connection:
        connection.sendall(sent)
        assert read_all(connection) == b""


def test_a_second_head_that_does_not_come_is_not_waited_for_either(impatient: Running):
    with connect(impatient.port) as connection:
        connection.sendall(HEAD + BODY)
        assert read_answer(connection)[0] == 200
        connection.sendall(HEAD[:20])
        assert read_all(connection) == b""


def test_a_connection_may_rest_between_two_requests_longer_than_a_head_may_take(impatient: Running):
    with connect(impatient.port) as connection:
        for _ in range(2):
            connection.sendall(HEAD + BODY)
            assert read_answer(connection)[0] == 200
            time.sleep(1.0)


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/predict"])
def test_a_body_that_does_not_come_is_408(impatient: Running, path: str):
    with connect(impatient.port) as connection:
        connection.sendall(HEAD.replace(b"/v2/models/digits/infer", path.encode()) + BODY[:100])
        status, headers, body = read_answer(connection)
        assert status == 408
        assert list(json.loads(body)) == ["error"]
        assert headers["connection"] == "close"
        assert read_all(connection) == b""


def test_an_early_answer_arrives_though_the_client_still_sends(impatient: Running):
    size = 8 * 2**20
    with connect(impatient.port) as connection:
        connection.sendall(HEAD.replace(str(len(BODY)).encode(), str(size).encode()))
        connection.sendall(bytes(size))
        status, _, body = read_answer(connection)
        assert status == 413
        assert list(json.loads(body)) == ["error"]
        connection.sendall(HEAD + BODY)  # and the connection is still good
        assert read_answer(connection)[0] == 200


def test_a_large_body_is_refused_before_it_is_sent(impatient: Running):
    head = HEAD.replace(str(len(BODY)).encode(), b"999999999")
    with connect(impatient.port) as connection:
        connection.sendall(head.replace(b"Host: x\r\n", b"Host: x\r\nExpect: 100-continue\r\n"))
        assert read_answer(connection)[0] == 413


def test_requests_one_after_another_in_one_packet_are_answered_in_order(impatient: Running):
    with connect(impatient.port) as connection:
        connection.sendall((HEAD + BODY) * 3 + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        found = read_all(connection)
    assert found.count(b"HTTP/1.1 200 OK") == 4
    assert found.endswith(b'{"live":true}')


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_in_the_one_shape(impatient: Running, sent: bytes):
    with connect(impatient.port) as connection:
        connection.sendall(sent)
        status, headers, body = read_answer(connection)
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]


def test_a_server_that_other_machines_can_reach_says_so(digits_only: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with running(Settings(repository=digits_only, host="0.0.0.0", port=0, device="cpu")) as server:
        assert f":{server.port} can be reached from other machines" in caplog.text


def test_it_serves_with_h11_where_httptools_is_missing(
    digits_only: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with running(Settings(repository=digits_only, port=0, device="cpu")) as server:
        monkeypatch.undo()
        assert "httptools is not installed" in caplog.text
        assert httpx.post(f"{server.url}/v2/models/digits/infer", content=BODY).status_code == 200
        refused = httpx.post(f"{server.url}/v2/models/digits/infer", content=b"")
        assert (refused.status_code, list(refused.json())) == (400, ["error"])


def _accepts(port: int) -> bool:
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return False
    return True


def _answered(server: Running) -> float:
    labels = {"model": "digits", "version": "1"}
    return server.hub.metrics.registry.get_sample_value("bnfold_inference_request_success_total", labels) or 0.0


def test_a_head_without_end_is_refused_before_it_fills_the_memory(impatient: Running):
    for start, code in ((b"GET /", 431), (b"GET / HTTP/1.1\r\nX: ", 431), (b"GET / HTTP/1.1\r\n", 431)):
        piece = b"a" * 2**16 if not start.endswith(b"\n") else b"a: b\r\n" * 10_000
        with connect(impatient.port) as connection:
            connection.sendall(start)
            status, _, body = _send_until_refused(connection, piece)
            assert status == code
            assert list(json.loads(body)) == ["error"]


def test_trailers_without_end_are_refused_too(impatient: Running):
    head = HEAD[: HEAD.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n"
    with connect(impatient.port) as connection:
        connection.sendall(head + b"5\r\nabcde\r\n0\r\n")
        assert _send_until_refused(connection, b"a: b\r\n" * 10_000)[0] == 431


def _send_until_refused(connection: socket.socket, piece: bytes) -> tuple[int, dict[str, str], bytes]:
    for _ in range(50):
        connection.sendall(piece)
        if select.select([connection], [], [], 0.02)[0]:
            return read_answer(connection)
    raise AssertionError("it was not refused")


def test_large_bodies_and_many_requests_are_no_head_without_end(impatient: Running):
    body = json.dumps({"inputs": [], "id": "x" * 600_000}).encode()
    head = HEAD.replace(str(len(BODY)).encode(), str(len(body)).encode())
    with connect(impatient.port) as connection:
        connection.sendall(head + body)
        assert read_answer(connection)[0] == 400
        connection.sendall((HEAD + BODY) * 300)
        found = b""
        while found.count(b"HTTP/1.1 200 OK") < 300 or not found.endswith(b"]}]}"):
            found += connection.recv(65536)


@pytest.mark.parametrize("pieces", [1, 7, 10**6])
def test_an_offer_to_upgrade_is_passed_over_and_the_body_is_read(
    impatient: Running, caplog: pytest.LogCaptureFixture, pieces: int
):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    request = HEAD[:-2] + offer + BODY
    step = -(-len(request) // min(pieces, len(request)))
    with connect(impatient.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for at in range(0, len(request), step):
                connection.sendall(request[at : at + step])
            status, _, body = read_answer(connection)
            assert (status, json.loads(body).get("model_name")) == (200, "digits")
        last = HEAD[:-2] + b"Connection: close\r\n\r\n" + BODY
        connection.sendall((b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + offer) * 2 + request + last)
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 4
    assert "WebSocket" not in caplog.text
