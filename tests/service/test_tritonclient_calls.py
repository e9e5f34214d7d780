"""Every public method of every stock client, found by introspection: a new one fails here until it has a case."""

from __future__ import annotations

import asyncio
import base64
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from service_clients import ADMIN, KINDS, Client, Doors, both_doors, client_of, public_methods
from service_networks import LABELS

import bnfold
from bnfold.bundle import load_bundle
from bnfold.runtime import open_session, run

X = np.random.default_rng(3).random((5, 1, 8, 8)).astype(np.float32)
HANDLE = base64.b64encode(b"handle")
CASES: dict[str, Callable[[Client, Doors], None]] = {}


@pytest.fixture(scope="module")
def doors(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with both_doors(repository, tmp_path_factory.mktemp("calls")) as started:
        yield started


@pytest.fixture(scope="module")
def logits(repository: Path) -> np.ndarray:
    session = open_session(
        load_bundle(repository / "digits" / "1").session_source(), device="cpu", optimise=True, threads=1
    )
    return run(session, {"input": X})["logits"]


@pytest.fixture(autouse=True)
def _expected(logits: np.ndarray) -> None:
    _Expected.logits = logits


class _Expected:
    """What the runtime itself says."""

    logits: np.ndarray


def case(function: Callable[[Client, Doors], None]) -> Callable[[Client, Doors], None]:
    CASES[function.__name__.removeprefix("_")] = function
    return function


@pytest.mark.parametrize(("kind", "method"), [(kind, method) for kind in KINDS for method in public_methods(kind)])
def test_every_call_is_right(kind: str, method: str, doors: Doors):
    assert method in CASES, f"tritonclient.{kind} has a method {method} that no test calls"
    with client_of(kind, doors) as client:
        CASES[method](client, doors)


def test_no_case_is_left_over():
    assert set(CASES) == {method for kind in KINDS for method in public_methods(kind)}


def right(result: Any, logits: np.ndarray | None = None) -> bool:
    found, wanted = result.as_numpy("logits"), _Expected.logits if logits is None else logits
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max())


def test_a_wrong_answer_would_be_noticed(doors: Doors, logits: np.ndarray):
    with client_of("http", doors) as client:
        result = client.infer("digits", [client.tensor("input", X, "FP32")])
    assert right(result)
    assert not right(result, logits[::-1])
    assert not right(result, logits[:4])
    assert not right(result, logits * 1.0001)


# ------------------------------------------------------------------------------------------------ health, metadata


@case
def _is_server_live(client: Client, _: Doors) -> None:
    assert client.call("is_server_live") is True


@case
def _is_server_ready(client: Client, _: Doors) -> None:
    assert client.call("is_server_ready") is True


@case
def _is_model_ready(client: Client, _: Doors) -> None:
    asked = [("digits",), ("digits", "1"), ("digits", "2"), ("digit",), ("digits/1",), ("..",)]
    assert [client.call("is_model_ready", *each) for each in asked] == [True, True, False, False, False, False]


@case
def _get_server_metadata(client: Client, _: Doors) -> None:
    assert client.document("get_server_metadata") == {
        "name": "bnfold",
        "version": bnfold.__version__,
        "extensions": [
            "binary_tensor_data", "classification", "model_configuration", "schedule_policy", "statistics",
            "model_repository",
        ],
    }  # fmt: skip


@case
def _get_model_metadata(client: Client, _: Doors) -> None:
    def shape(*sizes: int) -> list[Any]:
        return [str(size) for size in sizes] if client.is_grpc else list(sizes)

    for version in ("", "1"):
        assert client.document("get_model_metadata", "digits", version) == {
            "name": "digits",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "input", "datatype": "FP32", "shape": shape(-1, 1, 8, 8)}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": shape(-1, 10)}],
        }
    status, message = client.refuses("get_model_metadata", "digits", "7")
    assert status in ("404", "StatusCode.NOT_FOUND")
    assert "no version '7'" in message


@case
def _get_model_config(client: Client, _: Doors) -> None:
    found = client.document("get_model_config", "digits", "1")
    config = found["config"] if client.is_grpc else found
    assert (config["name"], config["platform"], config["backend"]) == ("digits", "onnxruntime_onnx", "onnxruntime")
    assert config["max_batch_size"] == 1024
    assert (config["input"][0]["name"], config["input"][0]["data_type"]) == ("input", "TYPE_FP32")
    assert [int(size) for size in config["input"][0]["dims"]] == [1, 8, 8]
    assert [int(size) for size in config["output"][0]["dims"]] == [10]
    assert config["dynamic_batching"]["preferred_batch_size"] == [64]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["instance_group"][0]["count"] == 1
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    mixing = client.document("get_model_config", "mixing")
    mixing = mixing["config"] if client.is_grpc else mixing
    assert "dynamic_batching" not in mixing
    assert mixing.get("max_batch_size", 0) == 0
    assert [int(size) for size in mixing["input"][0]["dims"]] == [-1, 1, -1, -1]


