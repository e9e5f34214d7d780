"""`bnfold.client` against real servers."""

from __future__ import annotations

import inspect
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from service_networks import build_digits
from service_runs import PATIENCE, ROOT, Running, running

from bnfold.client import Client
from bnfold.errors import BnfoldError, DataError, ServerError
from service.settings import Settings

KEY, ADMIN = "infer-key-0123456789", "admin-key-0123456789"
X = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def asked(server: Running) -> Iterator[Client]:
    with Client(server.url, timeout=PATIENCE) as client:
        yield client


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A listener that gives one answer a connection and keeps what was asked."""
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(2**16))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join(PATIENCE)
    assert not thread.is_alive()


def said(status: int, body: bytes = b"{}", *headers: bytes) -> bytes:
    head = [b"HTTP/1.1 %d X" % status, b"Connection: close", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def test_inference_gives_arrays_and_their_proof(asked: Client, server: Running):
    engine = server.hub.repository.find("digits")
    found = asked.infer("digits", {"input": X}, version=1, timeout=20, priority=1)
    wanted = engine.run({"input": X})["logits"]
    assert found.outputs["logits"].tobytes() == wanted.tobytes()
    assert found.outputs["logits"].shape == (3, 10)
    proof = found.proof
    assert (proof.model, proof.version, proof.digest) == ("digits", "1", f"sha256:{engine.digest.split(':')[-1]}")
    assert proof.provider == "CPUExecutionProvider"
    assert proof.request_id != asked.infer("digits", {"input": X}).proof.request_id
    # The negative control: another input has other outputs.
    assert asked.infer("digits", {"input": X + 1}).outputs["logits"].tobytes() != wanted.tobytes()


def test_several_inputs_and_chosen_outputs(asked: Client):
    left, right = np.full((2, 4), 3, np.float32), np.zeros((2, 4), np.float32)
    found = asked.infer("pair", {"left": left, "right": right}, ["doubled"])
    assert list(found.outputs) == ["doubled"]
    assert found.outputs["doubled"].tolist() == (2 * left).tolist()
    left[0, 0] = np.nan
    assert np.isnan(asked.infer("pair", {"left": left, "right": right}).outputs["doubled"][0, 0])


def test_predictions_of_a_picture_and_of_rows(server: Running):
    with running(Settings(repository=ROOT / "models", device="cpu", port=0, threads=1)) as alone:
        picture = ROOT / "docs" / "digit-5.png"
        with Client(alone.url) as client:
            for data in (picture, str(picture), picture.read_bytes()):
                found = client.predict(data, top=2)
                best = found.rows[0].best
                assert best is not None
                assert (best.label, found.proof.model, len(found.rows[0].top)) == ("5", "digits-cnn", 2)
                assert found.rows[0].top[0] == best
    with Client(server.url) as client:
        rows = client.predict(X, "digits").rows
        assert rows == client.predict(X.reshape(3, 64).tolist(), "digits").rows
        assert len(rows) == 3
        raw = client.predict({"left": np.ones((2, 4)), "right": np.ones((2, 4))}, "pair").rows
        assert raw[1].best is None
        assert raw[1].outputs is not None
        assert raw[1].outputs["doubled"] == [2, 2, 2, 2]


def test_what_the_server_says_of_its_models(asked: Client):
    assert asked.ready()
    assert asked.ready("digits", 1)
    assert not asked.ready("digits", 2)
    listed = {(model.name, model.version): model.state for model in asked.models()}
    assert listed[("digits", "1")] == "READY"
    metadata = asked.metadata("digits")
    assert metadata.versions == ("1",)
    assert [(port.name, port.datatype, port.shape) for port in metadata.inputs] == [("input", "FP32", (-1, 1, 8, 8))]
    assert asked.parity("digits")["served"]["gate"]["passed"] is True
    before = asked.statistics("pair")[0]["inference_count"]
    asked.infer("pair", {"left": np.ones((5, 4), np.float32), "right": np.ones((5, 4), np.float32)})
    assert asked.statistics("pair")[0]["inference_count"] == before + 5
    assert {entry["name"] for entry in asked.statistics()} >= {"digits", "pair"}


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (lambda client: client.infer("stranger", {"input": X}), 404),
        (lambda client: client.infer("a/../digits", {"input": X}), 404),
        (lambda client: client.infer("digits", {"input": X[:, :, :7]}), 400),
        (lambda client: client.infer("digits", {"input": X.astype(np.float64)}), 400),
        (lambda client: client.metadata("digits", 9), 404),
        (lambda client: client.predict(b"no picture", "digits"), 400),
        (lambda client: client.load("digits"), 501),
    ],
)
def test_an_error_has_its_status_and_one_sentence(asked: Client, call, status: int):
    with pytest.raises(ServerError) as raised:
        call(asked)
    assert raised.value.status == status
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, BnfoldError)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.infer("digits", {"input": np.array(["a"])}),
        lambda client: client.predict([[float("nan")]], "digits"),
        lambda client: client.predict(Path("/nowhere/a.png")),
        lambda client: client.metadata(".."),
        lambda _: Client("http://127.0.0.1:1", key="two words"),
        lambda _: Client("http://127.0.0.1:1", key="line\r\nX: y"),
        lambda _: Client("http://127.0.0.1:1", key=Path("/nowhere/key")),
        lambda _: Client("https://127.0.0.1:1", ca=Path("/nowhere/ca.pem")),
        lambda _: Client("http://127.0.0.1:1/?a"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is(asked: Client, call):
    with pytest.raises(DataError) as raised:
        call(asked)
    assert "words" not in str(raised.value)  # a key is never shown


def test_no_answer_is_a_status_of_0():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with Client(url) as client, pytest.raises(ServerError, match="gave no answer") as raised:
        client.ready()
    assert raised.value.status == 0


def test_threads_share_a_client_and_connections_are_kept(server: Running):
    with Client(server.url, timeout=PATIENCE) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> bool:
            x = np.full((1, 4), number, np.float32)
            return bool((client.infer("pair", {"left": x, "right": x}).outputs["doubled"] == 2 * number).all())

        assert all(pool.map(ask, range(200)))
        assert 1 <= len(client._session._idle) <= 8
    assert not client._session._idle


def test_a_connection_that_the_server_has_closed_is_replaced(repository: Path):
    settings = Settings(repository=repository, device="cpu", port=0, threads=1, keep_alive_timeout=0.05)
    with running(settings) as hasty, Client(hasty.url) as client:
        assert client.ready()
        (kept,) = client._session._idle
        assert kept.sock.recv(1) == b""  # the server has gone from it
        assert client.ready()


BUSY = said(503, b'{"error": "full"}', b"Retry-After: 0")


def test_503_is_asked_again_as_often_as_was_said():
    index = said(200, b"[]")
    with answering(BUSY, BUSY, index) as (url, heard), Client(url) as client:
        assert client.models() == ()
    assert len(heard) == 3
    with answering(BUSY, BUSY) as (url, heard), Client(url, retries=1) as client:
        with pytest.raises(ServerError, match="full") as raised:
            client.models()
        assert raised.value.status == 503
    assert len(heard) == 2


@pytest.mark.parametrize(
    ("answer", "call"),
    [
        (said(503, b'{"error": "full"}', b"Retry-After: 3000"), lambda client: client.models()),
        (said(503, b'{"error": "full"}'), lambda client: client.models()),
        (said(500, b'{"error": "full"}', b"Retry-After: 0"), lambda client: client.models()),
        (BUSY, lambda client: client.load("digits")),
        (BUSY, lambda client: client.unload("digits")),
    ],
)
def test_nothing_else_is_asked_again(answer: bytes, call):
    with answering(answer) as (url, heard), Client(url) as client, pytest.raises(ServerError, match="full"):
        call(client)
    assert len(heard) == 1


def test_readiness_is_asked_once():
    with answering(BUSY) as (url, heard), Client(url) as client:
        assert client.ready() is False
    assert len(heard) == 1


@pytest.mark.parametrize(
    "body", [b"no JSON", b"[]", b'{"predictions": 3}', b'{"inputs": {}, "outputs": [{"shape": []}]}']
)
def test_an_answer_that_is_none_is_one_sentence(body: bytes):
    for call in (
        lambda client: client.predict(b"x"),
        lambda client: client.metadata("m"),
        lambda client: client.infer("m", {"x": X}),
        lambda client: client.statistics(),
    ):
        with answering(said(200, body)) as (url, _), Client(url) as client, pytest.raises(DataError):
            call(client)


def test_keys_and_loading(tmp_path: Path):
    build_digits(tmp_path / "models", tmp_path / "sources")
    files = {}
    for name, key in (("infer", KEY), ("admin", ADMIN)):
        files[name] = tmp_path / name
        files[name].write_text(f"# {name}\n{key}\n")
        files[name].chmod(0o600)
    settings = Settings(
        repository=tmp_path / "models", device="cpu", port=0, threads=1, api_key_file=files["infer"],
        admin_key_file=files["admin"],
    )  # fmt: skip
    with running(settings) as locked:
        with Client(locked.url) as client, pytest.raises(ServerError) as raised:
            client.metadata("digits")
        assert raised.value.status == 401
        with Client(locked.url, key=KEY) as client:
            assert client.metadata("digits").name == "digits"
            with pytest.raises(ServerError) as raised:
                client.unload("digits")
            assert raised.value.status == 403
        with Client(locked.url, key=files["infer"], admin_key=files["admin"]) as client:
            client.unload("digits")
            assert not client.ready("digits")
            client.load("digits", version_policy="all")
            assert client.ready("digits")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_of_ones_own_is_trusted_when_it_is_named(digits_only: Path, tmp_path: Path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    key.chmod(0o600)
    settings = Settings(repository=digits_only, device="cpu", port=0, threads=1, tls_cert=cert, tls_key=key)
    with running(settings) as secure:
        url = f"https://{secure.address}"
        with Client(url, ca=cert) as client:
            assert client.infer("digits", {"input": X}).outputs["logits"].shape == (3, 10)
        with Client(url) as client, pytest.raises(ServerError, match="certificate") as raised:
            client.ready()
        assert raised.value.status == 0


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch):
    with answering(said(200, b"[]")) as (url, heard):
        monkeypatch.setenv("http_proxy", url.replace("://", "://me:secret@"))
        monkeypatch.delenv("no_proxy", raising=False)
        with Client("http://models.invalid:8000/behind") as client:
            assert client.models() == ()
    assert heard[0].startswith(b"POST http://models.invalid:8000/behind/v2/repository/index HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in heard[0]


def test_importing_it_loads_neither_torch_nor_a_runtime():
    script = (
        "import sys, bnfold.client; print([m for m in ('torch', 'onnx', 'onnxruntime', 'fastapi') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_every_public_call_is_typed_and_described():
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if not name.startswith("_"):
            assert method.__doc__, name
            assert "return" in method.__annotations__, name
