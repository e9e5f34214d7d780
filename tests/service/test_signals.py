"""SIGTERM while models are reloaded, while clients are slow, and to one worker alone: what was accepted is answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from service_faults import break_channel
from service_reloads import REQUEST, build_versions, is_answer, logits, put
from service_runs import PATIENCE, Process, process, until
from test_workers import runs, setting, workers

INFER = "/v2/models/digits/infer"
BODY = json.dumps(REQUEST).encode()
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\nConnection: close\r\n\r\n".encode()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_versions(tmp_path_factory.mktemp("signals"), 2)


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "models" / "digits").mkdir(parents=True)
    put(built, tmp_path / "models", 1)
    return tmp_path / "models"


class Load:
    """Clients that ask all the time: statuses, 0 for a connection that broke before an answer, and wrong answers."""

    def __init__(self, server: Process, built: Path) -> None:
        self.statuses: Counter[int] = Counter()
        self.wrong = 0
        self.stop = threading.Event()
        self._url = f"{server.url}{INFER}"
        self._expected = [logits(built / str(version)) for version in (1, 2)]

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                found = httpx.post(self._url, content=BODY, timeout=PATIENCE)
            except httpx.ConnectError:
                return  # it has stopped
            except httpx.TransportError:
                self.statuses[0] += 1
                continue
            self.statuses[found.status_code] += 1
            if found.status_code == 200:
                version = int(found.headers["bnfold-model-version"])
                self.wrong += not is_answer(found, self._expected[1 - version % 2])


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("moment", [0.0, 0.15])
def test_a_stop_in_the_midst_of_a_reload_under_load_loses_nothing_and_ends_with_0(
    built: Path, models: Path, tmp_path: Path, count: str, moment: float
):
    environment = {"BNFOLD_WORKERS": count, "BNFOLD_POLL_INTERVAL": "0.05", "BNFOLD_DRAIN_DELAY": "0.3"}
    with process(models, tmp_path, **environment) as server, ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        load = Load(server, built)
        stack.enter_context(setting(load.stop))
        clients = [pool.submit(load.run) for _ in range(3)]
        until(lambda: load.statuses[200] > 20)
        put(built, models, 2)
        until(lambda: "digits/2 is proven" in server.text())
        put(built, models, 1, as_version=3)
        break_channel(put(built, models, 2, as_version=4))
        threading.Event().wait(moment)
        server.child.send_signal(signal.SIGTERM)
        assert server.wait() == 0, server.text()
        load.stop.set()
        for client in clients:
            client.result(PATIENCE)
    assert load.wrong == 0, server.text()
    assert set(load.statuses) <= {200, 503}, server.text()
    assert "Traceback" not in server.text()
    assert server.text().splitlines()[-1].endswith("stopped"), server.text()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's queue can be emptied on Linux only")
@pytest.mark.parametrize("count", ["1", "2"])
def test_no_connection_that_the_kernel_has_made_is_reset(models: Path, tmp_path: Path, count: str):
    with process(models, tmp_path, BNFOLD_WORKERS=count, BNFOLD_DRAIN_DELAY="0") as server:
        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(ask_until_refused, server.port) for _ in range(16)]
            until(lambda: connections(server) > 0)
            server.child.send_signal(signal.SIGTERM)
            found = [client.result(PATIENCE) for client in clients]
        assert server.wait() == 0, server.text()
    assert sum(answered for answered, _ in found) > 0
    assert sum(broken for _, broken in found) == 0


def ask_until_refused(port: int) -> tuple[int, int]:
    """Connect and ask until nobody listens: how many were answered, and how many broke once they were connected."""
    answered = broken = 0
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        except OSError:
            return answered, broken
        with connection:
            try:
                connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                found = b"".join(iter(lambda at=connection: at.recv(65536), b""))
                answered += found.startswith(b"HTTP/1.1 200")
                broken += not found
            except OSError:
                broken += 1


def test_slow_clients_of_both_workers_are_waited_for(models: Path, tmp_path: Path):
    with process(models, tmp_path, BNFOLD_WORKERS="2", BNFOLD_DRAIN_DELAY="0") as server:
        slow = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(12)]
        for connection in slow:
            connection.sendall(HEAD + BODY[:50])
        until(lambda: connections(server) >= 12)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: not accepts(server))
        for connection in slow:
            connection.sendall(BODY[50:])
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer
            connection.close()
        assert server.wait() == 0, server.text()


@pytest.mark.parametrize("already", [b"", HEAD[:20]], ids=["nothing", "half a head"])
def test_who_has_connected_may_still_ask_when_nobody_else_can_connect(models: Path, tmp_path: Path, already: bytes):
    with process(models, tmp_path, BNFOLD_DRAIN_DELAY="0") as server:
        late = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(4)]
        for connection in late:
            connection.sendall(already)
        until(lambda: connections(server) >= 4)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: not accepts(server))
        threading.Event().wait(0.5)  # all that the server waits for without them is over
        for connection in late:
            connection.sendall((HEAD + BODY)[len(already) :])
            answer = b"".join(iter(lambda at=connection: at.recv(65536), b""))
            assert answer.startswith((b"HTTP/1.1 200 OK", b"HTTP/1.1 503 ")), answer
            connection.close()
        assert server.wait() == 0, server.text()


def test_who_has_connected_and_asks_nothing_holds_up_no_stop(models: Path, tmp_path: Path):
    with process(models, tmp_path, BNFOLD_DRAIN_DELAY="0", BNFOLD_DRAIN_TIMEOUT="50") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as silent:
            until(lambda: connections(server) >= 1)
            server.child.send_signal(signal.SIGTERM)
            assert silent.recv(1) == b""
        assert server.wait() == 0, server.text()
    assert "exceeded" not in server.text()


def connections(server: Process) -> float:
    page = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("bnfold_connections{"))


def accepts(server: Process) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def test_a_worker_that_is_told_to_stop_drains_and_another_takes_its_place(models: Path, tmp_path: Path):
    with process(models, tmp_path, BNFOLD_WORKERS="2", BNFOLD_DRAIN_DELAY="0.2") as server:
        before = workers(server)
        os.kill(before[0], signal.SIGTERM)
        until(lambda: workers(server)[0] != before[0])
        assert not runs(before[0])
        assert workers(server)[1] == before[1]
        assert "ended with exit code 0" in server.text()
        until(lambda: httpx.get(f"{server.url}/v2/health/ready").status_code == 200)
        server.child.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_supervisor_that_is_killed_while_its_workers_drain_does_not_cut_them_short(models: Path, tmp_path: Path):
    with process(models, tmp_path, BNFOLD_WORKERS="2", BNFOLD_DRAIN_DELAY="5") as server:
        children = workers(server)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{server.url}/v2/health/ready").status_code == 503)
        server.child.kill()
        server.wait()
        assert httpx.post(f"{server.url}{INFER}", content=BODY).status_code == 200
        until(lambda: not any(runs(pid) for pid in children.values()))