@case
def _get_inference_statistics(client: Client, _: Doors) -> None:
    def read(*arguments: str) -> dict[str, Any]:
        entries = client.document("get_inference_statistics", *arguments)["model_stats"]
        return next(entry for entry in entries if entry["name"] == "pair")

    def counts(entry: dict[str, Any]) -> list[int]:
        stats = entry.get("inference_stats", {})
        done = [stats.get(what, {}).get("count", 0) for what in ("success", "queue", "compute_infer")]
        return [int(each) for each in (entry.get("inference_count", 0), entry.get("execution_count", 0), *done)]

    before = counts(read("pair", "1"))
    rows = np.ones((3, 4), np.float32)
    client.infer("pair", [client.tensor(name, rows, "FP32") for name in ("left", "right")])
    after = read("pair", "1")
    assert [b - a for a, b in zip(before, counts(after), strict=True)] == [3, 1, 1, 1, 1]
    assert int(after["inference_stats"]["compute_infer"]["ns"]) > 0
    assert int(after["last_inference"]) > 1_600_000_000_000
    (batch,) = (each for each in after["batch_stats"] if int(each["batch_size"]) == 3)
    assert int(batch["compute_infer"]["count"]) >= 1
    assert counts(read()) == counts(read("pair")) == counts(after)
    assert len(client.document("get_inference_statistics", "pair")["model_stats"]) == 1
    assert client.refuses("get_inference_statistics", "stranger")[0] in ("404", "StatusCode.NOT_FOUND")


# ------------------------------------------------------------------------------------------------------ inference


def _ask(client: Client, method: str = "infer", **options: Any) -> Any:
    options = {"model_version": "1", "request_id": "r1", "priority": 2, "timeout": 20_000_000, **options}
    if "parameters" not in options:
        options["parameters"] = {"mine": "x", "number": 3, "truth": True}
    return client.call(method, "digits", [client.tensor("input", X, "FP32")], **options)


def _is_answer(result: Any) -> bool:
    response = result.get_response(as_json=True) if hasattr(result, "get_output_as_json") else result.get_response()
    response = response if isinstance(response, dict) else {"id": response.id, "model_version": response.model_version}
    return right(result) and response["id"] == "r1" and response["model_version"] == "1"


@case
def _infer(client: Client, _: Doors) -> None:
    assert _is_answer(_ask(client))
    assert _is_answer(_ask(client, outputs=[client.wanted("logits")]))
    ranked = _ask(client, outputs=[client.wanted("logits", class_count=3)]).as_numpy("logits")
    best = np.argsort(-_Expected.logits, axis=1, kind="stable")[:, :3]
    assert [[text.decode().split(":")[1:] for text in row] for row in ranked] == [
        [[str(index), LABELS[index]] for index in row] for row in best.tolist()
    ]
    tensor = client.tensor("input", X, "FP32")
    assert client.refuses("infer", "digit", [tensor])[0] in ("404", "StatusCode.NOT_FOUND")
    status, message = client.refuses("infer", "digits", [tensor], sequence_id=1, sequence_start=True)
    assert (status, "sequence_id" in message) == (client.not_offered, True)
    tensor = client.module.InferInput("input", [1, 1, 8, 8], "FP32")
    tensor.set_shared_memory("region", 256)
    status, message = client.refuses("infer", "digits", [tensor])
    assert (status, "shared memory" in message) == (client.not_offered, True)
    wanted = client.wanted("logits")
    wanted.set_shared_memory("region", 40)
    status, message = client.refuses("infer", "digits", [client.tensor("input", X, "FP32")], outputs=[wanted])
    assert (status, "shared memory" in message) == (client.not_offered, True)


@case
def _async_infer(client: Client, _: Doors) -> None:
    if not client.is_grpc:
        waiting = [_ask(client, "async_infer") for _ in range(4)]
        assert all(_is_answer(each.get_result()) for each in waiting)
        return
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(4):
        _ask(client, "async_infer", callback=lambda result, error: answers.put((result, error)))
    for _ in range(4):
        result, error = answers.get(timeout=30)
        assert error is None
        assert _is_answer(result)


@case
def _start_stream(client: Client, _: Doors) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.call("start_stream", lambda result, error: answers.put((result, error)), compression_algorithm="gzip")
    for _ in range(3):
        _ask(client, "async_stream_infer")
    client.call("async_stream_infer", "digit", [client.tensor("input", X, "FP32")])
    found = [answers.get(timeout=30) for _ in range(4)]
    errors = [error for _, error in found if error is not None]
    assert len(errors) == 1
    assert "no model 'digit'" in str(errors[0])
    assert all(_is_answer(result) for result, error in found if error is None)
    client.call("stop_stream")
    assert answers.empty()


case_of_stream = _start_stream
CASES["stop_stream"] = CASES["async_stream_infer"] = case_of_stream


