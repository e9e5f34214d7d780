"""Keys over real sockets: who is asked for one, what a wrong one meets, and that none is ever shown."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_runs import PATIENCE, Running, running, times_open, until

from bnfold.cli import main
from bnfold.errors import BnfoldError
from service.keys import KeyFile, Keys, check_exposure
from service.settings import Settings
from service.telemetry.logs import say_where

INFER, SECOND, ADMIN, WRONG = (f"{name}-key-0123456789" for name in ("infer", "second", "admin", "wrong"))
EVERYWHERE = [
    ("GET", "/v2"),
    ("GET", "/v2/models/digits"),
    ("GET", "/v2/models/digits/ready"),
    ("GET", "/v2/models/digits/parity"),
    ("GET", "/v2/models/digits/stats"),
    ("GET", "/v2/models/digits/config"),
    ("POST", "/v2/models/digits/infer"),
    ("POST", "/v2/models/digits/versions/1/infer"),
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/digits/load"),
    ("POST", "/v2/repository/models/digits/unload"),
    ("POST", "/predict"),
    ("POST", "/models/digits/predict"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/docs-assets/swagger-ui.css"),
    ("GET", "/openapi.json"),
    ("GET", "/v2/health/live/../../models/digits"),
    ("GET", "//v2/health/live"),
    ("GET", "/nothing"),
]


def write_keys(path: Path, *lines: str) -> Path:
    """A file of keys that its owner alone may read, put in the place of another at once."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.chmod(0o600)
    return new.rename(path)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    infer = write_keys(folder / "infer", "# clients of the shop", "", INFER, f"  {SECOND}  ")
    return infer, write_keys(folder / "admin", ADMIN)


@pytest.fixture(scope="module")
def locked(digits_only: Path, files: tuple[Path, Path]) -> Iterator[Running]:
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=1, api_key_file=files[0], admin_key_file=files[1]
    )
    with running(settings) as started:
        yield started


@pytest.fixture
def caller(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url, timeout=PATIENCE) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), EVERYWHERE)
@pytest.mark.parametrize("headers", [{}, bearer(WRONG), {"X-API-Key": WRONG}, {"Authorization": f"Basic {INFER}"}])
def test_without_a_key_that_is_known_nothing_is_told(caller: httpx.Client, method: str, path: str, headers):
    answer = caller.request(method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert list(answer.json()) == ["error"]
    assert "digits" not in answer.text


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_probes_need_no_key(caller: httpx.Client, path: str):
    assert caller.get(path).status_code == 200


def test_what_is_served_is_told_with_a_key_only(caller: httpx.Client):
    assert caller.get("/v2/health/ready").json() == {"ready": True}
    assert "digits" in caller.get("/v2/health/ready", headers=bearer(INFER)).text


@pytest.mark.parametrize(
    "headers",
    [
        bearer(INFER),
        bearer(SECOND),
        bearer(ADMIN),
        {"X-API-Key": INFER},
        {"authorization": f"BEARER  {INFER}"},
        {**bearer(INFER), "X-API-Key": INFER},
    ],
)
def test_a_key_opens_what_is_not_for_admins(caller: httpx.Client, headers: dict[str, str]):
    for path in ("/v2/models/digits", "/metrics", "/docs", "/openapi.json"):
        assert caller.get(path, headers=headers).status_code == 200
    zeros = b"\0" * 256
    raw = {"Inference-Header-Content-Length": "0", **headers}
    assert caller.post("/v2/models/digits/infer", content=zeros, headers=raw).status_code == 200


def test_two_keys_that_differ_are_refused(caller: httpx.Client):
    answer = caller.get("/v2/models/digits", headers={**bearer(INFER), "X-API-Key": SECOND})
    assert answer.status_code == 401


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_an_infer_key_is_no_admin_key(caller: httpx.Client, verb: str):
    answer = caller.post(f"/v2/repository/models/digits/{verb}", headers=bearer(INFER))
    assert (answer.status_code, "admin key" in answer.json()["error"]) == (403, True)
    assert caller.get("/v2/models/digits/ready", headers=bearer(INFER)).status_code == 200


def test_an_admin_key_loads(caller: httpx.Client):
    assert caller.post("/v2/repository/models/digits/load", headers=bearer(ADMIN)).status_code == 200


def test_a_wrong_key_is_told_before_the_body_is_sent(locked: Running):
    with socket.create_connection((locked.host, locked.port), timeout=PATIENCE) as stream:
        stream.sendall(
            b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n"
            b"Content-Length: 60000000\r\n\r\n"
        )
        assert stream.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_wrong_keys_are_counted(caller: httpx.Client):
    def count() -> float:
        page = caller.get("/metrics", headers=bearer(INFER)).text
        lines = [line for line in page.splitlines() if 'reason="unauthorized"' in line and "_total" in line]
        return sum(float(line.split()[-1]) for line in lines)

    before = count()
    caller.get("/v2", headers=bearer(WRONG))
    assert count() == before + 1


def test_keys_that_are_tried_are_counted_whatever_they_are_tried_for(files: tuple[Path, Path], digits_only: Path):
    grpc = pytest.importorskip("tritonclient.grpc")
    both = {"api_key_file": files[0], "admin_key_file": files[1]}
    for settings, role in ((both, "forbidden"), ({"admin_key_file": files[1]}, "unauthorized")):
        with running(
            Settings(repository=digits_only, device="cpu", port=0, grpc_port=0, threads=1, **settings)
        ) as server:

            def count(reason: str, server: Running = server) -> float:
                labels = {"model": "", "version": "", "reason": reason}
                name = "bnfold_inference_request_failure_total"
                return server.hub.metrics.registry.get_sample_value(name, labels) or 0.0

            key = INFER if role == "forbidden" else WRONG
            path = f"{server.url}/v2/repository/models/digits/load"
            assert httpx.post(path, headers=bearer(key)).status_code in (401, 403)
            assert count(role) == 1
            with grpc.InferenceServerClient(f"127.0.0.1:{server.app.state.grpc_port}") as client:
                for tried in (INFER, WRONG):
                    with pytest.raises(grpc.InferenceServerException):
                        client.load_model("digits", headers={"authorization": f"Bearer {tried}"})
            assert count("unauthorized") + count("forbidden") == 3


def test_admin_is_off_without_its_file_and_inference_is_open(digits_only: Path):
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1)) as server:
        answer = httpx.post(f"{server.url}/v2/repository/models/digits/unload", headers=bearer(ADMIN))
        assert (answer.status_code, "--admin-key-file" in answer.json()["error"]) == (501, True)
        assert httpx.get(f"{server.url}/v2/models/digits").status_code == 200


