"""The log of a real server: ids, JSON lines, the access log, and what must never be in it."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_runs import Process, process, until

from service.telemetry.logs import JsonLines, TextLines, Thinned, is_heard
from service.telemetry.watch import identify

SECRET = "0123456789secret"
BODY = {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
INFER = "/v2/models/digits/infer"
JSON = {"BNFOLD_LOG_FORMAT": "json", "BNFOLD_DRAIN_DELAY": "0"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def stop(server: Process) -> list[dict[str, Any]]:
    """The log of a whole life, every line of which is JSON."""
    server.child.send_signal(signal.SIGTERM)
    assert server.wait() == 0, server.text()
    return [json.loads(line) for line in server.text().splitlines()]


def test_every_line_of_a_json_log_is_an_object_with_its_time_level_logger_and_message(
    digits_only: Path, tmp_path: Path
):
    with process(digits_only, tmp_path, **JSON) as server:
        assert httpx.post(f"{server.url}{INFER}", json=BODY).status_code == 200
        lines = stop(server)
    assert all(TIME.fullmatch(line["time"]) for line in lines)
    assert {line["level"] for line in lines} <= {"info", "warning", "error"}
    assert all(line["logger"] and line["message"] for line in lines)
    assert [line["message"] for line in lines][-1] == "stopped"
    assert not any("status" in line for line in lines)  # no access log unless asked for


def test_the_access_log_has_a_line_for_each_request_and_no_key_query_or_body(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path, **JSON, BNFOLD_ACCESS_LOG="true") as server:
        until(lambda: "answered" in server.text())  # the probe of the test itself
        headers = {"authorization": f"Bearer {SECRET}", "x-api-key": SECRET, "x-request-id": "mine-1"}
        answer = httpx.post(f"{server.url}{INFER}?key={SECRET}", json={**BODY, "id": SECRET}, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "mine-1"
        wrong = httpx.post(f"{server.url}/v2/models/no%0Ane%22/infer", content=SECRET)
        assert wrong.status_code == 404
        with socket.create_connection(("127.0.0.1", server.port)) as gone:
            gone.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf")
            until(lambda: 'bnfold_connections{worker="0"} 2.0' in httpx.get(f"{server.url}/metrics").text)
        until(lambda: "client gone" in server.text())
        lines = stop(server)
    assert SECRET not in server.text()
    access = [line for line in lines if line["logger"] == "service.access" and line["method"] == "POST"]
    assert [line["status"] for line in access] == [200, 404, 499]
    assert access[0] | {"time": "", "duration_ms": 0} == {
        "time": "", "level": "info", "logger": "service.access", "message": "answered", "request_id": "mine-1",
        "method": "POST", "path": INFER, "model": "digits", "version": "1", "status": 200, "duration_ms": 0,
    }  # fmt: skip
    assert access[0]["duration_ms"] > 0
    assert access[1]["path"] == '/v2/models/no\\nne"/infer'
    assert access[1]["request_id"] == wrong.headers["x-request-id"]


def test_workers_write_their_number(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path, **JSON, BNFOLD_WORKERS="2") as server:
        lines = stop(server)
    assert {line.get("worker") for line in lines} == {None, 0, 1}


def test_an_answer_carries_an_id_whatever_becomes_of_it(client: httpx.Client):
    found = [
        client.get("/v2"),
        client.get("/nowhere"),
        client.post(INFER, content=b"{}"),
        client.post(INFER, json=BODY),
        client.post("/models/digits/predict", content=b"x"),
    ]
    ids = [answer.headers.get_list("x-request-id") for answer in found]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == len(found)


@pytest.mark.parametrize("sane", [b"a", b"x" * 128, b"0af7651916cd43dd8448eb211c80319c", b"Root=1-67a:b/c_d.e+f@g"])
def test_a_sane_id_is_taken(sane: bytes):
    assert identify([(b"host", b"x"), (b"x-request-id", sane)]) == sane


@pytest.mark.parametrize(
    "strange",
    [b"", b"x" * 129, b"a b", b"a\tb", b'a"b', b"a\nb", b"a\r\nset-cookie: b", b"\xff", b"a;b", b"a,b", b"<b>"],
)
def test_an_id_that_is_not_sane_is_replaced(strange: bytes):
    made = identify([(b"x-request-id", strange)])
    assert made != strange
    assert re.fullmatch(rb"[0-9a-f]{12}-[0-9a-f]+", made)
    assert identify([]) != made


def record(message: str, **extra: Any) -> logging.LogRecord:
    found = logging.LogRecord("service.x", logging.ERROR, "x.py", 1, message, (), None)
    vars(found).update(extra)
    return found


@pytest.mark.parametrize("message", ["two\nlines", "\x1b[31mred", "half \udc80", "\u2028", "x" * 10**6])
def test_a_strange_message_stays_one_line_of_valid_text(message: str):
    for formatter in (TextLines(None), JsonLines(3)):
        line = formatter.format(record(message, path=message))
        assert line.isprintable()
        line.encode("utf-8")
        assert len(line) < 50_000
    assert json.loads(JsonLines(3).format(record(message)))["worker"] == 3


def test_of_the_warnings_that_strangers_bring_about_one_a_second_is_written_and_the_others_are_counted():
    now = [100.0]
    thinned = Thinned(lambda: now[0])

    def written(seconds: float, level: int = logging.WARNING) -> str | None:
        now[0] += seconds
        record = logging.LogRecord("uvicorn.error", level, __file__, 1, "%s was refused", ("it",), None)
        return record.getMessage() if thinned.filter(record) else None

    assert written(0) == "it was refused"
    assert [written(0.1) for _ in range(3)] == [None] * 3
    assert written(0.1, logging.ERROR) == "it was refused"
    assert written(1) == "it was refused (and 3 more before)"
    assert written(2) == "it was refused"


def test_what_grpcio_says_of_an_answer_to_a_call_that_was_over_is_not_written():
    cygrpc = pytest.importorskip("grpc._cython.cygrpc")

    def heard(problem: Exception | None) -> bool:
        exc_info = None if problem is None else (type(problem), problem, None)
        return is_heard(logging.LogRecord("grpc", logging.ERROR, __file__, 1, "raised by a method", (), exc_info))

    assert not heard(cygrpc.ExecuteBatchError("Failed to start a batch"))
    assert heard(cygrpc.InternalError("Failed to start a batch"))
    assert heard(ValueError("a fault of our own"))
    assert heard(None)


def test_strangers_do_not_fill_the_log(digits_only: Path, tmp_path: Path):
    with process(digits_only, tmp_path) as server:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as stranger:
                stranger.sendall(b"\x16\x03\x01 what is no HTTP\r\n\r\n")
                assert stranger.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert 1 <= server.text().count("what is no HTTP was refused") < 50


def test_an_exception_is_in_the_log_in_both_formats():
    try:
        raise ValueError("inner words")
    except ValueError as problem:
        found = record("it failed", exc_info=(ValueError, problem, problem.__traceback__), request_id="r-1")
    assert json.loads(JsonLines(None).format(found))["exception"].endswith("ValueError: inner words")
    text = TextLines(None).format(found)
    assert text.splitlines()[0].endswith("ERROR service.x: it failed request_id=r-1")
    assert text.endswith("ValueError: inner words")


def test_a_request_that_fails_by_our_fault_is_in_the_log_with_its_id(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: Any) -> None:
        raise RuntimeError("inner words")

    for way in ("infer", "express"):
        monkeypatch.setattr(f"service.http.{way}.parse_request", broken)
    answer = client.post(INFER, json=BODY, headers={"x-request-id": "mine-2"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine-2"
    assert "mine-2" in {vars(line).get("request_id") for line in caplog.records if line.levelno == logging.ERROR}
