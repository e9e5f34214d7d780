from __future__ import annotations

import json
import re

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service_runs import Running

import bnfold


def test_server_metadata_names_only_what_exists(client: httpx.Client):
    assert client.get("/v2").json() == {
        "name": "bnfold",
        "version": bnfold.__version__,
        "extensions": [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "schedule_policy",
            "statistics",
        ],
    }


def test_health(client: httpx.Client):
    assert client.get("/v2/health/live").json() == {"live": True}
    ready = client.get("/v2/health/ready")
    assert ready.status_code == 200
    assert ready.json()["ready"] is True
    assert [model["name"] for model in ready.json()["models"]] == ["digits", "free", "mixing", "pair"]


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/1"])
def test_model_metadata(client: httpx.Client, path: str):
    assert client.get(path).json() == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
    }


@pytest.mark.parametrize("path", ["/v2/models/digits/ready", "/v2/models/digits/versions/1/ready"])
def test_model_readiness(client: httpx.Client, path: str):
    assert client.get(path).json() == {"ready": True, "name": "digits", "version": "1"}


def test_parity_is_the_proof(client: httpx.Client, server: Running):
    proof = client.get("/v2/models/digits/parity").json()
    assert (proof["name"], proof["state"], proof["refused"], proof["not_examined"]) == ("digits", "ready", [], [])
    served = proof["served"]
    assert served["gate"]["passed"] is True
    assert served["gate"]["worst_ulp"] <= 0.5
    assert served["gate"]["agreeing"] == served["gate"]["rows"] > 0
    assert served["model_sha256"] == server.hub.repository.find("digits").digest
    assert served["provider"] == "CPUExecutionProvider"
    written = json.loads((server.hub.settings.repository / "digits" / "1" / "parity.json").read_text())
    assert served["parity"] == written


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models/digits/", 404),
        ("GET", "/v2/models/digit", 404),
        ("GET", "/v2/models/digit/parity", 404),
        ("GET", "/v2/models/digits/versions/7", 404),
        ("GET", "/v2/models/digits%2F1", 404),
        ("GET", "/docs-assets/../../etc/passwd", 404),
        ("GET", "/docs-assets/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/redoc", 404),
        ("GET", "/predict", 405),
        ("POST", "/v2", 405),
        ("POST", "/docs-assets/swagger-ui.css", 405),
        ("DELETE", "/metrics", 405),
        ("PATCH", "/v2/models/digits", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/models/digit/config", 404),
        ("GET", "/v2/models/digits/versions/7/config", 404),
        ("GET", "/v2/models/digit/stats", 404),
        ("GET", "/v2/models/digits/versions/7/stats", 404),
        ("POST", "/v2/models/stats", 405),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("GET", "/v2/systemsharedmemory/region/r/status", 501),
        ("POST", "/v2/systemsharedmemory/region/r/register", 501),
        ("POST", "/v2/cudasharedmemory/unregister", 501),
        ("POST", "/v2/tpusharedmemory/region/r/unregister", 501),
        ("GET", "/v2/trace/setting", 501),
        ("POST", "/v2/models/digits/trace/setting", 501),
        ("GET", "/v2/logging", 501),
        ("DELETE", "/v2/logging", 405),
    ],
)
def test_every_error_has_the_one_shape(client: httpx.Client, method: str, path: str, status: int):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    if status == 405:
        assert answer.headers["allow"]


def test_an_unforeseen_error_is_500_without_a_traceback(
    client: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("inner words")

    monkeypatch.setattr(server.hub.metrics, "page", broken)
    answer = client.get("/metrics")
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]
    assert "inner words" not in answer.text
    for way in ("infer", "express"):
        monkeypatch.setattr(f"service.http.{way}.parse_request", broken)
    labels = {"model": "digits", "version": "1", "reason": "internal"}

    def failures() -> float:
        return server.hub.metrics.registry.get_sample_value("bnfold_inference_request_failure_total", labels) or 0.0

    before = failures()  # other tests share this server
    answer = client.post("/v2/models/digits/infer", json={})
    assert answer.status_code == 500
    assert failures() == before + 1
    assert list(answer.json()) == ["error"]
    assert "inner words" not in answer.text


