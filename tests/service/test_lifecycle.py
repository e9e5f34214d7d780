"""Load, unload and the index, by API, on one process."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest
from service_faults import break_channel, mend
from service_reloads import ADMIN, REQUEST, Admin, admin, build_versions, is_answer, logits, put, serving
from service_runs import running, until

from service.settings import Settings


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_versions(tmp_path_factory.mktemp("versions"), 3)


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    """A repository of one's own with digits/1."""
    (tmp_path / "models" / "digits").mkdir(parents=True)
    put(built, tmp_path / "models", 1)
    return tmp_path / "models"


@pytest.fixture
def operator(models: Path, tmp_path: Path) -> Iterator[Admin]:
    with serving(models, tmp_path) as server, admin(server.url) as found:
        yield found


def test_a_new_version_is_served_once_it_is_loaded_and_the_old_one_leaves(built: Path, models: Path, operator: Admin):
    put(built, models, 2)
    assert operator.states() == {"1": "READY", "2": "UNAVAILABLE"}
    assert operator.serves() == "1"
    assert operator.load().status_code == 200
    found = operator.infer()
    assert found.headers["bnfold-model-version"] == "2"
    assert is_answer(found, logits(built / "2"))
    assert not is_answer(found, logits(built / "1"))
    assert operator.states() == {"1": "UNAVAILABLE", "2": "READY"}
    assert operator.infer("1").status_code == 404
    assert operator.loads("success") == 1
    until(lambda: 'version="1",provider' not in operator.client.get("/metrics").text.replace("'", '"'))


def test_a_load_of_the_same_version_reads_its_files_again(built: Path, models: Path, operator: Admin):
    digest = operator.infer().headers["bnfold-model-digest"]
    shutil.rmtree(models / "digits" / "1")
    put(built, models, 3, as_version=1)
    assert operator.infer().headers["bnfold-model-digest"] == digest
    assert operator.load().status_code == 200
    found = operator.infer()
    assert found.headers["bnfold-model-digest"] != digest
    assert is_answer(found, logits(built / "3"))


