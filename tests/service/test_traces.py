"""Traces, as a collector receives them."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp_collector import Collector, collecting
from service_runs import running

from bnfold.errors import BnfoldError
from service.settings import Settings
from service.telemetry.traces import open_watch

BODY = {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
INFER = "/v2/models/digits/infer"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def traced(digits_only: Path, collector: Collector, *requests: dict[str, Any]) -> list[int]:
    """Send requests to a server that traces; all spans are sent when it has stopped."""
    settings = Settings(repository=digits_only, device="cpu", port=0, threads=1, otlp_endpoint=collector.url)
    with running(settings) as server, httpx.Client(base_url=server.url) as client:
        return [client.request(**{"method": "POST", "url": INFER, **request}).status_code for request in requests]


def test_a_request_is_a_span_with_its_wait_and_its_run_below_it(digits_only: Path):
    started = time.time_ns()
    with collecting() as collector:
        assert traced(digits_only, collector, {"json": BODY, "headers": {"x-request-id": "abc-7"}}) == [200]
    ended = time.time_ns()
    assert sorted(span.name for span in collector.spans) == ["compute", "queue", "request"]
    spans = {span.name: span for span in collector.spans}
    request, queue, compute = spans["request"], spans["queue"], spans["compute"]
    assert request.parent_span_id == b""
    assert {queue.parent_span_id, compute.parent_span_id} == {request.span_id}
    assert len({span.trace_id for span in collector.spans}) == 1
    times = [
        started, request.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano,
        compute.start_time_unix_nano, compute.end_time_unix_nano, request.end_time_unix_nano, ended,
    ]  # fmt: skip
    assert times == sorted(times)
    assert queue.end_time_unix_nano == compute.start_time_unix_nano
    assert compute.end_time_unix_nano > compute.start_time_unix_nano
    assert attributes(request) == {
        "http.request.method": "POST",
        "url.path": INFER,
        "http.response.status_code": 200,
        "bnfold.request_id": "abc-7",
        "bnfold.model": "digits",
        "bnfold.version": "1",
    }
    assert collector.resources[0]["service.name"] == "bnfold"


def test_the_trace_of_the_client_is_continued_and_a_damaged_one_is_not(digits_only: Path):
    parents = [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", "00-zz-01", "ü" * 55]
    requests = [{"json": BODY, "headers": {b"traceparent": parent.encode("latin-1")}} for parent in parents]
    with collecting() as collector:
        assert traced(digits_only, collector, *requests) == [200] * 4
    found = [span for span in collector.spans if span.name == "request"]
    assert len(found) == 3  # the client of the second asked not to be sampled
    continued = [span for span in found if span.trace_id.hex() == TRACE]
    assert [span.parent_span_id.hex() for span in continued] == [PARENT]
    assert [span.parent_span_id for span in found if span not in continued] == [b"", b""]


def test_a_request_that_fails_has_its_status_and_no_run(digits_only: Path):
    with collecting() as collector:
        requests = {"content": b"{}"}, {"url": "/v2/models/none/infer"}, {"url": "/v2", "method": "GET"}
        assert traced(digits_only, collector, *requests) == [400, 404, 200]
    assert [span.name for span in collector.spans] == ["request"] * 3
    assert [attributes(span)["http.response.status_code"] for span in collector.spans] == [400, 404, 200]
    assert [attributes(span).get("bnfold.model") for span in collector.spans] == [None] * 3


def test_a_collector_that_is_away_holds_nobody_up(digits_only: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        settings = Settings(
            repository=digits_only, device="cpu", port=0, threads=1,
            otlp_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}",
        )  # fmt: skip
        with running(settings) as server:
            assert httpx.post(f"{server.url}{INFER}", json=BODY).status_code == 200


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector", "http://"])
def test_an_endpoint_that_is_no_address_is_one_sentence(endpoint: str):
    with pytest.raises(BnfoldError, match="otlp_endpoint"):
        open_watch(Settings(otlp_endpoint=endpoint))


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BnfoldError, match="the extra `otel`"):
        open_watch(Settings(otlp_endpoint="http://127.0.0.1:4318"))


def test_nothing_is_noted_unless_it_is_asked_for():
    assert open_watch(Settings()) is None