def test_metrics_are_bnfolds_own_and_no_stranger_adds_labels(client: httpx.Client):
    for path in ("/v2/models/stranger/infer", "/models/stranger/predict"):
        assert client.post(path, content=b"{}").status_code == 404
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert "stranger" not in answer.text
    own = {name for name in families if not name.startswith(("process_", "python_"))}
    assert own
    assert all(name.startswith("bnfold_") for name in own)
    info = {sample.labels["model"]: sample for sample in families["bnfold_model_info"].samples}
    assert set(info) == {"digits", "free", "mixing", "pair"}
    assert info["digits"].labels["provider"] == "CPUExecutionProvider"
    strays = [
        sample.value
        for sample in families["bnfold_inference_request_failure"].samples
        if sample.labels == {"model": "", "version": "", "reason": "unknown_model"} and sample.name.endswith("_total")
    ]
    assert strays[0] >= 2


def test_success_and_failure_are_counted_once_each(client: httpx.Client):
    def count(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples)
        return sum(
            sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items()
        )

    watched = [
        ("bnfold_inference_request_success_total", {"model": "pair"}),
        ("bnfold_inference_request_failure_total", {"model": "pair", "reason": "bad_request"}),
        ("bnfold_inference_count_total", {"model": "pair"}),
        ("bnfold_inference_exec_count_total", {"model": "pair"}),
        ("bnfold_inference_request_duration_seconds_count", {"model": "pair"}),
        ("bnfold_inference_queue_duration_seconds_count", {"model": "pair"}),
        ("bnfold_inference_compute_infer_duration_seconds_count", {"model": "pair"}),
    ]
    before = [count(name, **labels) for name, labels in watched]
    row = {"left": [1, 2, 3, 4], "right": [1, 2, 3, 4]}
    assert client.post("/models/pair/predict", json={"instances": [row] * 3}).status_code == 200
    assert client.post("/v2/models/pair/infer", content=b"{}").status_code == 400
    after = [count(name, **labels) for name, labels in watched]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 3, 1, 1, 1, 1]


def test_docs_load_nothing_from_elsewhere(client: httpx.Client):
    page = client.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) >= 3
    assert "//" not in "".join(links)
    for link in links:
        assert client.get(link).status_code == 200
    assert "http" not in page.text.replace(client.base_url.host, "")


def test_every_endpoint_is_documented_with_an_example(client: httpx.Client):
    document = client.get("/openapi.json").json()
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/{model}"),
        ("GET", "/v2/models/{model}/versions/{version}"),
        ("GET", "/v2/models/{model}/ready"),
        ("GET", "/v2/models/{model}/versions/{version}/ready"),
        ("GET", "/v2/models/{model}/parity"),
        ("GET", "/v2/models/{model}/config"),
        ("GET", "/v2/models/{model}/versions/{version}/config"),
        ("GET", "/v2/models/{model}/stats"),
        ("GET", "/v2/models/{model}/versions/{version}/stats"),
        ("GET", "/v2/models/stats"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/{model}/load"),
        ("POST", "/v2/repository/models/{model}/unload"),
        ("POST", "/v2/models/{model}/infer"),
        ("POST", "/v2/models/{model}/versions/{version}/infer"),
        ("POST", "/models/{model}/predict"),  # without a name only where there is one model
        ("GET", "/metrics"),
    }
    for (method, path), operation in operations.items():
        assert operation["summary"], path
        content = operation["responses"]["200"]["content"]
        assert any("example" in kind for kind in content.values()), path
        if method == "POST":
            assert operation["requestBody"]["content"]["application/json"]["example"], path
    assert "Error" in document["components"]["schemas"]
    assert "HTTPValidationError" not in json.dumps(document)
