"""Hostile requests by name, over real sockets: request smuggling, odd addresses, broken framing, bombs."""

from __future__ import annotations

import gzip
import json
import re
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from service_runs import PATIENCE, Running, running

from service.settings import Settings

PATH = "/v2/models/digits/infer"
BODY = json.dumps(
    {"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
).encode()
SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
MOST_BYTES = 2**20


@pytest.fixture(scope="module")
def target(digits_only: Path) -> Iterator[Running]:
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=1, header_timeout=1, body_timeout=1,
        keep_alive_timeout=1, max_body_bytes=MOST_BYTES,
    )  # fmt: skip
    with running(settings) as started:
        yield started


def post(*headers: str, body: bytes = BODY, path: str = PATH, length: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers]
    lines += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(*sizes: bytes, body: bytes = b"{}", coding: str = "chunked") -> bytes:
    size = sizes[0] if sizes else b"%x" % len(body)
    return post(f"Transfer-Encoding: {coding}", length=False, body=size + b"\r\n" + body + b"\r\n0\r\n\r\n")


def exchange(server: Running, *pieces: bytes, half_close: bool = False) -> tuple[list[int], bytes]:
    """The statuses of all answers until the server closes, and all that it sent."""
    with socket.create_connection((server.host, server.port), timeout=PATIENCE) as connection:
        found = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                found += chunk
        except ConnectionResetError:
            pass  # it closed while more was on its way
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", found)], found