def test_keys_are_rotated_without_a_restart(digits_only: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = write_keys(tmp_path / "infer", INFER)
    settings = Settings(repository=digits_only, device="cpu", port=0, threads=1, api_key_file=file)
    with running(settings) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:

        def opens(key: str) -> bool:
            return client.get("/v2", headers=bearer(key)).status_code == 200

        assert (opens(INFER), opens(SECOND)) == (True, False)
        write_keys(file, INFER, SECOND)
        until(lambda: opens(SECOND))
        assert opens(INFER)
        write_keys(file, SECOND)
        until(lambda: not opens(INFER))
        for spoil in (lambda: write_keys(file, "short"), lambda: write_keys(file), file.unlink):
            said = len(caplog.records)
            spoil()
            until(lambda said=said: (opens(SECOND), len(caplog.records) > said) == (True, True))
            assert not opens(INFER)
        write_keys(file, INFER)
        until(lambda: opens(INFER))
        assert not opens(SECOND)
    assert any("the keys stay as they are" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("content", "mode", "named"),
    [
        (b"", 0o600, "0 keys"),
        (b"# nothing\n\n", 0o600, "0 keys"),
        (b"secret-short\n", 0o600, "12 characters in line 1"),
        (b"# x\n" + b"s" * 513 + b"\n", 0o600, "513 characters in line 2"),
        (b"secret secret secret\n", 0o600, "a space or a special character in line 1"),
        ("sécretsécretsécret\n".encode(), 0o600, "line 1"),
        (b"secretsecretsecret\n" * 65, 0o600, "65 keys"),
        (b"secretsecretsecret\n" * 4000, 0o600, "larger than"),
        (b"secretsecretsecret\n", 0o620, "written by others"),
        (b"secretsecretsecret\n", 0o602, "written by others"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence_that_shows_no_key(tmp_path, content, mode, named):
    file = tmp_path / "keys"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(BnfoldError) as refusal:
        KeyFile(file, "--api-key-file")
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda _: None])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "keys")
    with pytest.raises(BnfoldError, match="--api-key-file"):
        KeyFile(tmp_path / "keys", "--api-key-file")


def test_a_folder_in_its_place_is_not_kept_open_and_looked_at_once(tmp_path):
    path = write_keys(tmp_path / "keys", INFER)
    file = KeyFile(path, "--api-key-file")
    path.unlink()
    path.mkdir()
    assert file.has_changed()
    for _ in range(3):
        with pytest.raises(BnfoldError, match="is no regular file"):
            file.read()
    assert not file.has_changed()
    assert times_open(path) == 0


def test_a_file_that_others_can_read_is_warned_of(tmp_path, caplog):
    file = write_keys(tmp_path / "keys", INFER)
    file.chmod(0o640)
    KeyFile(file, "--api-key-file")
    assert ["can be read by others" in record.message for record in caplog.records] == [True]
    file.chmod(0o600)
    KeyFile(file, "--api-key-file")
    assert len(caplog.records) == 1


def test_one_key_in_both_files_is_refused(tmp_path):
    infer, admin = write_keys(tmp_path / "infer", INFER), write_keys(tmp_path / "admin", ADMIN, INFER)
    with pytest.raises(BnfoldError, match="in one of them") as refusal:
        Keys.open(Settings(api_key_file=infer, admin_key_file=admin))
    assert INFER not in str(refusal.value)


def test_another_host_without_a_key_is_exit_2_and_one_sentence(digits_only, capsys):
    assert main(["serve", str(digits_only), "--host", "0.0.0.0", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "--api-key-file" in err
    assert "--insecure" in err


@pytest.mark.parametrize(
    ("host", "more", "goes"),
    [
        ("0.0.0.0", {}, False),
        ("::", {}, False),
        ("192.0.2.1", {}, False),
        ("some.name", {}, False),
        ("localhost.evil.example", {}, False),
        ("0.0.0.0", {"admin_key_file": Path("keys")}, False),
        ("0.0.0.0", {"api_key_file": Path("keys")}, True),
        ("0.0.0.0", {"insecure": True}, True),
        ("127.0.0.1", {}, True),
        ("127.8.9.1", {}, True),
        ("[::1]", {}, True),
        ("localhost", {}, True),
    ],
)
def test_which_hosts_ask_for_a_key(host: str, more: dict[str, object], goes: bool):
    settings = Settings(host=host, **more)
    if goes:
        check_exposure(settings)
        return
    with pytest.raises(BnfoldError, match="--insecure"):
        check_exposure(settings)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, ""),
        ({"host": "0.0.0.0", "insecure": True}, "asks nobody for a key"),
        ({"host": "0.0.0.0", "api_key_file": Path("keys")}, "in the clear"),
        ({"host": "0.0.0.0", "api_key_file": Path("keys"), "tls_cert": Path("c"), "tls_key": Path("k")}, ""),
    ],
)
def test_the_log_warns_of_what_other_machines_may_do_or_read(caplog, more: dict[str, object], said: str):
    say_where(Settings(**more), "http://here")
    assert [said in record.message for record in caplog.records] == ([True] if said else [])


