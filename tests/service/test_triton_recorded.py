"""The answers of a real Triton server, recorded by scripts/record_triton.py, beside those to the same requests here.

Where they differ on purpose, the table says how and why; anything else that differs fails.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from service_networks import save
from service_runs import Running, running
from triton_exchanges import EXCHANGES, LABELS, Exchange

from bnfold import build_bundle
from service.settings import Settings

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_answers.json").read_text())["answers"]
BY_NAME = {exchange.name: exchange for exchange in EXCHANGES}

_CLIENT = "a request that is wrong is the client's fault: 400, where Triton says 500"
_ABSENT = "what is not there is 404, also for those that ask whether it is ready or for its statistics"
_OFF = "not offered here: 501 with the reason"
# name: (Triton's status, ours, why)
STATUSES: dict[str, tuple[int, int, str]] = {
    **dict.fromkeys(
        (
            "a negative size", "too few numbers", "text for a number", "null for a number", "no shape", "no JSON",
            "a negative size in the shape", "priority of text", "classification of text", "a list for a request",
            "a negative number of classes",
        ),
        (500, 400, _CLIENT),
    ),
    **dict.fromkeys(("unknown model ready", "statistics of an unknown model"), (400, 404, _ABSENT)),
    **dict.fromkeys(("trace settings", "log settings", "shared memory", "CUDA shared memory"), (200, 501, _OFF)),
    "a sequence": (200, 501, "the models here keep no state, and a client that counts on it must not be misled"),
    "an output twice": (200, 400, "which of the two is meant, nobody can say"),
    "two raw rows": (400, 200, "the bytes leave no doubt how many rows they are"),
}  # fmt: skip
# Codings of equal weight: gzip here, whatever comes first in the list.
CODINGS = {"deflate named first": ("deflate", "gzip")}
# Health is told in a body here; Triton's is empty.
EMPTY = ("live", "ready", "model ready", "version ready")


def copy_network() -> onnx.ModelProto:
    """(N, 16) -> its first ten columns, through a batch norm that changes nothing."""
    norm = {"gamma": np.ones(10), "beta": np.zeros(10), "mean": np.zeros(10), "variance": np.ones(10)}
    weights = {"w": np.eye(16)[:, :10], "b": np.zeros(10), **norm}
    nodes = [
        helper.make_node("Gemm", ["input", "w", "b"], ["linear"], name="linear"),
        helper.make_node("BatchNormalization", ["linear", *norm], ["scores"], name="norm", epsilon=0.0),
    ]
    ports = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])]
        for name, size in (("input", 16), ("scores", 10))
    ]
    stored = [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "copy", *ports, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("copy")
    source = save(copy_network(), root / "copy.onnx")
    build_bundle(source, root / "models" / "copy", labels=list(LABELS), output_kind="logits")
    settings = Settings(repository=root / "models", device="cpu", port=0, threads=1, max_request_rows=8)
    with running(settings) as started:
        yield started


def ask(server: Running, exchange: Exchange) -> dict[str, Any]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request(exchange.method, exchange.path, exchange.body or None, exchange.headers)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return {"status": answer.status, "headers": headers, "body": answer.read()}
    finally:
        connection.close()


def recorded(name: str) -> dict[str, Any]:
    found = RECORDED[name]
    body = found["text"].encode() if "text" in found else base64.b64decode(found["base64"])
    return {**found, "body": body}


def unpack(answer: dict[str, Any]) -> bytes:
    coding = answer["headers"].get("content-encoding")
    return {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[coding](answer["body"])


def both(name: str, server: Running) -> tuple[Any, Any]:
    """Triton's document and ours."""
    return json.loads(recorded(name)["body"]), json.loads(ask(server, BY_NAME[name])["body"])


def read_inference(answer: dict[str, Any]) -> dict[str, Any]:
    """A response to an inference request, with each output's numbers or texts, however they travelled."""
    body = unpack(answer)
    length = int(answer["headers"].get("inference-header-content-length", len(body)))
    document, blobs = json.loads(body[:length]), body[length:]
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            raw: Any = output.pop("data")
            output["values"] = raw if output["datatype"] == "BYTES" else np.array(raw, np.float32).tobytes()
        else:
            raw, blobs = blobs[:size], blobs[size:]
            output["values"] = list(texts(raw)) if output["datatype"] == "BYTES" else raw
    assert blobs == b""
    return document