SMUGGLING = {
    "both lengths": post("Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
    "both lengths, the other way round": b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths that differ": post("Content-Length: 3"),
    "two lengths in one header": post("Content-Length: 2, 3", length=False, body=b"{}"),
    "a length with a sign": post("Content-Length: +2", length=False, body=b"{}"),
    "a length in hexadecimal": post("Content-Length: 0x2", length=False, body=b"{}"),
    "a length beyond 64 bits": post("Content-Length: 18446744073709551618", length=False, body=b"{}"),
    "a length with a space in it": post("Content-Length: 1 2", length=False, body=b"{}"),
    "a space before the colon": post("Content-Length : 2", length=False, body=b"{}"),
    "a coding that is not chunked last": chunked(coding="chunked, identity"),
    "a coding spelt otherwise": chunked(coding="xchunked"),
    "a coding behind a control character": chunked(coding="\x0bchunked"),
    "two codings": post("Transfer-Encoding: chunked", "Transfer-Encoding: identity", length=False, body=b"2\r\n{}\r\n"),
    "a chunk size that is no number": chunked(b"zz"),
    "a chunk size with a sign": chunked(b"-2"),
    "a chunk size with 0x": chunked(b"0x2"),
    "a chunk size beyond 64 bits": chunked(b"1" * 17),
    "a chunk that is longer than its size": chunked(b"1"),
    "a chunk size ended by LF alone": post(
        "Transfer-Encoding: chunked", length=False, body=b"2\n{}\r\n0\r\n\r\n"
    ),
    "a folded header": post("X-A: b\r\n Content-Length: 5"),
    "a NUL in a header": post("X-A: b\x00c"),
    "a carriage return in a header": post("X-A: b\rContent-Length: 0"),
    "a header without a name": post(": 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLING)
def test_a_request_whose_end_is_in_doubt_is_refused_and_nothing_behind_it_is_answered(target: Running, name: str):
    statuses, found = exchange(target, SMUGGLING[name] + SMUGGLED + LAST)
    assert statuses == [400], found[:400]
    assert b'{"live":true}' not in found


def test_the_same_framings_done_well_are_answered(target: Running):
    """The control of the cases above."""
    body = b"%x;name=value\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(BODY), BODY)
    good = post("Transfer-Encoding: Chunked", length=False, body=body)
    statuses, found = exchange(target, post(), good, SMUGGLED, LAST)
    assert statuses == [200] * 4, found[:400]


HEADS = {
    "HTTP/0.9": (b"GET /v2\r\n\r\n", 505),
    "HTTP/2.0": (b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "no Host": (b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
    "two Hosts": (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", 400),
    "no Host on the short way": (post().replace(b"Host: x\r\n", b"Connection: close\r\n"), 400),
    "two Hosts on the short way": (post("Host: y", "Connection: close"), 400),
    "a method that is none": (b"FROB /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "CONNECT": (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "TRACE": (b"TRACE /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
    "a NUL in the address": (b"GET /v2\x00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "a space in the address": (b"GET /v2 x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    "the address *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", HEADS)
def test_odd_heads_have_one_answer_in_the_one_shape(target: Running, name: str):
    sent, status = HEADS[name]
    statuses, found = exchange(target, sent)
    assert statuses == [status], found[:400]
    assert list(json.loads(found.partition(b"\r\n\r\n")[2])) == ["error"]


@pytest.mark.parametrize("host", ["x", "elsewhere.invalid"])
def test_an_address_in_the_absolute_form_is_taken_for_its_path(target: Running, host: str):
    """RFC 9112, 3.2.2: a server must accept it."""
    head = f"GET http://{host}/v2/health/live HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    statuses, found = exchange(target, head.encode())
    assert statuses == [200], found
    statuses, _ = exchange(target, post("Connection: close", path=f"http://{host}{PATH}"))
    assert statuses == [200]


@pytest.mark.parametrize(
    "name",
    ["..", "../digits", "%2e%2e", "%2e%2e%2fdigits", "digits%2f..%2fdigits", "digits%00", "%00", "digits%0a", "%ff%fe",
     "digits%c0%ae", "digits%5c..", "..%5c..%5cetc%5cpasswd", "%25digits", "d" * 4000, "digits%3fx", "Digits"],
)  # fmt: skip
def test_names_that_are_no_model_are_404_on_every_way(target: Running, name: str):
    for path in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer", f"/models/{name}/predict"):
        statuses, found = exchange(target, post("Connection: close", path=path))
        assert statuses == [404], (path, found[:300])
        assert b"Traceback" not in found
    for path in (f"/v2/models/{name}", f"/v2/models/{name}/parity", f"/docs-assets/{name}"):
        statuses, _ = exchange(target, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert statuses == [404], path


def test_a_name_in_percent_signs_is_the_name(target: Running):
    statuses, _ = exchange(target, post("Connection: close", path="/v2/models/%64igits/infer"))
    assert statuses == [200]


@pytest.mark.parametrize("version", ["0", "-1", "+1", "01", "1.0", "1%00", "%d9%a1", "9" * 400, "..", "1%2f"])
def test_versions_that_are_none_are_404(target: Running, version: str):
    statuses, _ = exchange(target, post("Connection: close", path=f"/v2/models/digits/versions/{version}/infer"))
    assert statuses == [404]


def test_a_refused_request_amid_pipelined_ones_costs_its_neighbours_nothing(target: Running):
    bad = post(body=b"{")
    statuses, found = exchange(target, post() + bad + post(path="/v2/models/stranger/infer") + post() + LAST)
    assert statuses == [200, 400, 404, 200, 200], found[:400]


def test_what_is_no_http_amid_pipelined_requests_ends_the_connection_after_the_answers_before_it(target: Running):
    with socket.create_connection((target.host, target.port), timeout=PATIENCE) as connection:
        connection.sendall(post())
        found = b""
        while b"outputs" not in found:
            found += connection.recv(65536)
        connection.sendall(b"nonsense\r\n\r\n" + post())
        while chunk := connection.recv(65536):
            found += chunk
    assert re.findall(rb"HTTP/1\.1 (\d{3}) ", found) == [b"200", b"400"]


def test_expect_100_is_told_to_continue_before_the_body_and_a_refusal_comes_without_it(target: Running):
    with socket.create_connection((target.host, target.port), timeout=PATIENCE) as connection:
        head, body = post("Expect: 100-continue", "Connection: close").split(b"\r\n\r\n", 1)
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
    assert found.startswith(b"HTTP/1.1 200 ")
    refused = post("Expect: 100-continue", "Connection: close", path="/v2/models/stranger/infer").split(b"\r\n\r\n")[0]
    statuses, _ = exchange(target, refused + b"\r\n\r\n")
    assert statuses == [404]


@pytest.mark.parametrize("sent", [post()[:-1], post().partition(b"\r\n\r\n")[0], b"P", b""])
def test_a_client_that_closes_its_half_amid_a_request_gets_no_answer_and_leaves_nothing(target: Running, sent: bytes):
    statuses, _ = exchange(target, sent, half_close=True)
    assert statuses == []
    assert target.hub.budget._used == 0
    assert httpx.post(f"{target.url}{PATH}", content=BODY).status_code == 200


@pytest.mark.parametrize("path", [PATH, "/models/digits/predict", "/v2/repository/index"])
@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_bomb_is_413_and_its_memory_is_given_back(target: Running, path: str, coding: str, pack):
    bomb = pack(bytes(64 * MOST_BYTES))
    assert len(bomb) < MOST_BYTES / 10
    answer = httpx.post(f"{target.url}{path}", content=bomb, headers={"Content-Encoding": coding})
    assert answer.status_code == 413
    assert target.hub.budget._used == 0
    twice = pack(pack(bytes(MOST_BYTES)))  # a bomb in a bomb is opened once
    assert httpx.post(f"{target.url}{path}", content=twice, headers={"Content-Encoding": coding}).status_code == 400


@pytest.mark.parametrize("path", [PATH, "/models/digits/predict"])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [500, 5000])
def test_json_as_deep_as_a_well_is_400_or_413(target: Running, path: str, opening: bytes, closing: bytes, depth: int):
    middle = b"" if opening == b"[" else b"1"
    for body in (opening * depth + middle + closing * depth, opening * depth):
        answer = httpx.post(f"{target.url}{path}", content=body)
        assert answer.status_code in (400, 413)
        assert list(answer.json()) == ["error"]
    deep = b'{"inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": %b}]}'
    answer = httpx.post(f"{target.url}{PATH}", content=deep % (b"[" * depth + b"]" * depth))
    assert answer.status_code == 400
