"""Reloads under load: every answer is that of the version that its header names, and memory does not grow."""

from __future__ import annotations

import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from service_faults import break_channel
from service_reloads import ADMIN, KEY, REQUEST, Hammer, admin, build_versions, is_answer, logits, put, serving
from service_runs import process, until

RELOADS = 12
REFUSALS = 4


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_versions(tmp_path_factory.mktemp("versions"), 3)


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "models" / "digits").mkdir(parents=True)
    put(built, tmp_path / "models", 1)
    return tmp_path / "models"


def test_under_load_every_answer_is_that_of_the_version_in_its_header(built: Path, models: Path, tmp_path: Path):
    put(built, models, 2)
    expected = {version: logits(built / version) for version in ("1", "2")}
    broken = break_channel(put(built, models, 1, as_version=3))
    with serving(models, tmp_path) as server, admin(server.url) as operator:
        with Hammer(server.url, expected).pounding(3) as hammer:
            for number in range(RELOADS):
                assert operator.load(version_policy=f"specific:{number % 2 + 1}").status_code == 200
                assert operator.serves() == str(number % 2 + 1)
                if number % (RELOADS // REFUSALS) == 0:
                    refused = operator.load()
                    assert refused.status_code == 400
                    assert broken in refused.json()["error"]
                before = hammer.count
                until(lambda before=before: hammer.count > before + 5)
        assert hammer.wrong == []
        assert hammer.seen == {"1", "2"}
        assert operator.loads("rollback") == REFUSALS


def test_the_check_of_answers_finds_an_answer_of_another_version(built: Path, models: Path, tmp_path: Path):
    with serving(models, tmp_path) as server:
        with Hammer(server.url, {"1": logits(built / "2")}).pounding(1) as hammer:
            until(lambda: hammer.count > 3)
        assert len(hammer.wrong) == hammer.count


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_fifty_reloads_leave_no_session_behind(built: Path, models: Path, tmp_path: Path):
    put(built, models, 2)
    with serving(models, tmp_path) as server, admin(server.url) as operator:

        def reload(count: int) -> int:
            for number in range(count):
                assert operator.load(version_policy=f"specific:{number % 2 + 1}").status_code == 200
                assert operator.serves() == str(number % 2 + 1)
            until(lambda: "UNLOADING" not in operator.states().values())
            gc.collect()
            return resident(os.getpid())

        reload(15)  # arenas and caches are as large as they get
        before = reload(2)
        sessions = count_sessions()
        assert sessions > 0
        grown = reload(50) - before
        assert count_sessions() == sessions
        assert grown < 8 * 2**20, grown


def count_sessions() -> int:
    return sum(type(each).__name__ == "InferenceSession" for each in gc.get_objects())


def serve_with_key(models: Path, folder: Path, **environment: str):
    key = folder / "admin.key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    return process(models, folder, BNFOLD_ADMIN_KEY_FILE=str(key), **environment)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_amid_loads_and_requests_loses_nothing_that_was_accepted(
    built: Path, models: Path, tmp_path: Path, workers: str
):
    put(built, models, 2)
    expected = {version: logits(built / version) for version in ("1", "2")}
    stop = threading.Event()

    def ask() -> tuple[int, list[str]]:
        good, bad = 0, []
        while not stop.is_set():
            try:
                with httpx.Client(base_url=server.url, headers=ADMIN, timeout=60) as client:
                    for _ in range(20):
                        found = client.post("/v2/models/digits/infer", json=REQUEST)
                        version = found.headers.get("bnfold-model-version", "")
                        if found.status_code == 200 and is_answer(found, expected[version]):
                            good += 1
                        elif found.status_code != 503 or not stopping.is_set():
                            bad.append(found.text)
            except httpx.ConnectError:
                break
            except httpx.RemoteProtocolError as problem:  # sent after the last answer said "connection: close"
                if not stopping.is_set():
                    bad.append(repr(problem))
            except httpx.ReadError:  # in the kernel's queue of a socket that closed: never accepted
                if not stopping.is_set():
                    bad.append("reset")
        return good, bad

    def load() -> set[int]:
        found = set()
        with admin(server.url) as operator:
            for number in range(10_000):
                try:
                    found.add(operator.load(version_policy=f"specific:{number % 2 + 1}").status_code)
                except httpx.TransportError:
                    break
        return found

    stopping = threading.Event()
    environment = {"BNFOLD_WORKERS": workers, "BNFOLD_STATE_DIR": str(tmp_path / "state")}
    with serve_with_key(models, tmp_path, **environment) as server, ThreadPoolExecutor(4) as pool:
        asking, loading = [pool.submit(ask) for _ in range(3)], pool.submit(load)
        with admin(server.url) as operator:
            until(lambda: operator.loads("success") > 6)
        stopping.set()
        server.child.send_signal(signal.SIGTERM)
        assert server.wait() == 0, server.text()
        stop.set()
        found = [each.result(60) for each in asking]
        assert all(good > 0 for good, _ in found)
        assert [problem for _, bad in found for problem in bad] == []
        assert loading.result(60) <= {200, 503}
        assert "Traceback" not in server.text()
