"""Compressed answers: who gets which, over real sockets, and what Accept-Encoding may say."""

from __future__ import annotations

import gzip
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_runs import Running, running

from service.http.compression import LARGE, WORTH, Coding, choose_coding, compress, encode
from service.settings import Settings

INFER = "/v2/models/free/infer"
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        (None, None),
        (b"", None),
        (b"identity", None),
        (b"br, zstd", None),
        (b"*", None),
        (b"gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"x-gzip", "gzip"),
        (b"GZip", "gzip"),
        (b"gzip, deflate", "gzip"),
        (b"deflate, gzip", "gzip"),
        (b"gzip;q=0.1, deflate;q=0.9", "deflate"),
        (b"gzip;q=0, deflate", "deflate"),
        (b"gzip;q=0", None),
        (b"gzip ; q=1.000 ,deflate;q=0.999", "gzip"),
        (b"gzip;q=0.5, identity", None),
        (b"gzip;q=0.5, identity;q=0.5", "gzip"),
        (b"gzip;q=0.000, *;q=0.5", "deflate"),
        (b"gzip;q=2", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=-1", None),
        (b"gzip;q=", None),
        (b"gzip;level=9", None),
        (b"gzip;q=1;q=0", None),
        (b",,gzip,,", "gzip"),
        (b"\xff\xfe, gzip", "gzip"),
    ],
)
def test_chooses_by_weight(accepted: bytes | None, coding: str | None):
    found = choose_coding(accepted, WORTH)
    assert (None if found is None else found.name) == coding
    assert found is None or not found.forced


@pytest.mark.parametrize(
    ("accepted", "found"),
    [
        (b"gzip, identity;q=0", Coding("gzip", forced=True)),
        (b"deflate;q=0.2, identity;q=0", Coding("deflate", forced=True)),
        (b"gzip, *;q=0", Coding("gzip", forced=True)),
        (b"identity;q=0", None),
        (b"*;q=0", None),
        (b"gzip;q=0, identity;q=0", None),
        (b"gzip", None),
        (b"gzip;q=0.9", None),
    ],
)
def test_a_small_answer_is_compressed_only_for_who_refuses_it_plain(accepted: bytes, found: Coding | None):
    assert choose_coding(accepted, 100) == found


@given(st.binary(max_size=60), st.integers(0, 2 * WORTH))
def test_no_header_is_too_strange(accepted: bytes, size: int):
    found = choose_coding(accepted, size)
    assert found is None or found.name.encode() in accepted.lower()


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_one_stream_that_unpacks_to_the_same(name: str):
    body = bytes(range(256)) * 40
    assert UNPACK[name](compress(body, name)) == body


def test_what_would_grow_is_sent_plain_but_for_who_refuses_that():
    import asyncio

    noise = np.random.default_rng(0).bytes(LARGE)
    with ThreadPoolExecutor(1) as pool:
        assert asyncio.run(encode(noise, Coding("gzip", forced=False), pool)) is None
        forced = asyncio.run(encode(noise, Coding("gzip", forced=True), pool))
    assert forced is not None
    assert gzip.decompress(forced) == noise


# ------------------------------------------------------------------------------------------------- over real sockets


def ask(size: int, *, binary: bool = False) -> dict[str, Any]:
    """A request with an answer of 2 * size numbers, most of them alike."""
    data = np.zeros(size, np.float32)
    data[::7] = np.pi
    entry = {"name": "input", "shape": [1, 1, 1, size], "datatype": "FP32", "data": data.tolist()}
    return {"inputs": [entry], "parameters": {"binary_data_output": binary}}


def send(address: str, body: Any, accepted: str | None, path: str = INFER) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and the bytes on the wire."""
    headers = {} if accepted is None else {"accept-encoding": accepted}
    with httpx.Client() as client:
        client.headers.pop("accept-encoding")
        with client.stream("POST", f"{address}{path}", json=body, headers=headers) as answer:
            return answer.status_code, answer.headers, b"".join(answer.iter_raw())


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("size", [600, 20_000])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_answers_of_inference_are_compressed_for_who_asks(server: Running, coding: str, size: int, binary: bool):
    status, plain_headers, plain = send(server.url, ask(size, binary=binary), None)
    assert status == 200
    assert "content-encoding" not in plain_headers
    status, headers, packed = send(server.url, ask(size, binary=binary), f"br, {coding}")
    assert status == 200
    assert headers["content-encoding"] == coding
    assert int(headers["content-length"]) == len(packed) < len(plain)
    assert UNPACK[coding](packed) == plain
    # The length of the JSON is that before compression.
    assert headers.get("inference-header-content-length") == plain_headers.get("inference-header-content-length")
    if binary:
        json.loads(plain[: int(headers["inference-header-content-length"])])
    assert headers["bnfold-model"] == "free"


def test_a_small_answer_goes_plain_unless_that_is_refused(server: Running):
    _, headers, plain = send(server.url, ask(8), "gzip")
    assert "content-encoding" not in headers
    status, headers, packed = send(server.url, ask(8), "gzip, identity;q=0")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(packed) == plain
    status, headers, again = send(server.url, ask(8), "identity;q=0")
    assert (status, again) == (200, plain)
    assert "content-encoding" not in headers


def test_lines_of_accept_encoding_are_one_list(server: Running):
    with httpx.Client() as client:
        client.headers.pop("accept-encoding")
        request = client.build_request("POST", f"{server.url}{INFER}", json=ask(600))
        lines = [(b"accept-encoding", b"br"), (b"accept-encoding", b"gzip;q=0"), (b"accept-encoding", b"deflate;q=0.1")]
        request.headers = httpx.Headers([*request.headers.raw, *lines])
        answer = client.send(request)
    assert (answer.status_code, answer.headers["content-encoding"]) == (200, "deflate")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", INFER),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/models/digits/predict"),
        ("GET", "/v2"),
    ],
)
def test_nothing_but_inference_is_compressed_and_no_error(server: Running, method: str, path: str):
    """tritonclient's aio client takes a compressed error for garbage."""
    headers = {"accept-encoding": "gzip, identity;q=0"}
    with httpx.stream(method, f"{server.url}{path}", headers=headers, content=b"{}") as answer:
        assert "content-encoding" not in answer.headers
        assert b"".join(answer.iter_raw())


def test_compression_can_be_turned_off(digits_only: Any):
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1, compress_answers=False)) as server:
        entry = {"name": "input", "shape": [100, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 6400}
        status, headers, body = send(server.url, {"inputs": [entry]}, "gzip", "/v2/models/digits/infer")
    assert (status, "content-encoding" in headers) == (200, False)
    assert len(json.loads(body)["outputs"][0]["data"]) == 1000