def test_a_version_that_fails_its_proof_changes_nothing_and_everybody_is_told(
    built: Path, models: Path, operator: Admin, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    tensor = break_channel(put(built, models, 1, as_version=2))
    refused = operator.load()
    assert refused.status_code == 400
    assert "digits/2 was refused" in refused.json()["error"]
    assert tensor in refused.json()["error"]
    assert "version 1 is served" in refused.json()["error"]
    found = operator.infer()
    assert (found.status_code, found.headers["bnfold-model-version"]) == (200, "1")
    assert operator.states() == {"1": "READY", "2": "UNAVAILABLE"}
    assert tensor in operator.reason("2")
    proof = operator.client.get("/v2/models/digits/parity").json()
    assert proof["state"] == "fallback"
    assert tensor in proof["last_failure"]
    assert proof["refused"][0]["gate"]["passed"] is False
    assert (operator.loads("rollback"), operator.loads("success")) == (1, 0)
    assert any("ROLLBACK" in record.getMessage() and tensor in record.getMessage() for record in caplog.records)
    assert operator.client.get("/v2/health/ready").status_code == 200


def test_files_that_were_damaged_under_a_served_version_leave_it_as_it_was(models: Path, operator: Admin):
    before = operator.infer()
    tensor = break_channel(models / "digits" / "1")
    refused = operator.load()
    assert refused.status_code == 400
    assert tensor in refused.json()["error"]
    assert operator.infer().content == before.content
    assert operator.states() == {"1": "READY"}
    assert tensor in operator.reason("1")


def test_a_version_that_is_gone_from_disk_is_served_until_it_is_unloaded(models: Path, operator: Admin):
    shutil.rmtree(models / "digits")
    assert operator.serves() == "1"
    refused = operator.load()
    assert refused.status_code == 400
    assert "no version in the repository; version 1 is served" in refused.json()["error"]
    assert operator.serves() == "1"
    assert operator.unload().status_code == 200
    assert operator.infer().status_code == 404
    assert operator.load().status_code == 400
    assert operator.loads("failure") == 1


def test_the_folder_of_the_repository_gone_is_one_sentence_and_nothing_changes(models: Path, operator: Admin):
    models.rename(models.with_name("elsewhere"))
    refused = operator.load()
    assert refused.status_code == 400
    assert operator.serves() == "1"
    assert operator.states() == {"1": "READY"}
    unknown = operator.load("newcomer")
    assert unknown.status_code == 503
    assert str(models) not in unknown.text
    models.with_name("elsewhere").rename(models)
    assert operator.load().status_code == 200


def test_a_rollback_by_hand_serves_an_older_version_until_the_next_load(built: Path, models: Path, operator: Admin):
    put(built, models, 2)
    assert operator.load().status_code == 200
    assert operator.load(version_policy="specific:1").status_code == 200
    assert operator.serves() == "1"
    assert operator.load().status_code == 200
    assert operator.serves() == "2"


def test_unload_takes_a_model_away_and_load_brings_it_back(operator: Admin):
    assert operator.unload().status_code == 200
    gone = operator.infer()
    assert gone.status_code == 404
    assert "unloaded" in gone.json()["error"]
    assert operator.states() == {"1": "UNAVAILABLE"}
    assert operator.reason("1") == "unloaded"
    ready = operator.client.get("/v2/health/ready")
    assert ready.status_code == 503
    assert operator.client.get("/v2/models/digits/parity").json()["state"] == "unloaded"
    assert operator.unload().status_code == 200
    assert operator.load().status_code == 200
    assert operator.serves() == "1"
    assert operator.client.get("/v2/health/ready").status_code == 200


def test_a_new_model_can_be_loaded_and_a_broken_one_does_not_make_the_server_unready(
    built: Path, models: Path, operator: Admin
):
    shutil.copytree(built / "2", models / "newcomer" / "1")
    tensor = break_channel(shutil.copytree(built / "2", models / "broken" / "1"))
    assert operator.infer(model="newcomer").status_code == 404
    assert operator.load("newcomer").status_code == 200
    assert is_answer(operator.infer(model="newcomer"), logits(built / "2"))
    assert operator.load("broken").status_code == 400
    assert operator.states("broken") == {"1": "UNAVAILABLE"}
    answer = operator.infer(model="broken")
    assert answer.status_code == 503
    assert tensor in answer.json()["error"]
    assert operator.client.get("/v2/health/ready").status_code == 200


def test_policies_serve_several_versions_at_once(built: Path, models: Path, tmp_path: Path):
    put(built, models, 2)
    put(built, models, 3)
    expected = {str(version): logits(built / str(version)) for version in (1, 2, 3)}
    for policy, served in (("latest:2", "32"), ("all", "321"), ("specific:1,3", "31")):
        with serving(models, tmp_path, version_policy=policy) as server, admin(server.url) as operator:
            states = operator.states()
            assert [version for version in "321" if states[version] == "READY"] == list(served)
            assert operator.serves() == "3"
            for version, logit in expected.items():
                found = operator.infer(version)
                assert found.status_code == (200 if version in served else 404)
                assert version not in served or is_answer(found, logit)
            ready = operator.client.get("/v2/health/ready").json()["models"][0]
            assert ready["versions"] == list(served)


def test_a_specific_version_that_is_not_there_is_refused_and_the_others_serve(models: Path, tmp_path: Path):
    with serving(models, tmp_path, version_policy="specific:1,7") as server, admin(server.url) as operator:
        assert operator.serves() == "1"
        assert "not in the repository" in operator.reason("7")
        assert operator.load().status_code == 400


@pytest.mark.parametrize("fault", ["hash", "manifest", "link", "stray", "huge", "pipe"])
def test_a_hostile_version_is_refused_in_one_sentence(built: Path, models: Path, operator: Admin, fault: str):
    version = put(built, models, 2)
    if fault == "hash":
        break_channel(version, mend_hash=False)
    elif fault == "manifest":
        (version / "manifest.json").write_text('{"files": ' + "[" * 100_000)
    elif fault == "link":
        (version / "model.onnx").unlink()
        (version / "model.onnx").symlink_to(built / "2" / "model.onnx")
    elif fault == "stray":
        (version / "extra.py").write_text("print()")
    elif fault == "huge":
        with (version / "manifest.json").open("r+b") as stream:
            stream.truncate(2**40)  # sparse
    else:
        (version / "fold.json").unlink()
        os.mkfifo(version / "fold.json")
    refused = operator.load()
    assert refused.status_code == 400
    assert "digits/2 was refused" in refused.json()["error"]
    assert str(models) not in refused.text
    assert "\n" not in refused.json()["error"]
    assert operator.serves() == "1"


def test_a_link_in_the_place_of_a_version_is_no_version(built: Path, models: Path, operator: Admin):
    (models / "digits" / "2").symlink_to(built / "2")
    assert operator.load().status_code == 200
    assert operator.serves() == "1"
    assert operator.load(version_policy="specific:2").status_code == 400
    assert operator.serves() == "1"


@pytest.mark.parametrize(
    "name",
    [
        "nope",
        "..",
        ".",
        "%2e%2e",
        "..%2f..%2fetc",
        "digits%2f1",
        "digits%00",
        "digits%0a",
        "%ff",
        ".hidden",
        "x" * 5000,
    ],
)
def test_names_that_are_no_model_are_404_and_never_reach_the_disk(models: Path, operator: Admin, name: str):
    (models / ".hidden" / "1").mkdir(parents=True)
    for action in ("load", "unload"):
        with socket.create_connection((operator.client.base_url.host, operator.client.base_url.port or 80)) as raw:
            head = f"POST /v2/repository/models/{name}/{action} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            raw.sendall((head + f"Authorization: {ADMIN['Authorization']}\r\nContent-Length: 0\r\n\r\n").encode())
            with raw.makefile("rb") as reader:
                answer = reader.read()
        assert answer.startswith(b"HTTP/1.1 404"), answer
    assert operator.serves() == "1"


def test_overrides_of_config_and_files_are_501_and_unknown_parameters_400(operator: Admin):
    for parameter in ("config", "file:1/model.onnx"):
        answer = operator.load(**{parameter: "e30="})
        assert answer.status_code == 501
        assert parameter in answer.json()["error"]
    for bad in ({"colour": "red"}, {"version_policy": "newest"}, {"version_policy": 1}):
        assert operator.load(**bad).status_code == 400
    for path in ("load", "unload"):
        for body in (b"[]", b"{", b'{"parameters": []}', b'{"parameters": {"x": 1}}'):
            found = operator.client.post(f"/v2/repository/models/digits/{path}", content=body)
            assert (found.status_code, list(found.json())) == (400, ["error"])
    body = {"parameters": {"unload_dependents": True}}
    assert operator.client.post("/v2/repository/models/digits/unload", json=body).status_code == 200


def test_the_index_takes_an_empty_body_and_a_filter(built: Path, models: Path, operator: Admin):
    put(built, models, 2)
    ready = {"name": "digits", "version": "1", "state": "READY", "reason": ""}
    other = {"name": "digits", "version": "2", "state": "UNAVAILABLE", "reason": "not loaded"}
    for body, expected in ((b"", [ready, other]), (b"{}", [ready, other]), (b'{"ready":true}', [ready])):
        found = operator.client.post("/v2/repository/index", content=body)
        assert (found.status_code, found.json()) == (200, expected)
    for body in (b'{"ready":1}', b"[]", b"{"):
        assert operator.client.post("/v2/repository/index", content=body).status_code == 400


def test_without_an_admin_key_nothing_is_loaded_and_the_index_stays_open(models: Path):
    with running(Settings(repository=models, device="cpu", port=0, threads=1)) as server:
        for action in ("load", "unload"):
            found = httpx.post(f"{server.url}/v2/repository/models/digits/{action}", headers=ADMIN)
            assert found.status_code in (403, 501)
            assert "admin" in found.json()["error"]
        assert httpx.post(f"{server.url}/v2/repository/index").json()[0]["state"] == "READY"


def test_with_a_wrong_key_or_none_nothing_is_loaded(built: Path, models: Path, operator: Admin):
    put(built, models, 2)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}):
        found = httpx.post(f"{operator.client.base_url}/v2/repository/models/digits/load", headers=headers)
        assert found.status_code in (401, 403)
    assert operator.serves() == "1"


