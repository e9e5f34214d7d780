"""`.../config` over real sockets: valid as Triton's own message, and true of what is served."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from google.protobuf.json_format import ParseDict, ParseError
from service_clients import ADMIN, KEY
from service_runs import Running, running
from tritonclient.grpc import model_config_pb2

from service.settings import Settings


@pytest.mark.parametrize("model", ["digits", "pair", "free", "mixing"])
def test_it_is_a_model_config_of_triton(client: httpx.Client, server: Running, model: str):
    document = client.get(f"/v2/models/{model}/config").json()
    assert document == client.get(f"/v2/models/{model}/versions/1/config").json()
    message = ParseDict(document, model_config_pb2.ModelConfig())
    engine = server.hub.repository.find(model)
    assert (message.name, message.backend, message.platform) == (model, "onnxruntime", "onnxruntime_onnx")
    assert message.parameters["model_sha256"].string_value == engine.digest
    assert message.parameters["provider"].string_value == "CPUExecutionProvider"
    assert message.max_batch_size == (server.hub.settings.max_request_rows if engine.batchable else 0)
    assert message.HasField("dynamic_batching") == engine.batchable
    skipped = 1 if engine.batchable else 0
    for ports, described in ((engine.signature.inputs, message.input), (engine.signature.outputs, message.output)):
        assert [(port.name, list(port.shape[skipped:])) for port in ports] == [
            (each.name, list(each.dims)) for each in described
        ]
    with pytest.raises(ParseError):
        ParseDict({**document, "rows": 3}, model_config_pb2.ModelConfig())


def test_settings_show(digits_only: Any):
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=3, max_request_rows=16, max_batch_rows=8,
        max_delay=0.002, request_timeout=5.0, max_queue_rows=32, version_policy="all",
    )  # fmt: skip
    with running(settings) as server:
        found = httpx.get(f"{server.url}/v2/models/digits/config").json()
    assert found["max_batch_size"] == 16
    assert found["version_policy"] == {"all": {}}
    assert found["instance_group"][0]["count"] == 3
    batching = found["dynamic_batching"]
    assert (batching["preferred_batch_size"], batching["max_queue_delay_microseconds"]) == ([8], 2000)
    assert batching["default_queue_policy"]["default_timeout_microseconds"] == 5_000_000
    assert batching["default_queue_policy"]["max_queue_size"] == 32


def test_a_policy_that_a_load_gives_shows(digits_only: Any, tmp_path: Any):
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1, admin_key_file=keys)) as server:

        def policy() -> Any:
            return httpx.get(f"{server.url}/v2/models/digits/config").json()["version_policy"]

        assert policy() == {"latest": {"num_versions": 1}}
        body = {"parameters": {"version_policy": "specific:1"}}
        path = f"{server.url}/v2/repository/models/digits/load"
        assert httpx.post(path, json=body, headers=ADMIN, timeout=60).status_code == 200
        assert policy() == {"specific": {"versions": [1]}}