@case
def _stream_infer(client: Client, _: Doors) -> None:
    async def requests() -> Any:
        for number in range(3):
            tensor = client.tensor("input", X, "FP32")
            yield {"model_name": "digits", "inputs": [tensor], "request_id": str(number)}
            await asyncio.sleep(0)
        yield {"model_name": "digits", "inputs": [client.tensor("image", X, "FP32")], "request_id": "wrong"}

    async def collect() -> list[Any]:
        return [each async for each in client.stock.stream_infer(requests())]

    found = client.wait(collect())
    ids = [result.get_response().id for result, error in found if error is None]
    assert sorted(ids) == ["0", "1", "2"]
    assert all(right(result) for result, error in found if error is None)
    assert ["no input 'image'" in str(error) for _, error in found if error is not None] == [True]


@case
def _generate_request_body(client: Client, doors: Doors) -> None:
    body, length = client.module.InferenceServerClient.generate_request_body(
        [client.tensor("input", X, "FP32")], outputs=[client.wanted("logits")], request_id="r1"
    )
    answer = httpx.post(
        f"{doors.child.url}/v2/models/digits/infer",
        content=bytes(body),
        headers={"Inference-Header-Content-Length": str(length)},
    )
    parsed = client.module.InferenceServerClient.parse_response_body(
        answer.content, header_length=int(answer.headers["Inference-Header-Content-Length"])
    )
    assert _is_answer(parsed)


CASES["parse_response_body"] = CASES["generate_request_body"]


# ------------------------------------------------------------------------------------------------ model repository


@case
def _get_model_repository_index(client: Client, _: Doors) -> None:
    found = client.document("get_model_repository_index")
    models = found["models"] if client.is_grpc else found
    assert [(each["name"], each["version"], each["state"]) for each in models] == [
        (name, "1", "READY") for name in ("digits", "free", "mixing", "pair")
    ]


@case
def _load_model(client: Client, _: Doors) -> None:
    assert client.call("load_model", "free", headers=ADMIN) is None
    assert client.call("is_model_ready", "free") is True
    status, message = client.refuses("load_model", "free", headers=ADMIN, config='{"max_batch_size": 2}')
    assert (status, "not offered" in message) == (client.not_offered, True)
    status, _message = client.refuses("load_model", "stranger", headers=ADMIN)
    assert status in ("404", "StatusCode.NOT_FOUND")
    assert client.refuses("load_model", "free")[0] in ("401", "StatusCode.UNAUTHENTICATED")


@case
def _unload_model(client: Client, _: Doors) -> None:
    assert client.refuses("unload_model", "mixing")[0] in ("401", "StatusCode.UNAUTHENTICATED")
    assert client.call("unload_model", "mixing", headers=ADMIN) is None
    try:
        assert client.call("is_model_ready", "mixing") is False
        assert client.refuses("get_model_metadata", "mixing")[0] in ("404", "StatusCode.NOT_FOUND")
    finally:
        client.call("load_model", "mixing", headers=ADMIN)
    assert client.call("is_model_ready", "mixing") is True
    assert client.call("unload_model", "mixing", headers=ADMIN, unload_dependents=True) is None
    client.call("load_model", "mixing", headers=ADMIN)


# ---------------------------------------------------------------------------------------------- what is not offered


def _refused(method: str, words: str, *arguments: Any) -> None:
    def check(client: Client, _: Doors) -> None:
        status, message = client.refuses(method, *arguments)
        assert status == client.not_offered
        assert words in message
        assert "\n" not in message

    CASES[method] = check


_refused("get_system_shared_memory_status", "system shared memory is not offered here")
_refused("register_system_shared_memory", "system shared memory is not offered here", "region", "/region", 256)
_refused("unregister_system_shared_memory", "system shared memory is not offered here", "region")
_refused("get_cuda_shared_memory_status", "cuda shared memory is not offered here", "region")
_refused(
    "register_cuda_shared_memory",
    "cuda shared memory is not offered here",
    "region",
    base64.b64encode(b"handle"),
    0,
    256,
)
_refused("unregister_cuda_shared_memory", "cuda shared memory is not offered here")
_refused("get_trace_settings", "trace settings", "digits")
_refused("update_trace_settings", "trace settings", None, {"trace_level": ["TIMESTAMPS"]})
_refused("get_log_settings", "log settings")
_refused("update_log_settings", "log settings", {"log_verbose_level": 1})


# ------------------------------------------------------------------------------------------------ the client itself


class _KeyPlugin:
    """A plugin that sends the admin key."""

    def __call__(self, request: Any) -> None:
        request.headers.update(ADMIN)


@case
def _register_plugin(client: Client, _: Doors) -> None:
    plugin = _KeyPlugin()
    assert client.stock.plugin() is None
    client.stock.register_plugin(plugin)
    assert client.stock.plugin() is plugin
    assert client.call("load_model", "free") is None
    client.stock.unregister_plugin()
    assert client.stock.plugin() is None
    assert client.refuses("load_model", "free")[0] in ("401", "StatusCode.UNAUTHENTICATED")


CASES["plugin"] = CASES["unregister_plugin"] = CASES["register_plugin"]


@case
def _close(client: Client, doors: Doors) -> None:
    assert client.call("is_server_live")
    with client_of(client.kind, doors) as other:  # it is closed at the end of the block
        assert other.call("is_server_live")
    assert client.call("is_server_live"), "closing one client must not close another"