def test_an_empty_repository_may_be_filled_later_and_says_that_it_is_not_ready(built: Path, tmp_path: Path):
    models = tmp_path / "models"
    (models / "digits").mkdir(parents=True)
    with serving(models, tmp_path) as server, admin(server.url) as operator:
        ready = operator.client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["error"]) == (503, "no model is loaded")
        assert operator.client.get("/v2/health/live").status_code == 200
        assert operator.client.post("/predict", json=REQUEST).status_code in (400, 404, 503)
        put(built, models, 1)
        assert operator.load().status_code == 200
        assert operator.client.get("/v2/health/ready").status_code == 200
        assert operator.serves() == "1"


# --------------------------------------------------------------------------------------------- requests in flight


def start_request(server_host: str, port: int, path: str = "/v2/models/digits/infer") -> tuple[socket.socket, bytes]:
    """Half a request: the server has found the model and waits for the rest of the body, which comes back."""
    body = orjson.dumps(REQUEST)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {ADMIN['Authorization']}\r\n"
    connection = socket.create_connection((server_host, port), timeout=60)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:10])
    return connection, body[10:]


def finish_request(connection: socket.socket, rest: bytes) -> bytes:
    """The other half, and the answer."""
    with connection, connection.makefile("rb") as answer:
        connection.sendall(rest)
        return answer.read()


