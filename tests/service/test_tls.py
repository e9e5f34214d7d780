"""TLS over real sockets, with certificates made here by openssl."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from service_runs import PATIENCE, Running, running, times_open, until

from bnfold.cli import main
from bnfold.errors import BnfoldError
from service.settings import Settings
from service.tls import Certificate, check_certificate, read_end

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@dataclass(frozen=True)
class Pair:
    cert: Path
    key: Path

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text())

    def client(self) -> ssl.SSLContext:
        """What trusts this certificate alone."""
        return ssl.create_default_context(cafile=str(self.cert))

    def put(self, other: Pair) -> None:
        """Take the place of these files, as a renewal does."""
        for old, new in ((self.cert, other.cert), (self.key, other.key)):
            copy = new.with_suffix(".copy")
            shutil.copy(new, copy)
            copy.rename(old)


def make_pair(folder: Path, name: str, *options: str, days: int = 100) -> Pair:
    """A certificate for 127.0.0.1 that signs itself."""
    pair = Pair(folder / f"{name}.cert.pem", folder / f"{name}.key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj"]
    command += [f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", str(days)]
    command += ["-keyout", str(pair.key), "-out", str(pair.cert), *(options or ("-nodes",))]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    pair.key.chmod(0o600)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"), "first")


@pytest.fixture(scope="module")
def secure(digits_only: Path, pair: Pair) -> Iterator[Running]:
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=1, tls_cert=pair.cert, tls_key=pair.key,
        header_timeout=0.75, write_timeout=0.5,
    )  # fmt: skip
    with running(settings) as started:
        until(lambda: fetch_certificate(started) == pair.der)
        yield started


def fetch_certificate(server: Running) -> bytes | None:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((server.host, server.port), timeout=PATIENCE) as plain,
            context.wrap_socket(plain) as stream,
        ):
            return stream.getpeercert(binary_form=True)
    except OSError:
        return None


def url(server: Running) -> str:
    return f"https://{server.address}"


def test_it_answers_over_tls_and_the_client_can_verify_it(secure: Running, pair: Pair):
    with httpx.Client(base_url=url(secure), verify=pair.client(), timeout=PATIENCE) as client:
        assert client.get("/v2/health/ready").status_code == 200
        raw = {"Inference-Header-Content-Length": "0"}
        answer = client.post("/v2/models/digits/infer", content=bytes(256), headers=raw)
        assert (answer.status_code, answer.headers["bnfold-model"]) == (200, "digits")


def test_a_client_that_does_not_know_the_certificate_goes_no_further(secure: Running):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(url(secure), timeout=PATIENCE)


@pytest.mark.parametrize(
    ("version", "taken"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True)],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_versions_before_1_2_are_refused(secure: Running, pair: Pair, version: ssl.TLSVersion, taken: bool):
    context = pair.client()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # or this side would not even ask
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((secure.host, secure.port), timeout=PATIENCE) as plain:
        if taken:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as stream:
                assert stream.version() == version.name.replace("_", ".", 1).replace("TLSv1_", "TLSv1.")
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_what_is_no_greeting_is_not_waited_for(secure: Running, sent: bytes):
    with socket.create_connection((secure.host, secure.port), timeout=PATIENCE) as plain:
        plain.sendall(sent)
        try:
            found = plain.recv(65536)
        except ConnectionResetError:
            found = b""
        assert not found.startswith(b"HTTP")
    assert fetch_certificate(secure) is not None


def test_a_head_that_does_not_come_is_not_waited_for_over_tls_either(secure: Running, pair: Pair):
    with (
        socket.create_connection((secure.host, secure.port), timeout=PATIENCE) as plain,
        pair.client().wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=True) as stream,
    ):
        stream.sendall(b"GET /v2 HTTP/1.1\r\n")
        assert stream.recv(65536) == b""


def test_a_client_that_never_reads_is_cut_over_tls_too(secure: Running, pair: Pair):
    def cut() -> float:
        labels = {"model": "", "version": "", "reason": "slow_client"}
        return secure.hub.metrics.registry.get_sample_value("bnfold_inference_request_failure_total", labels) or 0.0

    before = cut()
    with socket.socket() as plain:
        plain.settimeout(PATIENCE)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        plain.connect((secure.host, secure.port))
        with pair.client().wrap_socket(plain, server_hostname="127.0.0.1") as stream:
            stream.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)
            until(lambda: cut() == before + 1)


def test_a_renewed_certificate_is_taken_without_a_restart(
    digits_only: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    used, renewed = make_pair(tmp_path, "used"), make_pair(tmp_path, "renewed")
    first = used.der
    settings = Settings(repository=digits_only, device="cpu", port=0, threads=1, tls_cert=used.cert, tls_key=used.key)
    with running(settings) as server:
        until(lambda: fetch_certificate(server) == first)
        kept = httpx.Client(base_url=url(server), verify=used.client(), timeout=PATIENCE)
        with kept:
            assert kept.get("/v2").status_code == 200
            shutil.copy(renewed.cert, used.cert)  # half a renewal
            until(lambda: "the certificate stays as it is" in caplog.text)
            assert fetch_certificate(server) == first
            used.put(renewed)
            until(lambda: fetch_certificate(server) == renewed.der)
            assert kept.get("/v2").status_code == 200
        used.key.unlink()
        until(lambda: caplog.text.count("the certificate stays as it is") >= 2)
        assert fetch_certificate(server) == renewed.der


@pytest.mark.parametrize("days", [1, 100, 365 * 40])
def test_the_end_of_a_certificate_is_what_openssl_says(tmp_path: Path, days: int):
    made = make_pair(tmp_path, "made", days=days)
    command = ["openssl", "x509", "-in", str(made.cert), "-noout", "-enddate"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().partition("=")[2]
    assert read_end(made.der) == datetime.strptime(said, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)


@pytest.mark.parametrize(("days", "warned"), [(3, True), (30, False)])
def test_the_log_warns_of_a_certificate_that_ends_soon(tmp_path: Path, caplog, days: int, warned: bool):
    made = make_pair(tmp_path, "made", days=days)
    certificate = Certificate(made.cert, made.key)
    for _ in range(3):
        certificate.look()
    assert len([record for record in caplog.records if "ends on" in record.message]) == warned
    assert certificate.ends - datetime.now(UTC) < timedelta(days=days)


def test_a_damaged_certificate_is_no_traceback(pair: Pair):
    der = pair.der
    for at in range(120):
        for value in (0x00, 0x30, 0x80, 0x84, 0xFF):
            try:
                read_end(der[:at] + bytes([value]) + der[at + 1 :])
            except (ValueError, IndexError):
                continue
        with pytest.raises((ValueError, IndexError)):
            read_end(der[:at])


def spoil(pair: Pair, folder: Path, how: str) -> Settings:
    cert, key = folder / "cert.pem", folder / "key.pem"
    shutil.copy(pair.cert, cert)
    shutil.copy(pair.key, key)
    if how == "no cert":
        cert.unlink()
    elif how == "no key":
        key.unlink()
    elif how == "swapped":
        cert, key = key, cert
    elif how == "empty":
        cert.write_text("")
    elif how == "damaged":
        cert.write_text(cert.read_text()[:200] + "AAAA" + cert.read_text()[204:])
    elif how == "other key":
        shutil.copy(make_pair(folder, "other").key, key)
    elif how == "password":
        key = make_pair(folder, "locked", "-passout", "pass:a-secret-word").key
    return Settings(tls_cert=cert, tls_key=key)


@pytest.mark.parametrize("how", ["no cert", "no key", "swapped", "empty", "damaged", "other key", "password"])
def test_files_that_cannot_be_used_are_one_sentence(pair: Pair, tmp_path: Path, how: str):
    with pytest.raises(BnfoldError) as refusal:
        check_certificate(spoil(pair, tmp_path, how))
    assert "--tls-" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "PRIVATE" not in str(refusal.value)


@pytest.mark.parametrize("place", ["tls_cert", "tls_key"])
def test_a_folder_in_the_place_of_a_file_is_one_sentence_and_not_kept_open(pair: Pair, tmp_path: Path, place: str):
    paths = {"tls_cert": pair.cert, "tls_key": pair.key, place: tmp_path}
    with pytest.raises(BnfoldError, match="is no regular file"):
        check_certificate(Settings(**paths))
    assert times_open(tmp_path) == 0


def test_the_command_ends_with_2_before_it_loads_a_model(pair: Pair, digits_only: Path, tmp_path: Path, capsys):
    settings = spoil(pair, tmp_path, "other key")
    words = ["--tls-cert", str(settings.tls_cert), "--tls-key", str(settings.tls_key), "--port", "0", "--json"]
    assert main(["serve", str(digits_only), *words]) == 2
    out, err = capsys.readouterr()
    assert "is not the key of" in json.loads(out)["error"]
    assert "Traceback" not in err


def _says_live(port: int, pair: Pair) -> bool:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    trusted = grpc.ssl_channel_credentials(pair.cert.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{port}", trusted) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=PATIENCE).live
        except grpc.RpcError:
            return False


def test_grpc_speaks_tls_too_and_takes_a_renewed_certificate(digits_only: Path, tmp_path: Path):
    used, renewed, stranger = (make_pair(tmp_path, name) for name in ("used", "renewed", "stranger"))
    first = Pair(tmp_path / "first.pem", used.key)
    shutil.copy(used.cert, first.cert)
    settings = Settings(
        repository=digits_only, device="cpu", port=0, threads=1, tls_cert=used.cert, tls_key=used.key, grpc_port=0
    )
    with running(settings) as server:
        port = server.app.state.grpc_port
        assert _says_live(port, first)
        assert not _says_live(port, stranger)
        shutil.copy(renewed.cert, used.cert)  # half a renewal
        assert _says_live(port, first)
        used.put(renewed)
        assert _says_live(port, renewed)
        assert not _says_live(port, first)
