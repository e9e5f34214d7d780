"""The page /docs and what it loads come from memory: no request opens a file."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_runs import PATIENCE, Running, running

from service.settings import Settings

MARK = "probe-7f3a"  # stands in every path below, and in no file of ours
NAMES = [
    MARK,
    f"..%2f{MARK}",
    f"%2f{MARK}",
    f"%2e%2e%2f%2e%2e%2f{MARK}",
    f"{MARK}%00",
    f"~{MARK}",
    f"file:%2f%2f{MARK}",
]
GETS = [
    "/{}", "/docs/{}", "/docs-assets/{}", "/docs-assets//{}", "/docs-assets/../{}", "/v2/{}", "/v2/models/{}",
    "/v2/models/{}/ready", "/v2/models/{}/parity", "/v2/models/{}/config", "/v2/models/{}/stats",
    "/v2/models/digits/versions/{}", "/v2/models/{}/versions/1/ready", "/metrics/{}", "/openapi.json/{}",
]  # fmt: skip
POSTS = [
    "/v2/models/{}/infer", "/v2/models/digits/versions/{}/infer", "/models/{}/predict", "/predict/{}",
    "/v2/repository/{}", "/v2/repository/models/{}/load", "/v2/repository/models/{}/unload",
    "/v2/systemsharedmemory/region/{}/register",
]  # fmt: skip

KEY = "an-admin-key-of-the-tests"

_opened: list[str] = []
_watching = threading.Event()


def _watch(event: str, details: tuple[object, ...]) -> None:
    if _watching.is_set() and event in ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir"):
        if threading.current_thread() is threading.main_thread():
            return  # the client
        _opened.append(f"{event} {details[0]!r}")


@pytest.fixture(scope="module")
def opened() -> Iterator[list[str]]:
    """What this process opens meanwhile (audit hooks stay for ever, so this one is only switched)."""
    sys.addaudithook(_watch)
    _watching.set()
    yield _opened
    _watching.clear()


def test_the_watch_sees_a_file_that_is_opened(opened: list[str], tmp_path):
    thread = threading.Thread(target=(tmp_path / "a").touch)
    thread.start()
    thread.join()
    assert [entry for entry in opened if str(tmp_path / "a") in entry]


@pytest.fixture(scope="module")
def operated(digits_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose models may be loaded and unloaded."""
    file = tmp_path_factory.mktemp("keys") / "admin"
    file.write_text(KEY)
    file.chmod(0o600)
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1, admin_key_file=file)) as started:
        yield started


def test_no_path_of_a_request_is_looked_for_among_files(operated: Running, opened: list[str]):
    with httpx.Client(base_url=operated.url, timeout=PATIENCE, headers={"X-API-Key": KEY}) as client:
        for name in NAMES:
            for path in GETS:
                assert client.get(path.format(name)).status_code in (400, 404)
            for path in POSTS:
                assert client.post(path.format(name), content=b"{}").status_code in (400, 404, 501)
        for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
            assert client.get(f"/docs-assets/{asset}").status_code == 200
    assert opened  # the repository was listed
    assert [entry for entry in opened if MARK in entry or "swagger" in entry or "favicon" in entry] == []


def test_all_that_the_page_loads_is_there(server: Running):
    page = httpx.get(f"{server.url}/docs").text
    for name, kind in (("swagger-ui-bundle.js", "text/javascript"), ("swagger-ui.css", "text/css")):
        assert f"/docs-assets/{name}" in page
        answer = httpx.get(f"{server.url}/docs-assets/{name}")
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind)
        assert len(answer.content) > 100_000
    assert "http://" not in page
    assert "https://" not in page
