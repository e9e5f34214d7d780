"""Inference over real sockets, as bytes on the wire."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from service_runs import Running, running, until

from service.http.infer import Target, find_target
from service.settings import Settings

INFER = "/v2/models/digits/infer"
X = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)


def as_json(x: np.ndarray = X, **more: Any) -> dict[str, Any]:
    return {
        "inputs": [{"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}],
        **more,
    }


def as_binary(x: np.ndarray = X, **more: Any) -> tuple[bytes, dict[str, str]]:
    entry = {
        "name": "input",
        "shape": list(x.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": x.nbytes},
    }
    head = json.dumps({"inputs": [entry], **more}).encode()
    return head + x.tobytes(), {"inference-header-content-length": str(len(head))}


def expected(server: Running, x: np.ndarray = X) -> np.ndarray:
    return np.concatenate([server.hub.repository.find("digits").run({"input": row[None]})["logits"] for row in x])


def near(found: Any, wanted: np.ndarray) -> bool:
    found = np.asarray(found, np.float32).reshape(wanted.shape)
    return bool(np.isfinite(found).all() and np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max())


def blob(answer: httpx.Response) -> tuple[dict[str, Any], bytes]:
    length = int(answer.headers["inference-header-content-length"])
    return json.loads(answer.content[:length]), answer.content[length:]


@pytest.mark.parametrize("path", [INFER, "/v2/models/digits/versions/1/infer"])
def test_json_in_json_out(client: httpx.Client, server: Running, path: str):
    answer = client.post(path, json=as_json(id="seven"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    (output,) = document.pop("outputs")
    assert document == {"model_name": "digits", "model_version": "1", "id": "seven"}
    assert (output["name"], output["datatype"], output["shape"]) == ("logits", "FP32", [3, 10])
    assert near(output["data"], expected(server))


def test_binary_in_binary_out_without_a_content_type(client: httpx.Client, server: Running):
    body, headers = as_binary(parameters={"binary_data_output": True})
    request = client.build_request("POST", INFER, content=body, headers=headers)
    assert "content-type" not in request.headers
    answer = client.send(request)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    document, data = blob(answer)
    assert document["outputs"][0]["parameters"] == {"binary_data_size": len(data)}
    assert "id" not in document
    assert near(np.frombuffer(data, "<f4"), expected(server))


def test_a_raw_tensor_is_answered_in_binary(client: httpx.Client, server: Running):
    answer = client.post(INFER, content=X.tobytes(), headers={"inference-header-content-length": "0"})
    assert answer.status_code == 200, answer.text
    assert near(np.frombuffer(blob(answer)[1], "<f4"), expected(server))


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_sliced_by_its_plain_length(
    client: httpx.Client, server: Running, encoding: str, pack: Any
):
    body, headers = as_binary()
    answer = client.post(INFER, content=pack(body), headers={**headers, "content-encoding": encoding})
    assert answer.status_code == 200, answer.text
    assert near(answer.json()["outputs"][0]["data"], expected(server))


def test_every_prediction_carries_its_proof(client: httpx.Client, server: Running):
    engine = server.hub.repository.find("digits")
    for answer in (client.post(INFER, json=as_json()), client.post("/models/digits/predict", json=X.tolist())):
        assert answer.status_code == 200
        assert answer.headers["bnfold-model"] == "digits"
        assert answer.headers["bnfold-model-version"] == "1"
        assert answer.headers["bnfold-model-digest"] == f"sha256:{engine.digest}"
        assert answer.headers["bnfold-provider"] == "CPUExecutionProvider"


def test_two_inputs_and_chosen_outputs(client: httpx.Client):
    left, right = np.ones((2, 4)), np.arange(8.0).reshape(2, 4)
    inputs = [
        {"name": name, "shape": [2, 4], "datatype": "FP32", "data": data.tolist()}
        for name, data in (("right", right), ("left", left))
    ]
    answer = client.post("/v2/models/pair/infer", json={"inputs": inputs, "outputs": [{"name": "doubled"}]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == [{"name": "doubled", "datatype": "FP32", "shape": [2, 4], "data": [2.0] * 8}]


HOSTILE = {
    "unknown model": ("/v2/models/digit/infer", json.dumps(as_json()).encode(), {}, 404),
    "unknown version": ("/v2/models/digits/versions/2/infer", b"{}", {}, 404),
    "a version that is no number": ("/v2/models/digits/versions/x/infer", b"{}", {}, 404),
    "a slash in the name": ("/v2/models/digits%2F1/infer", b"{}", {}, 404),
    "dots for a name": ("/v2/models/%2e%2e/infer", b"{}", {}, 404),
    "empty body": (INFER, b"", {}, 400),
    "no JSON": (INFER, b"\x89PNG", {}, 400),
    "wrong shape": (INFER, json.dumps(as_json(X[:, :, :4])).encode(), {}, 400),
    "too many rows": (INFER, np.zeros((1025, 1, 8, 8), "<f4").tobytes(), {"inference-header-content-length": "0"}, 400),
    "header length beyond the body": (INFER, b"{}", {"inference-header-content-length": "3"}, 400),
    "header length of nonsense": (INFER, b"{}", {"inference-header-content-length": "two"}, 400),
    "unread encoding": (INFER, b"{}", {"content-encoding": "br"}, 415),
    "damaged gzip": (INFER, b"{}", {"content-encoding": "gzip"}, 400),
    "gzip bomb": (INFER, gzip.compress(bytes(65 * 2**20)), {"content-encoding": "gzip"}, 413),
    "too big": (INFER, bytes(64 * 2**20 + 1), {}, 413),
    "JSON too big": (INFER, b" " * (16 * 2**20 + 1), {}, 413),
    "sequences": (INFER, json.dumps(as_json(parameters={"sequence_id": 3})).encode(), {}, 501),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_by_name_in_the_one_shape(client: httpx.Client, case: str):
    path, body, headers, status = HOSTILE[case]
    answer = client.post(path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert "Traceback" not in answer.text
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_other_methods_are_told_what_is_taken(client: httpx.Client, method: str):
    answer = client.request(method, INFER)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


def test_an_undeclared_body_above_the_cap_is_refused(client: httpx.Client):
    def endless() -> Any:
        for _ in range(66):
            yield bytes(2**20)

    answer = client.post(INFER, content=endless())
    assert answer.status_code == 413
    assert client.get("/v2/health/live").status_code == 200


def test_overflow_inside_the_model_is_refused_as_json_and_survives_as_binary(client: httpx.Client):
    huge = np.full((1, 1, 8, 8), 3e38, np.float32)
    answer = client.post(INFER, json=as_json(huge))
    assert answer.status_code == 400
    assert "binary_data" in answer.json()["error"]
    body, headers = as_binary(huge, parameters={"binary_data_output": True})
    data = np.frombuffer(blob(client.post(INFER, content=body, headers=headers))[1], "<f4")
    assert not np.isfinite(data).all()
    nan = np.full((1, 1, 8, 8), np.nan, np.float32)
    body, headers = as_binary(nan, parameters={"binary_data_output": True})
    assert np.isnan(np.frombuffer(blob(client.post(INFER, content=body, headers=headers))[1], "<f4")).all()


def test_a_timeout_in_the_request_is_kept(repository: Any):
    with running(Settings(repository=repository, device="cpu", port=0, threads=1)) as server:
        engine = server.hub.repository.find("free")
        body = {
            "inputs": [{"name": "input", "shape": [1, 1, 1500, 1000], "datatype": "FP32"}],
            "parameters": {"timeout": 1},
        }
        body["inputs"][0]["parameters"] = {"binary_data_size": 6_000_000}
        head = json.dumps(body).encode()
        answer = httpx.post(
            f"{server.url}/v2/models/free/infer",
            content=head + bytes(6_000_000),
            headers={"inference-header-content-length": str(len(head))},
        )
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "no answer within" in answer.json()["error"]
        assert engine.batchable


def test_many_callers_at_once_get_their_own_rows(server: Running):
    generator = np.random.default_rng(1)
    batches = [generator.random((int(count), 1, 8, 8)).astype(np.float32) for count in generator.integers(1, 9, 120)]

    async def run() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=24)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            return await asyncio.gather(*(client.post(INFER, json=as_json(batch)) for batch in batches))

    for batch, answer in zip(batches, asyncio.run(run()), strict=True):
        assert answer.status_code == 200
        assert near(answer.json()["outputs"][0]["data"], expected(server, batch))


def test_overload_is_answered_at_once_with_retry_after(digits_only: Any):
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=1, max_request_rows=4, max_queue_rows=4, max_batch_rows=4
    )
    with running(settings) as server:
        engine = server.hub.repository.find("digits")
        held = _hold(engine)
        body = as_json(X)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            first = _in_thread(lambda: httpx.post(f"{server.url}{INFER}", json=body, timeout=60))
            held.entered.wait(60)
            second = _in_thread(lambda: httpx.post(f"{server.url}{INFER}", json=body, timeout=60))
            until(lambda: server.hub.batcher.waiting_rows(engine) == 3)
            refused = client.post(INFER, json=body)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert list(refused.json()) == ["error"]
            assert 'bnfold_inference_pending_rows{model="digits",version="1"} 3.0' in client.get("/metrics").text
            held.release()
            assert [first().status_code, second().status_code] == [200, 200]
            metrics = client.get("/metrics").text
            assert 'failure_total{model="digits",reason="busy",version="1"} 1.0' in metrics
            assert 'bnfold_inference_count_total{model="digits",version="1"} 6.0' in metrics


def test_a_client_that_leaves_while_it_waits_never_reaches_the_runtime(digits_only: Any):
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1)) as server:
        engine = server.hub.repository.find("digits")
        held = _hold(engine)
        first = _in_thread(lambda: httpx.post(f"{server.url}{INFER}", json=as_json(X), timeout=60))
        held.entered.wait(60)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{INFER}", json=as_json(X), timeout=httpx.Timeout(60, read=0.05))
        until(lambda: server.hub.batcher.waiting_rows(engine) == 0)
        held.release()
        assert first().status_code == 200
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'bnfold_inference_count_total{model="digits",version="1"} 3.0' in metrics
        assert 'failure_total{model="digits",reason="client_gone",version="1"} 1.0' in metrics


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v2/models/a/infer", Target("a", None)),
        ("/v2/models/a/versions/3/infer", Target("a", "3")),
        ("/v2/models//infer", None),
        ("/v2/models/a/versions//infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/a/infer/", None),
        ("/v2/models/infer", None),
        ("/v2/infer", None),
    ],
)
def test_finds_the_model_in_a_path(path: str, target: Target | None):
    assert find_target(path) == target


class _Held:
    """A session that waits inside its first call."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.entered = threading.Event()
        self._gate = threading.Event()

    def release(self) -> None:
        self._gate.set()

    def run(self, *arguments: Any) -> Any:
        self.entered.set()
        assert self._gate.wait(60)
        return self._session.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def _hold(engine: Any) -> _Held:
    held = _Held(engine.runtime)
    engine.runtime = held
    return held


def _in_thread(call: Any) -> Any:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return lambda: future.result(60)
