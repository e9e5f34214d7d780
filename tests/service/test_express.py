"""The short way of an inference gives what the way through ASGI gives, byte for byte, and loses nothing on the way."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_runs import Running, running, until

from service.settings import Settings

X = np.random.default_rng(5).random((4, 1, 8, 8)).astype(np.float32)
LONG = "expect: 100-continue\r\n"  # such a request goes through ASGI
VARYING = re.compile(rb"(date|x-request-id): [^\r]*\r\n")


def connect(server: Running) -> socket.socket:
    connection = socket.create_connection((server.host, server.port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def head(length: int, more: str = "", model: str = "digits") -> bytes:
    return f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n{more}\r\n".encode()


def binary(x: np.ndarray = X, **parameters: Any) -> tuple[bytes, str]:
    return binary_with(x, parameters=parameters)


def binary_with(x: np.ndarray = X, **more: Any) -> tuple[bytes, str]:
    entry = {"name": "input", "shape": list(x.shape), "datatype": "FP32"}
    document = {"inputs": [{**entry, "parameters": {"binary_data_size": x.nbytes}}], **more}
    text = json.dumps(document).encode()
    return text + x.tobytes(), f"inference-header-content-length: {len(text)}\r\n"


def as_json(x: np.ndarray = X, **more: Any) -> bytes:
    entry = {"name": "input", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return json.dumps({"inputs": [entry], **more}).encode()


def read(stream: Any) -> tuple[bytes, bytes]:
    """Head and body of the next answer that is none of 100."""
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line)
    if lines and lines[0].startswith(b"HTTP/1.1 100"):
        return read(stream)
    text = b"".join(lines)
    length = re.search(rb"content-length: (\d+)", text)
    return text, stream.read(int(length[1])) if length else b""


def ask(server: Running, body: bytes, more: str = "", model: str = "digits") -> tuple[bytes, bytes]:
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(head(len(body), more, model) + body)
        return read(stream)


def sorted_head(text: bytes) -> list[bytes]:
    first, *lines = VARYING.sub(b"", text).splitlines()
    return [first, *sorted(lines)]


BODIES: dict[str, tuple[bytes, str]] = {
    "binary": binary(),
    "binary out": binary(binary_data_output=True),
    "json": (as_json(), ""),
    "json with an id": (as_json(id="seven"), ""),
    "raw": (X.tobytes(), "inference-header-content-length: 0\r\n"),
    "ranked": (as_json(outputs=[{"name": "logits", "parameters": {"classification": 3}}]), ""),
    "compressed": (as_json(np.repeat(X, 40, 0)), "accept-encoding: gzip\r\n"),
    "no json": (b"{", ""),
    "empty": (b"", ""),
    "true for a number": (as_json().replace(b"[0.", b"[true, 0.", 1), ""),
    "null for a number": (as_json().replace(b"[0.", b"[null, 0.", 1), ""),
    "too large a number": (re.sub(rb"\[0\.\d+", b"[1e39", as_json(), count=1), ""),
    "header length beyond the body": (as_json(), "inference-header-content-length: 99999\r\n"),
    "header length twice": (
        binary()[0],
        "inference-header-content-length: 1\r\ninference-header-content-length: 2\r\n",
    ),
    "unknown encoding": (as_json(), "content-encoding: br\r\n"),
    "wrong name": (as_json().replace(b'"input"', b'"other"'), ""),
    "short blob": (binary()[0][:-4], binary()[1]),
}


@pytest.mark.parametrize("name", BODIES)
def test_both_ways_give_the_same(server: Running, name: str):
    body, more = BODIES[name]
    for _ in range(2):  # the second finds a head that is known
        short, long = ask(server, body, more), ask(server, body, more + LONG)
        assert sorted_head(short[0]) == sorted_head(long[0])
        assert short[1] == long[1]
        assert b"x-request-id: " in short[0]
    assert short[0].startswith(b"HTTP/1.1 200") == (list(BODIES).index(name) < 7)


@pytest.mark.parametrize("path", ["nobody", "digits/versions/9", "%64igits", "digits%2Finfer"])
def test_both_ways_find_the_same_model(server: Running, path: str):
    short, long = (ask(server, as_json(), more, path) for more in ("", LONG))
    assert (sorted_head(short[0]), short[1]) == (sorted_head(long[0]), long[1])


def test_a_head_that_is_known_says_nothing_of_the_blob(server: Running):
    engine = server.hub.repository.find("digits")
    for at in range(6):
        x = np.roll(X, at, axis=0) + np.float32(at)
        body, more = binary(x, binary_data_output=True)
        text, answer = ask(server, body, more)
        length = int(re.search(rb"inference-header-content-length: (\d+)", text)[1])  # type: ignore[index]
        wanted = engine.run({"input": x})["logits"]
        found = np.frombuffer(answer[length:], np.float32).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert len(engine.signature.plans) <= 256


def test_a_head_that_is_known_but_for_its_id_is_answered_with_its_own(server: Running):
    plans = server.hub.repository.find("digits").signature.plans
    known, texts = len(plans), ["a", "b", 'q"uote', "\u00e9\u4e00", "9" * 300, "a"]
    for text in texts:
        body, more = binary_with(id=text, parameters={"binary_data_output": True})
        short, long = ask(server, body, more), ask(server, body, more + LONG)
        assert short[1] == long[1]
        length = int(re.search(rb"inference-header-content-length: (\d+)", short[0])[1])  # type: ignore[index]
        assert json.loads(short[1][:length])["id"] == text
    assert len(plans) == known + 1


@pytest.mark.parametrize(
    "change",
    [{"id": 7}, {"id": ["a"]}, {"parameters": {"timeout": 1.0}}, {"parameters": {"priority": True}},
     {"outputs": [{"name": "nobody"}]}, {"parameters": {"sequence_id": 3}}],
)  # fmt: skip
def test_a_known_head_lets_no_other_one_through(server: Running, change: dict[str, Any]):
    plain, more = binary_with(id="a", parameters={"timeout": 0, "priority": 0})
    for _ in range(2):
        assert ask(server, plain, more)[0].startswith(b"HTTP/1.1 200")
    body, more = binary_with(**{"id": "a", "parameters": {"timeout": 0, "priority": 0}, **change})
    for _ in range(2):
        short, long = ask(server, body, more), ask(server, body, more + LONG)
        assert short[0].split(b" ")[1] in (b"400", b"501")
        assert short[1] == long[1]


def test_a_head_nested_more_deeply_than_it_could_be_written_is_no_fault_of_the_server(server: Running):
    nest = "[" * 400 + "]" * 400
    body, more = binary_with(id="a", junk="JUNK")
    body = body.replace(b'"JUNK"', nest.encode())
    length = int(re.search(r": (\d+)", more)[1]) + len(nest) - len('"JUNK"')  # type: ignore[index]
    assert ask(server, body, f"inference-header-content-length: {length}\r\n")[0].startswith(b"HTTP/1.1 200")


def test_the_key_of_a_known_head_is_no_head(server: Running):
    plans = server.hub.repository.find("digits").signature.plans
    body, more = binary_with(id="a", parameters={"priority": 7})
    assert ask(server, body, more)[0].startswith(b"HTTP/1.1 200")
    key = list(plans)[-1]
    assert key.startswith(b"\0")
    forged = ask(server, key + X.tobytes(), f"inference-header-content-length: {len(key)}\r\n")
    assert forged[0].startswith(b"HTTP/1.1 400")


def test_heads_that_strangers_choose_are_forgotten(server: Running):
    with connect(server) as connection, connection.makefile("rb") as stream:
        for number in range(300):
            body, more = binary(X[:1], nonsense=number)
            connection.sendall(head(len(body), more) + body)
            assert read(stream)[0].startswith(b"HTTP/1.1 200")
    assert len(server.hub.repository.find("digits").signature.plans) == 256


@pytest.mark.parametrize("pause", [0.0, 0.05, 1.2])
def test_a_body_may_come_in_pieces_and_late(server: Running, pause: float):
    body, more = binary()
    with connect(server) as connection, connection.makefile("rb") as stream:
        for _ in range(2):
            for piece in (head(len(body), more), body[:50], body[50:600]):
                connection.sendall(piece)
                time.sleep(pause)
            connection.sendall(body[600:])
            text, answer = read(stream)
            assert text.startswith(b"HTTP/1.1 200")
            assert json.loads(answer)["outputs"][0]["shape"] == [4, 10]
    until(lambda: server.hub.repository.find("digits").in_flight == 0)


def test_a_chunked_body_that_grows_large_goes_the_long_way(server: Running):
    x = np.repeat(X, 100, 0)
    body, more = binary(x)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:30000], body[30000:])) + b"0\r\n\r\n"
    request = f"POST /v2/models/digits/infer HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{more}\r\n".encode()
    with connect(server) as connection, connection.makefile("rb") as stream:
        for _ in range(2):
            connection.sendall(request + chunks)
            text, answer = read(stream)
            assert text.startswith(b"HTTP/1.1 200")
            assert json.loads(answer)["outputs"][0]["shape"] == [400, 10]


def test_pipelined_requests_are_answered_in_order(server: Running):
    requests = []
    for at in range(12):
        body = as_json(X[: 1 + at % 4], id=str(at)) if at % 3 else b"{"
        requests.append(head(len(body), LONG if at % 4 == 3 else "") + body)
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"".join(requests))
        for at in range(12):
            answer = json.loads(read(stream)[1])
            assert answer.get("id") == (str(at) if at % 3 else None)


def test_who_leaves_is_not_computed_for_and_is_counted(digits_only: Path):
    with running(Settings(repository=digits_only, device="cpu", port=0, threads=1)) as server:
        engine = server.hub.repository.find("digits")
        entered, gate = threading.Event(), threading.Event()
        runtime, rows = engine.runtime, []

        class Held:
            provider, input_names = runtime.provider, runtime.input_names

            def run(self, inputs: Any, count: int) -> Any:
                rows.append(count)
                entered.set()
                assert gate.wait(60)
                return runtime.run(inputs, count)

            def close(self) -> None:
                runtime.close()

        engine.runtime = Held()
        stays, leaves = connect(server), connect(server)
        body, more = binary()
        with stays, leaves, stays.makefile("rb") as stream:
            stays.sendall(head(len(body), more) + body)
            assert entered.wait(60)
            leaves.sendall(head(len(body), more) + body)
            until(lambda: server.hub.batcher.waiting_rows(engine) == 4)
            leaves.close()
            until(lambda: server.hub.batcher.waiting_rows(engine) == 0)
            assert engine.in_flight == 1
            gate.set()
            assert read(stream)[0].startswith(b"HTTP/1.1 200")
        assert rows == [4]
        assert b'request_failure_total{model="digits",reason="client_gone"' in _metrics(server)


def test_overload_is_told_with_the_seconds_to_wait(digits_only: Path):
    settings = Settings(repository=digits_only, device="cpu", port=0, threads=1, max_queue_rows=4, max_request_rows=4)
    with running(settings) as server:
        engine = server.hub.repository.find("digits")
        gate, run = threading.Event(), engine.runtime.run
        entered = threading.Event()

        class Held:
            provider, input_names = engine.runtime.provider, engine.runtime.input_names

            def run(self, inputs: Any, count: int) -> Any:
                entered.set()
                assert gate.wait(60)
                return run(inputs, count)

            def close(self) -> None:
                pass

        engine.runtime = Held()
        body, more = binary()
        with connect(server) as first, connect(server) as second:
            first.sendall(head(len(body), more) + body)
            assert entered.wait(60)
            second.sendall(head(len(body), more) + body)
            until(lambda: server.hub.batcher.waiting_rows(engine) == 4)
            text, answer = ask(server, body, more)
            assert text.startswith(b"HTTP/1.1 503")
            assert re.search(rb"retry-after: [1-9]\d*\r\n", text)
            assert json.loads(answer)["error"].startswith("4 rows wait for model digits/1")
            gate.set()
            for connection in (first, second):
                with connection.makefile("rb") as stream:
                    assert read(stream)[0].startswith(b"HTTP/1.1 200")


def test_each_client_gets_its_own_rows_while_others_leave(server: Running):
    """Sixteen clients at once, over both ways, binary and JSON, some of whom leave in the middle."""
    engine = server.hub.repository.find("digits")
    chance = np.random.default_rng(11)
    inputs = [chance.random((1 + at % 5, 1, 8, 8)).astype(np.float32) for at in range(160)]
    wanted = [engine.run({"input": x})["logits"] for x in inputs]

    async def client(numbers: list[int], dice: random.Random) -> int:
        answered = 0
        reader, writer = await asyncio.open_connection(server.host, server.port)
        for number in numbers:
            x = inputs[number]
            body, more = (as_json(x, id=str(number)), "") if number % 2 else binary(x, priority=number % 4)
            writer.write(head(len(body), more + (LONG if number % 5 == 0 else "")) + body)
            if dice.random() < 0.15:
                writer.close()
                reader, writer = await asyncio.open_connection(server.host, server.port)
                continue
            text = await reader.readuntil(b"\r\n\r\n")
            if text.startswith(b"HTTP/1.1 100"):
                text = await reader.readuntil(b"\r\n\r\n")
            assert text.startswith(b"HTTP/1.1 200"), text
            answer = await reader.readexactly(int(re.search(rb"content-length: (\d+)", text)[1]))  # type: ignore[index]
            found = np.array(json.loads(answer)["outputs"][0]["data"], np.float32).reshape(wanted[number].shape)
            assert np.abs(found - wanted[number]).max() <= 1e-5 * np.abs(wanted[number]).max()
            answered += 1
        writer.close()
        return answered

    async def everybody() -> int:
        return sum(await asyncio.gather(*[client(list(range(at, 160, 16)), random.Random(at)) for at in range(16)]))

    assert asyncio.run(everybody()) > 100
    until(lambda: engine.in_flight == 0)
    assert server.hub.batcher.waiting_rows(engine) == 0


def _metrics(server: Running) -> bytes:
    with connect(server) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
        return read(stream)[1]