def texts(blob: bytes) -> Iterator[str]:
    while blob:
        (size,) = struct.unpack_from("<I", blob)
        yield blob[4 : 4 + size].decode()
        blob = blob[4 + size :]


def test_every_exchange_is_recorded_and_no_other():
    assert set(RECORDED) == set(BY_NAME)
    assert len(BY_NAME) == len(EXCHANGES)
    assert {*STATUSES, *CODINGS, *EMPTY} <= set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_status_is_that_of_triton_or_the_table_says_why(name: str, server: Running):
    theirs, ours = recorded(name), ask(server, BY_NAME[name])
    assert (theirs["status"], ours["status"]) == STATUSES.get(name, (theirs["status"],) * 2)[:2], ours["body"]
    if theirs["status"] != 200 and ours["status"] != 200:
        assert [list(json.loads(each["body"])) for each in (theirs, ours)] == [["error"], ["error"]]
        assert "content-encoding" not in ours["headers"]


def _is_inference(name: str) -> bool:
    return RECORDED[name]["status"] == 200 and BY_NAME[name].path.endswith("/infer") and name not in STATUSES


@pytest.mark.parametrize("name", [name for name in BY_NAME if _is_inference(name)])
def test_answers_of_inference_are_those_of_triton(name: str, server: Running):
    theirs, ours = recorded(name), ask(server, BY_NAME[name])
    assert read_inference(ours) == read_inference(theirs)
    kinds = [each["headers"]["content-type"] for each in (theirs, ours)]
    assert kinds[0] == kinds[1]
    codings = tuple(each["headers"].get("content-encoding") for each in (theirs, ours))
    assert codings == CODINGS.get(name, (codings[0],) * 2)


def test_another_answer_would_be_noticed():
    first, second = (read_inference(recorded(name)) for name in ("JSON", "one row"))
    assert first != second
    assert read_inference(recorded("JSON with an id")) != first
    assert read_inference(recorded("binary both ways")) != first, "how a tensor travelled is seen"


@pytest.mark.parametrize("name", ["metadata", "metadata of a version"])
def test_metadata_is_that_of_triton(name: str, server: Running):
    theirs, ours = both(name, server)
    assert {**ours, "platform": theirs["platform"]} == theirs


def test_extensions_are_those_of_triton_that_exist_here(server: Running):
    theirs, ours = (
        json.loads(each["body"]) for each in (recorded("server metadata"), ask(server, BY_NAME["server metadata"]))
    )
    assert set(ours["extensions"]) < set(theirs["extensions"])
    assert set(theirs["extensions"]) - set(ours["extensions"]) == {
        "sequence", "model_repository", "model_repository(unload_dependents)", "system_shared_memory",
        "cuda_shared_memory", "parameters", "trace", "logging",
    }  # fmt: skip


def test_config_has_the_shape_of_tritons(server: Running):
    theirs, ours = both("config", server)
    same = ("name", "version_policy", "max_batch_size")
    assert [ours[key] for key in same] == [theirs[key] for key in same]
    for side in ("input", "output"):
        keys = ("name", "data_type", "dims")
        assert [[port[key] for key in keys] for port in ours[side]] == [
            [port[key] for key in keys] for port in theirs[side]
        ]
    assert ours["instance_group"][0].keys() <= theirs["instance_group"][0].keys()
    assert set(ours) - set(theirs) == {"model_transaction_policy"}, "in Triton's only where it was written down"


def test_statistics_have_the_shape_of_tritons(server: Running):
    ask(server, BY_NAME["JSON"])

    def shape(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: shape(value) for key, value in found.items()}
        return [shape(found[0])] if isinstance(found, list) and found else type(found)

    for name in ("statistics", "statistics of everything"):
        theirs, ours = (
            json.loads(each["body"])["model_stats"] for each in (recorded(name), ask(server, BY_NAME[name]))
        )
        expected = {key: value for key, value in theirs[0].items() if key not in ("response_stats", "memory_usage")}
        assert shape(ours[0]) == shape(expected)


@pytest.mark.parametrize("name", ["index", "index of what is ready"])
def test_the_index_is_that_of_triton(name: str, server: Running):
    theirs, ours = both(name, server)
    keys = ("name", "version", "state")
    assert [[each[key] for key in keys] for each in ours] == [[each[key] for key in keys] for each in theirs]
