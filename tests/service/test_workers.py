"""Several workers: one that is killed, a supervisor that is killed, stops in every state, counts of all together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_runs import PATIENCE, ROOT, Process, process, until

from service.processes.listener import reserve_socket
from service.processes.supervisor import _share_threads
from service.processes.worker import read_settings, write_settings
from service.settings import Settings, count_cores
from service.telemetry.meter import Totals

BODY = {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
INFER = "/v2/models/digits/infer"
TWO = {"BNFOLD_WORKERS": "2", "BNFOLD_DRAIN_DELAY": "0.2"}


def workers(server: Process) -> dict[int, int]:
    """Process by number of the worker, as the log has them last."""
    found = re.findall(r"worker (\d+) \(process (\d+)\) is ready", server.text())
    return {int(number): int(pid) for number, pid in found}


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def total(server: Process, name: str, **labels: str) -> float:
    page = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(each in line for each in wanted))


@pytest.fixture(scope="module")
def two(digits_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(digits_only, tmp_path_factory.mktemp("two"), **TWO, BNFOLD_HANG_TIMEOUT="0") as server:
        yield server


def test_connections_are_dealt_out_and_counts_are_those_of_all_workers(two: Process):
    before, batches = total(two, "bnfold_inference_request_success_total"), statistics(two)["execution_count"]
    for _ in range(40):  # a connection each
        assert httpx.post(f"{two.url}{INFER}", json=BODY).status_code == 200
    assert all(answered_by(two, worker) for worker in (0, 1))
    for _ in range(8):  # whichever worker is asked
        assert total(two, "bnfold_inference_request_success_total") == before + 40
        assert total(two, "bnfold_inference_request_duration_seconds_bucket", le="+Inf") == before + 40
        found = statistics(two)
        assert found["execution_count"] == batches + 40
        assert found["inference_stats"]["success"]["count"] == before + 40
    assert total(two, "bnfold_worker_up") == 2


def statistics(server: Process) -> dict:
    return httpx.get(f"{server.url}/v2/models/digits/stats").json()["model_stats"][0]


def answered_by(server: Process, worker: int) -> float:
    """Requests that one worker answered, by its own count."""
    return Totals(np.frombuffer(cells(server, worker).read_bytes(), np.float64).tolist()).success


def cells(server: Process, worker: int) -> Path:
    """The file that a worker counts in."""
    maps = Path(f"/proc/{workers(server)[worker]}/maps").read_text()
    (path,) = {Path(line.split()[-1]) for line in maps.splitlines() if line.endswith("meter=digits=1")}
    assert path.parent.name == str(worker)
    return path


def test_readiness_lists_the_workers_and_what_each_has(two: Process):
    found = httpx.get(f"{two.url}/v2/health/ready").json()
    assert [worker["worker"] for worker in found["workers"]] == [0, 1]
    for worker in found["workers"]:
        assert worker["ready"] is True
        assert [(model["name"], model["version"]) for model in worker["models"]] == [("digits", "1")]


def test_a_worker_that_hangs_is_seen_by_the_others(two: Process):
    held, before = workers(two)[0], states_of(two)
    os.kill(held, signal.SIGSTOP)
    try:
        expected = [{"worker": 0, "ready": False}, {**before[1], "ready": True}]
        until(lambda: states_of(two) == expected)  # what is told may be a moment old
    finally:
        os.kill(held, signal.SIGCONT)
    until(lambda: total(two, "bnfold_worker_up") == 2)


def states_of(server: Process) -> list[dict]:
    """What the readiness page says of the workers; nothing where the connection is dealt to one that hangs."""
    try:
        return httpx.get(f"{server.url}/v2/health/ready", timeout=3).json()["workers"]
    except httpx.TimeoutException:
        return []


def test_a_killed_worker_is_replaced_while_the_other_serves_and_no_count_falls(digits_only: Path, tmp_path: Path):
    stop = threading.Event()
    with process(digits_only, tmp_path, **TWO) as server, ThreadPoolExecutor(4) as pool, setting(stop):
        tasks = [pool.submit(hammer, server, stop) for _ in range(4)]
        seen = [0.0]
        until(lambda: total(server, "bnfold_inference_request_success_total") > 50)
        for _ in range(2):
            before = workers(server)
            os.kill(before[1], signal.SIGKILL)
            while workers(server) == before or total_or_none(server, seen) is None:
                assert seen == sorted(seen)
        stop.set()
        found: Counter[int] = Counter()
        for task in tasks:
            found.update(task.result(PATIENCE))
        until(lambda: total(server, "bnfold_worker_up") == 2)
        assert total(server, "bnfold_worker_restarts_total", worker="1") == 2
        assert total(server, "bnfold_worker_restarts_total", worker="0") == 0
        # Connections to the killed one broke; every request that was answered was answered rightly, and is counted.
        assert set(found) <= {200, 0}
        assert total(server, "bnfold_inference_request_success_total") >= max(seen[-1], found[200])
        assert "ended by signal 9 (SIGKILL); it is started again" in server.text()
        server.child.send_signal(signal.SIGTERM)
        assert server.wait() == 0, server.text()


def total_or_none(server: Process, seen: list[float]) -> float | None:
    try:
        seen.append(total(server, "bnfold_inference_request_success_total"))
    except httpx.TransportError:  # dealt to the one that was killed
        return None
    return seen[-1]


@contextlib.contextmanager
def setting(stop: threading.Event) -> Iterator[None]:
    """Set an event at the end, so that a test that fails does not wait for its clients."""
    try:
        yield
    finally:
        stop.set()


def hammer(server: Process, stop: threading.Event) -> Counter[int]:
    """Statuses of requests, each over a connection of its own; 0 where it broke."""
    found: Counter[int] = Counter()
    while not stop.is_set():
        try:
            found[httpx.post(f"{server.url}{INFER}", json=BODY, timeout=PATIENCE).status_code] += 1
        except httpx.TransportError:
            found[0] += 1
            stop.wait(0.01)
    return found


def test_a_stop_under_load_drains_every_worker_and_ends_with_0(digits_only: Path, tmp_path: Path):
    stop, long = threading.Event(), {**TWO, "BNFOLD_DRAIN_DELAY": "5"}
    with process(digits_only, tmp_path, **long) as server, ThreadPoolExecutor(4) as pool, setting(stop):
        tasks = [pool.submit(hammer, server, stop) for _ in range(4)]
        until(lambda: total(server, "bnfold_inference_request_success_total") > 50)
        children = workers(server)
        server.child.send_signal(signal.SIGTERM)
        until(lambda: not_ready(server))
        assert httpx.post(f"{server.url}{INFER}", json=BODY).status_code == 200  # still open while it drains
        assert server.wait() == 0, server.text()
        stop.set()
        found: Counter[int] = Counter()
        for task in tasks:
            found.update(task.result(PATIENCE))
        assert set(found) <= {200, 503, 0}
        assert not any(runs(pid) for pid in children.values())
        assert server.text().splitlines()[-1].endswith("stopped")
        assert "Traceback" not in server.text()


def not_ready(server: Process) -> bool:
    return httpx.get(f"{server.url}/v2/health/ready").status_code == 503


def test_a_second_signal_ends_all_workers_at_once(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path, **{**TWO, "BNFOLD_DRAIN_DELAY": "600"}) as server:
        server.child.send_signal(signal.SIGTERM)
        until(lambda: not_ready(server))
        server.child.send_signal(signal.SIGINT)
        assert server.wait() == 0, server.text()
        assert not any(runs(pid) for pid in workers(server).values())


def test_a_killed_supervisor_takes_the_workers_with_it(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path, **TWO) as server:
        children = workers(server)
        assert all(runs(pid) for pid in children.values())
        folder = cells(server, 0).parents[2]
        assert folder.stat().st_mode & 0o777 == 0o700
        server.child.kill()
        until(lambda: not any(runs(pid) for pid in children.values()))
        assert not folder.exists()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def test_a_worker_that_keeps_ending_early_stops_the_server_with_one_sentence(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path, **TWO) as server:
        killed: set[int] = set()
        while server.child.poll() is None:
            pid = workers(server)[0]
            if pid not in killed and runs(pid):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.01)
        assert len(killed) == 5
        assert server.wait() == 2
        last = server.text().splitlines()[-1]
        assert last.startswith("bnfold: worker 0 ")
        assert "5 times in a row" in last
        assert "Traceback" not in server.text()
        assert not any(runs(pid) for pid in workers(server).values())


def serve(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "bnfold", "serve", str(repository), "--device", "cpu", *arguments]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(child: subprocess.Popen[str]) -> str:
    text = child.communicate(timeout=PATIENCE)[0]
    assert "Traceback" not in text, text
    return text


def test_what_no_worker_can_serve_is_one_sentence_and_exit_2(tmp_path: Path):
    child = serve(tmp_path, "--port", "0", "--workers", "2")
    text = end(child)
    assert child.returncode == 2
    assert [line for line in text.splitlines() if line.startswith("bnfold: ")] == text.splitlines()[-1:]
    assert "holds no bundle" in text.splitlines()[-1]


def test_the_port_of_another_server_with_workers_is_not_shared(two: Process, digits_only: Path):
    child = serve(digits_only, "--port", str(two.port), "--workers", "2")
    text = end(child)
    assert child.returncode == 2
    assert f"cannot listen on 127.0.0.1:{two.port}" in text.splitlines()[-1]


def test_a_reserved_port_takes_no_connection():
    with reserve_socket("127.0.0.1", 0) as held, pytest.raises(ConnectionRefusedError):
        socket.create_connection(held.getsockname(), timeout=PATIENCE)


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_signal_at_any_moment_of_the_start_ends_with_0(digits_only: Path, count: str):
    children = [serve(digits_only, "--port", "0", "--workers", count) for _ in range(2)]
    for child in children:
        until(lambda child=child: catches(child.pid, signal.SIGTERM))
    children[0].send_signal(signal.SIGTERM)
    for child in children:
        time.sleep(0.4)
        child.send_signal(signal.SIGTERM)
        end(child)
        assert child.returncode == 0


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal: before that it has not begun."""
    found = re.search(r"SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
def test_cores_are_shared_out_and_each_worker_has_a_thread(count: int):
    shares = [_share_threads(Settings(workers=count), number) for number in range(count)]
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == max(count, count_cores())
    assert {_share_threads(Settings(workers=count, threads=3), number) for number in range(count)} == {3}


def test_settings_reach_a_worker_as_they_are(tmp_path: Path):
    settings = Settings(repository=tmp_path / "ä b", workers=3, drain_delay=0.1234567891, grpc_port=0, access_log=True)
    assert read_settings(write_settings(settings)) == settings
    assert read_settings(write_settings(Settings())) == Settings()