def test_keys_are_nowhere_to_be_seen(locked: Running, files, caller: httpx.Client, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    seen = [caller.get(path, headers=bearer(INFER)).text for path in ("/metrics", "/openapi.json", "/v2", "/docs")]
    seen += [caller.get("/v2", headers=bearer(key)).text for key in (WRONG, INFER, ADMIN)]
    seen += [caller.post("/v2/repository/models/digits/load", headers=bearer(INFER)).text]
    for form in ([], ["--json"]):
        words = ["--api-key-file", str(files[0]), "--admin-key-file", str(files[1]), *form]
        assert main(["serve", "--show-settings", *words]) == 0
        seen.append(capsys.readouterr().out)
    assert str(files[0]) in seen[-1]
    assert json.loads(seen[-1])["api_key_file"]["value"] == str(files[0])
    seen += [record.getMessage() for record in caplog.records] + [repr(locked.hub.settings)]
    for key in (INFER, SECOND, ADMIN, WRONG):
        assert not [text for text in seen if key in text]


def test_looking_a_key_up_takes_as_many_comparisons_for_each(monkeypatch, files):
    """The first key, the last and a stranger: nothing ends early."""
    import hmac

    keys = Keys.open(Settings(api_key_file=files[0], admin_key_file=files[1]))
    real, counted = hmac.compare_digest, []
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: counted.append(pair) or real(*pair))
    counts = []
    for key in (INFER, SECOND, ADMIN, WRONG):
        counted.clear()
        keys.knows([(b"authorization", f"Bearer {key}".encode())])
        counts.append(len(counted))
    assert counts == [3, 3, 3, 3]


def test_the_files_are_looked_at_at_most_once_a_second(monkeypatch, files):
    keys = Keys.open(Settings(api_key_file=files[0]))
    looked: list[Path] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: looked.append(path) or real(path, **more))
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(100):
        keys.check([(b"x-api-key", INFER.encode())], "infer")
    assert looked == [files[0]]