def test_unload_waits_for_the_requests_that_hold_the_model(models: Path, tmp_path: Path):
    with serving(models, tmp_path) as server, admin(server.url) as operator, ThreadPoolExecutor(1) as pool:
        engine = server.hub.repository.find("digits")
        connection, rest = start_request(server.host, server.port)
        until(lambda: engine.in_flight == 1)
        unloading = pool.submit(operator.unload)
        with admin(server.url) as another:
            until(lambda: another.states() == {"1": "UNLOADING"})
            assert another.infer().status_code == 404
            assert not unloading.done()
            answer = finish_request(connection, rest)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"bnfold-model-version: 1" in answer
            assert unloading.result(60).status_code == 200
            assert another.states() == {"1": "UNAVAILABLE"}


def test_a_request_that_holds_the_old_version_gets_its_answer_after_the_swap(built: Path, models: Path, tmp_path: Path):
    with serving(models, tmp_path) as server, admin(server.url) as operator:
        old = server.hub.repository.find("digits")
        connection, rest = start_request(server.host, server.port)
        until(lambda: old.in_flight == 1)
        put(built, models, 2)
        assert operator.load().status_code == 200
        assert operator.states() == {"1": "UNLOADING", "2": "READY"}
        answer = finish_request(connection, rest)
        assert b"bnfold-model-version: 1" in answer
        until(lambda: operator.states() == {"1": "UNAVAILABLE", "2": "READY"})


def test_loads_and_unloads_at_once_end_in_one_state_that_all_agree_on(built: Path, models: Path, tmp_path: Path):
    put(built, models, 2)

    def ask(number: int) -> tuple[str, int]:
        with admin(server.url) as one:
            return ("load", one.load().status_code) if number % 2 else ("unload", one.unload().status_code)

    with serving(models, tmp_path) as server, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(24)))
        assert {status for _, status in found} == {200}
        with admin(server.url) as operator:
            before = operator.states()
            assert before["1"] == "UNAVAILABLE"
            assert (operator.serves() == "2") == (before["2"] == "READY")
            assert operator.unload().status_code == 200
            assert operator.load().status_code == 200
            assert operator.serves() == "2"
            assert operator.loads("success") == 13


def test_a_load_is_refused_while_the_server_drains_and_what_runs_is_finished(models: Path, tmp_path: Path):
    with serving(models, tmp_path, drain_delay=5.0) as server, admin(server.url) as operator:
        server.hub.lifecycle.drain()
        found = operator.load()
        assert found.status_code == 503
        assert found.headers["retry-after"]
        assert operator.unload().status_code == 503
        assert operator.serves() == "1"


def test_a_changed_file_with_a_mended_hash_is_still_refused(built: Path, models: Path, operator: Admin):
    version = put(built, models, 2)
    page = version / "fold.json"
    page.write_text(page.read_text().replace("{", "[", 1))
    mend(version, "fold.json")
    assert operator.load().status_code == 400
    assert operator.serves() == "1"
