from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import numpy as np
import pytest

from service.errors import BadEncoding, BadRequest, Busy, Disconnected, SlowClient, TooLarge
from service.http.body import Budget, find_header, read_body
from service.settings import Settings

SMALL = Settings(max_body_bytes=4096, max_memory_bytes=8192, body_timeout=0.05)


def read(chunks: list[bytes], headers: dict[str, str] | None = None, settings: Settings = SMALL) -> bytes:
    """What read_body gives for these chunks; None among them: the client sends nothing more."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": at + 1 < len(chunks)} for at, chunk in enumerate(chunks)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def run() -> bytes:
        with Budget(settings.max_memory_bytes).lease() as lease:
            return await read_body(scope(headers), receive, lease, settings, None)

    return asyncio.run(run())


def scope(headers: dict[str, str] | None = None) -> dict[str, Any]:
    return {"headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()]}


def test_joins_chunks():
    assert read([b"one", b"", b"two"]) == b"onetwo"
    assert read([b""]) == b""


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_decompresses_before_anything_is_sliced(name: str, pack: Any):
    assert read([pack(b"x" * 4096)], {"content-encoding": name}) == b"x" * 4096


def test_a_large_body_is_decompressed_apart():
    body = np.random.default_rng(0).bytes(100_000)
    settings = Settings(max_body_bytes=101_000)
    assert read([zlib.compress(body)], {"content-encoding": "deflate"}, settings) == body


def test_identity_is_no_compression():
    assert read([b"abc"], {"content-encoding": "identity"}) == b"abc"


@pytest.mark.parametrize("declared", [4097, 10**30])
def test_refuses_a_declared_length_above_the_cap_before_reading(declared: int):
    async def run() -> None:
        async def receive() -> dict[str, Any]:
            raise AssertionError("it was read")

        with Budget(8192).lease() as lease:
            await read_body(scope({"content-length": str(declared)}), receive, lease, SMALL, None)

    with pytest.raises(TooLarge):
        asyncio.run(run())


def test_refuses_an_undeclared_body_above_the_cap():
    with pytest.raises(TooLarge):
        read([b"x" * 3000, b"x" * 3000])


def test_refuses_a_decompression_bomb():
    bomb = gzip.compress(b"\0" * 10_000_000)
    assert len(bomb) > 4096  # sent in full it would be refused for its own size
    with pytest.raises(TooLarge):
        read([gzip.compress(b"\0" * 100_000)], {"content-encoding": "gzip"})
    with pytest.raises(TooLarge):
        read([bomb], {"content-encoding": "gzip"}, Settings(max_body_bytes=65536))


def test_a_body_of_exactly_the_cap_passes():
    assert len(read([b"x" * 4096])) == 4096


@pytest.mark.parametrize(
    "body",
    [
        b"plain",
        gzip.compress(b"whole")[:-4],
        gzip.compress(b"one") + b"more",
        gzip.compress(b"one") + gzip.compress(b"two"),
        b"",
    ],
    ids=["not compressed", "cut off", "more after it", "two members", "empty"],
)
def test_refuses_damaged_compression(body: bytes):
    with pytest.raises(BadRequest):
        read([body], {"content-encoding": "gzip"})


@pytest.mark.parametrize("name", ["br", "gzip, gzip", "x" * 500])
def test_refuses_other_encodings(name: str):
    with pytest.raises(BadEncoding) as refusal:
        read([b"abc"], {"content-encoding": name})
    assert len(str(refusal.value)) < 200


def test_gives_up_on_a_body_that_does_not_come():
    async def run() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            raise AssertionError

        with Budget(8192).lease() as lease:
            await read_body(scope(), receive, lease, SMALL, None)

    with pytest.raises(SlowClient):
        asyncio.run(run())


def test_notices_that_the_client_has_gone():
    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        with Budget(8192).lease() as lease:
            await read_body(scope(), receive, lease, SMALL, None)

    with pytest.raises(Disconnected):
        asyncio.run(run())


def test_all_bodies_together_stay_within_the_budget():
    budget = Budget(100)
    with budget.lease() as first:
        first.take(60)
        with budget.lease() as second:
            second.take(30)
            with pytest.raises(Busy):
                second.take(11)
        with budget.lease() as third:  # what the second held is free again
            third.take(40)
    with budget.lease() as whole:
        whole.take(100)


def test_a_header_that_stands_twice_must_say_the_same():
    headers = [(b"a", b"1"), (b"b", b"2"), (b"a", b"1")]
    assert find_header(headers, b"a") == b"1"
    assert find_header(headers, b"c") is None
    with pytest.raises(BadRequest):
        find_header([*headers, (b"a", b"2")], b"a")
