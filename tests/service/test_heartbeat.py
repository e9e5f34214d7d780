"""Workers that hang are killed and replaced; those that are slow, traced, or held up with their supervisor are not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from service_runs import PATIENCE, process, until
from test_workers import answered_by, hammer, setting, total, total_or_none, workers

from bnfold.errors import BnfoldError
from service.processes import supervisor
from service.processes.heartbeat import Heart, Pulse, is_traced
from service.settings import Settings

TWO = {"BNFOLD_WORKERS": "2", "BNFOLD_DRAIN_DELAY": "0", "BNFOLD_HANG_TIMEOUT": "3"}


def test_five_looks_in_a_row_without_a_beat_are_a_hang():
    pulse = Pulse(5.0)
    assert pulse.interval == 1.0
    assert [pulse.stopped(float(now)) for now in range(7)] == [False] * 5 + [True] * 2
    assert pulse.last == 0.0


def test_one_beat_in_time_makes_the_count_begin_anew():
    pulse = Pulse(5.0)
    for now in range(50):
        assert not pulse.stopped(float(now))
        if now % 4 == 0:
            pulse.hear()
    assert pulse.last == 49.0


def test_a_supervisor_that_was_held_up_itself_takes_nobody_for_hung():
    """The whole machine slept, or the supervisor was stopped: time has passed, but not for those who should beat."""
    pulse = Pulse(5.0)
    assert not any(pulse.stopped(float(now)) for now in range(5))
    assert not pulse.stopped(3600.0)
    assert not any(pulse.stopped(3600.0 + now) for now in range(1, 5))
    assert pulse.stopped(3605.0)


def test_a_loop_beats_while_it_turns():
    times: list[float] = []

    async def turn() -> None:
        loop = asyncio.get_running_loop()
        Heart(1.0, lambda: times.append(loop.time())).start()
        while len(times) < 5:
            await asyncio.sleep(0.01)

    asyncio.run(turn())
    assert times == sorted(times)


@pytest.mark.parametrize("patience", [1.0, 30.0, 86400.0])
def test_a_worker_beats_several_times_from_one_look_to_the_next(patience: float):
    assert 3 * Heart(patience, print).every < Pulse(patience).interval


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is traced")
def test_a_process_that_a_debugger_holds_is_told_from_one_that_hangs():
    ask = "import ctypes, sys; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline() != b"0\n":
            pytest.skip("processes may not be traced here")
        assert is_traced(child.pid)
    assert not is_traced(os.getpid())
    assert not is_traced(child.pid)


def test_a_worker_that_a_debugger_lets_go_has_its_whole_patience_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    looks, signals = [0.0], []
    child = SimpleNamespace(pid=1, returncode=None, send_signal=signals.append)
    held = iter([True] * 8)

    async def sleep(seconds: float) -> None:
        assert len(looks) < 50
        if signals:
            raise KeyboardInterrupt
        looks.append(looks[-1] + seconds)

    monkeypatch.setattr(supervisor, "asyncio", SimpleNamespace(sleep=sleep, Event=asyncio.Event))
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: looks[-1]))
    monkeypatch.setattr(supervisor, "is_traced", lambda _: next(held, False))
    server = supervisor.Supervisor(Settings(workers=2, hang_timeout=5.0), tmp_path, print)
    server._workers[0] = supervisor.Worker(0, child, Pulse(5.0), ready=0.0)  # it never beats
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(server._watch())
    assert signals == [signal.SIGKILL]
    assert len(looks) - 1 == 8 + 5


@pytest.mark.parametrize("value", [0.5, 1e-3])
def test_a_patience_that_a_busy_machine_would_outlast_is_refused(value: float):
    with pytest.raises(BnfoldError, match="expected 0, or at least 1s"):
        Settings(hang_timeout=value)
    assert Settings(hang_timeout=0.0).hang_timeout == 0.0


def test_a_hung_worker_is_killed_and_replaced_while_a_slow_one_serves_on(digits_only: Path, tmp_path: Path):
    stop = threading.Event()
    with process(digits_only, tmp_path, **TWO) as server, ThreadPoolExecutor(5) as pool, setting(stop):
        until(lambda: total(server, "bnfold_worker_up") == 2)
        before = workers(server)
        hold_up(server.child.pid, 4)  # longer than the patience: nobody is killed for it, as is seen below
        clients = [pool.submit(hammer, server, stop) for _ in range(4)]
        until(lambda: all(answered_by(server, worker) > 5 for worker in (0, 1)))
        counted = answered_by(server, 0)
        os.kill(before[0], signal.SIGSTOP)
        slow = pool.submit(hold_up_now_and_then, before[1], stop)
        served = answered_by(server, 1)
        seen: list[float] = [0.0]

        def replaced() -> bool:
            total_or_none(server, seen)
            return workers(server)[0] != before[0]

        until(replaced)
        assert answered_by(server, 1) > served
        log, one = server.text(), f"worker 0 (process {before[0]})"
        assert f"{one} hangs: its event loop has not turned for 3 s; it is killed" in log
        assert f"{one} ended by signal 9 (SIGKILL); it is started again" in log
        stop.set()
        found: Counter[int] = Counter()
        for client in clients:
            found.update(client.result(PATIENCE))
        slow.result(PATIENCE)
        until(lambda: total(server, "bnfold_worker_up") == 2)
        assert workers(server)[1] == before[1]
        for name in ("bnfold_worker_hangs_total", "bnfold_worker_restarts_total"):
            assert [total(server, name, worker=worker) for worker in "01"] == [1, 0], name
        assert seen == sorted(seen)
        assert answered_by(server, 0) >= counted  # its successor counts on
        assert set(found) <= {200, 0}
        assert total(server, "bnfold_inference_request_success_total") >= found[200]
        server.child.send_signal(signal.SIGTERM)
        assert server.wait() == 0, server.text()


def hold_up_now_and_then(pid: int, stop: threading.Event) -> None:
    """Stop a process for half of the time."""
    while not stop.is_set():
        hold_up(pid, 0.4)
        stop.wait(0.4)


def hold_up(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
