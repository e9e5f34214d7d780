"""T5 through a server: the real one, and strangers that speak its protocol and change a number."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_networks import build_digits, dense_network, save
from service_runs import ROOT, Running, running

from bnfold import build_bundle
from bnfold.bundle import Bundle, load_bundle
from bnfold.parity.evidence import Evidence
from bnfold.parity.runtimes import Cell, RuntimeMatrix, check_runtimes
from bnfold.parity.runtimes import server as server_module
from bnfold.parity.runtimes.places import Place
from bnfold.runtime import open_session, run
from service.settings import Settings

DIGITS = ROOT / "models" / "digits-cnn" / "1"
METADATA = {
    "name": "digits-cnn",
    "versions": ["1"],
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
}


ROWS = 16


@pytest.fixture(autouse=True)
def _one_place_and_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnfold.parity.runtimes.trials.MAX_ROWS", ROWS)
    monkeypatch.setattr("bnfold.parity.runtimes.matrix.list_places", lambda: (Place("CPU with 1 thread", "cpu", 1),))


@pytest.fixture(scope="module")
def digits_server() -> Iterator[Running]:
    with running(Settings(repository=ROOT / "models", device="cpu", port=0, threads=2)) as started:
        yield started


def check(bundle: Path | Bundle, url: str) -> RuntimeMatrix:
    found = check_runtimes(Evidence(bundle if isinstance(bundle, Bundle) else load_bundle(bundle)), url=url)
    assert all("\n" not in sentence for sentence in found.sentences())
    json.dumps(found.to_dict(), allow_nan=False)
    return found


def of_server(found: RuntimeMatrix) -> list[Cell]:
    return [cell for cell in found.cells if cell.place.startswith("server")]


# ---------------------------------------------------------------------------------------------------- the real server


def test_the_server_gives_the_bits_of_the_local_run_through_every_door(
    digits_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnfold.parity.runtimes.trials.MAX_ROWS", 64)
    found = check(DIGITS, digits_server.url)
    assert found.holds is True, found.sentences()
    cells = of_server(found)
    assert {(cell.door, cell.batch) for cell in cells} == {
        (door, batch) for door in ("v2 binary", "v2 JSON", "/predict") for batch in (1, 2, 7, 64)
    }
    assert {cell.difference for cell in cells} == {0.0}
    assert {cell.holds for cell in cells} == {True}
    assert {cell.provider for cell in cells} == {"CPUExecutionProvider"}
    assert all(cell.agreeing == cell.rows for cell in cells)
    assert [one.identical for one in found.invariances if one.place.startswith("server")] == [True]
    digest = load_bundle(DIGITS).manifest.files["model.onnx"]
    assert found.server == {
        "url": digits_server.url, "serves_this_bundle": True, "model_digests": [f"sha256:{digest}"],
    }  # fmt: skip
    assert found.sentences() == ()


@pytest.mark.parametrize("name", ["digits", "pair", "free", "mixing"])
def test_several_tensors_free_sizes_and_rows_that_mix(server: Running, repository: Path, name: str) -> None:
    found = check(repository / name / "1", server.url)
    assert found.holds is True, found.sentences()
    cells = of_server(found)
    assert len([cell for cell in cells if not cell.absent]) == 3 * len({cell.batch for cell in cells})
    assert {cell.difference for cell in cells} == {0.0}


@pytest.mark.parametrize(("classes", "kind"), [(12, "probabilities"), (1001, "logits")])
def test_probabilities_and_more_classes_than_predict_names(tmp_path: Path, classes: int, kind: str) -> None:
    """The exporter may leave the number of classes open, so that the outputs alone tell it."""
    network = dense_network("N", classes, "Softmax" if kind == "probabilities" else "Identity")
    source = save(network, tmp_path / "wide.onnx")
    bundle = build_bundle(source, tmp_path / "models" / "wide", output_kind=kind)
    with running(Settings(repository=tmp_path / "models", device="cpu", port=0, threads=1)) as started:
        found = check(bundle, started.url)
    assert found.holds is True, found.sentences()
    asked = [cell for cell in of_server(found) if cell.door == "/predict"]
    if classes > 1000:
        assert [cell.absent for cell in asked] == ["/predict names 1,000 classes at most, the network has 1,001"]
    else:
        assert {cell.difference for cell in asked} == {0.0}


def test_a_fixed_batch_size_has_no_predict(tmp_path: Path) -> None:
    source = save(dense_network(5, 3), tmp_path / "fixed.onnx")
    bundle = build_bundle(source, tmp_path / "models" / "fixed")
    with running(Settings(repository=tmp_path / "models", device="cpu", port=0, threads=1)) as started:
        found = check(bundle, started.url)
    assert found.holds is True, found.sentences()
    assert [(cell.door, cell.batch, bool(cell.absent)) for cell in of_server(found)] == [
        ("v2 binary", 5, False), ("v2 JSON", 5, False), ("/predict", None, True),
    ]  # fmt: skip


def test_a_request_that_is_too_large_for_the_server_is_not_present() -> None:
    settings = Settings(repository=ROOT / "models", device="cpu", port=0, threads=1, max_request_rows=7)
    with running(settings) as started:
        found = check(DIGITS, started.url)
    assert found.holds is True, found.sentences()
    absent = [cell for cell in of_server(found) if cell.absent]
    assert [(cell.door, cell.batch) for cell in absent] == [
        (door, ROWS) for door in ("v2 binary", "v2 JSON", "/predict")
    ]
    assert all("answered 400" in cell.sentence() and "at most 7" in cell.sentence() for cell in absent)


def test_another_bundle_under_another_name_is_said_plainly(server: Running) -> None:
    found = check(DIGITS, server.url)
    assert found.holds is False
    (cell,) = of_server(found)
    assert "it does not serve digits-cnn/1: it answered 404" in cell.sentence()
    assert found.server is not None
    assert found.server["serves_this_bundle"] is False


def test_another_version_of_the_same_network_is_told_by_its_digest_and_its_answers(tmp_path: Path) -> None:
    """The same name, version and shapes: only the weights are others."""
    own = build_digits(tmp_path / "own", tmp_path / "sources", seed=0)
    build_digits(tmp_path / "other", tmp_path / "sources", seed=1)
    with running(Settings(repository=tmp_path / "other", device="cpu", port=0, threads=1)) as started:
        found = check(own, started.url)
    assert found.holds is False
    first, *cells = of_server(found)
    assert "it runs another model.onnx under this name" in first.sentence()
    assert {cell.holds for cell in cells} == {False}


# ----------------------------------------------------------------------------------------------------------- strangers


@dataclass(frozen=True)
class Said:
    status: int
    body: bytes
    headers: dict[str, str]


def said(document: Any, status: int = 200, **headers: str) -> Said:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Said(status, body, {key.replace("_", "-"): value for key, value in headers.items()})


@contextmanager
def stranger(answer: Callable[[str, bytes, Any], Said]) -> Iterator[str]:
    """A server that answers as it is told: path, body, headers -> what is said."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = answer(self.path, body, self.headers)
            self.send_response(found.status)
            for name, value in {"Content-Length": str(len(found.body)), **found.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(found.body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has left is none of its business."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Imitation:
    """The v2 doors of a server of digits-cnn, written by hand; `change` has its way with the logits."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray] = lambda logits: logits, **headers: str) -> None:
        self._session = open_session(load_bundle(DIGITS).session_source(), optimise=True)
        self._change, self._headers = change, headers

    def __call__(self, path: str, body: bytes, headers: Any) -> Said:
        if path == "/v2/models/digits-cnn/versions/1":
            return said(METADATA)
        if not path.startswith("/v2/models/digits-cnn/versions/1/infer"):
            return said({"error": "nothing here"}, 404)
        length = int(headers.get("Inference-Header-Content-Length", len(body)))
        (entry,) = json.loads(body[:length])["inputs"]
        values = np.frombuffer(body[length:], "<f4") if length < len(body) else np.array(entry["data"], np.float32)
        logits = self._change(run(self._session, {"input": values.reshape(entry["shape"])})["logits"].copy())
        return self.write(logits, binary=length < len(body))

    def write(self, logits: np.ndarray, *, binary: bool) -> Said:
        output: dict[str, Any] = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape)}
        if not binary:
            return said({"outputs": [{**output, "data": logits.reshape(-1).tolist()}]}, **self._headers)
        output["parameters"] = {"binary_data_size": logits.nbytes}
        head = json.dumps({"outputs": [output]}).encode()
        return said(head + logits.tobytes(), Inference_Header_Content_Length=str(len(head)), **self._headers)


def changed(by: float, column: int = 3) -> Callable[[np.ndarray], np.ndarray]:
    def change(logits: np.ndarray) -> np.ndarray:
        logits[0, column] += np.float32(by)
        return logits

    return change


def one_ulp(logits: np.ndarray) -> np.ndarray:
    logits[0, 0] = np.nextafter(logits[0, 0], np.float32(np.inf))
    return logits


def test_an_imitation_that_changes_nothing_holds() -> None:
    """The positive control: whatever fails below fails for the number, not for the imitation."""
    with stranger(Imitation()) as url:
        found = check(DIGITS, url)
    assert found.holds is True, found.sentences()
    assert [cell.difference for cell in of_server(found) if not cell.absent] == [0.0] * 8
    assert any("does not say which file it runs" in note for note in found.notes)
    assert {cell.door for cell in of_server(found) if cell.absent} == {"/predict"}


@pytest.mark.parametrize("change", [changed(1e-3), changed(-30), lambda logits: logits[:, ::-1].copy()])
def test_one_logit_changed_fails(change: Callable) -> None:
    with stranger(Imitation(change)) as url:
        found = check(DIGITS, url)
    assert found.holds is False
    assert {cell.holds for cell in of_server(found) if not cell.absent} == {False}
    assert "the folded model is" in found.sentences()[0]
    assert url in found.sentences()[0]


def test_rows_of_another_order_fail() -> None:
    with stranger(Imitation(lambda logits: logits[::-1].copy())) as url:
        found = check(DIGITS, url)
    cells = [cell for cell in of_server(found) if not cell.absent]
    assert {cell.holds for cell in cells if cell.batch == 1} == {True}
    assert {cell.holds for cell in cells if cell.batch != 1} == {False}


def test_one_ulp_holds_and_is_told() -> None:
    with stranger(Imitation(one_ulp)) as url:
        found = check(DIGITS, url)
    assert found.holds is True
    sentences = [cell.sentence() for cell in of_server(found) if not cell.absent]
    assert all("not bit for bit what this machine computes" in sentence for sentence in sentences)
    assert all("(1 ulp)" in sentence for sentence in sentences)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_fails(value: float) -> None:
    def change(logits: np.ndarray) -> np.ndarray:
        logits[0, 0] = value
        return logits

    with stranger(Imitation(change)) as url:
        found = check(DIGITS, url)
    cells = {cell.door: cell for cell in of_server(found) if cell.batch == 1}
    assert cells["v2 binary"].holds is False
    assert "NaN or infinite" in cells["v2 binary"].problem
    assert cells["v2 JSON"].holds is False
    assert "no JSON" in cells["v2 JSON"].problem  # what the imitation writes for it, JSON does not have


def test_another_file_under_the_same_name_fails() -> None:
    with stranger(Imitation(bnfold_model_digest="sha256:" + 64 * "0")) as url:
        found = check(DIGITS, url)
    assert found.holds is False
    assert "it runs another model.onnx under this name, sha256:000" in found.sentences()[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 11]}]}, "its outputs of digits-cnn/1 are"),
        ({"inputs": [{"name": "input", "datatype": "FP16", "shape": [-1, 1, 8, 8]}]}, "its inputs of digits-cnn/1"),
        ({"inputs": []}, "its inputs of digits-cnn/1 are"),
        ({"name": "other"}, "but 'other'"),
        ({"outputs": [{"name": "lo\x1b[2Jgits", "datatype": "FP32", "shape": []}]}, "lo?[2Jgits"),
        ({"outputs": 3}, "no metadata"),
        ({"outputs": [{"name": "logits"}]}, "no metadata"),
    ],
)
def test_a_server_of_something_else_is_said_plainly(change: dict, words: str) -> None:
    with stranger(lambda *_: said({**METADATA, **change})) as url:
        found = check(DIGITS, url)
    assert found.holds is False
    (cell,) = of_server(found)
    assert words in cell.sentence()


@pytest.mark.parametrize(
    ("answer", "holds", "words"),
    [
        (said({"error": "no proven version"}, 503), None, "it answered 503: no proven version"),
        (said(b"<html>", 502), None, "it answered 502: Bad Gateway"),
        (said(b"", 302, Location="http://127.0.0.1:9/"), None, "it answered 302: Found"),
        (said({"error": "who are you\x07"}, 401), None, "it answered 401: who are you?"),
        (said(b"<html>hello</html>"), False, "no metadata of the Open Inference Protocol"),
        (said(b'{"name": NaN}'), False, "no metadata"),
        (said(b"[" * 100_000), False, "no metadata"),
    ],
)
def test_what_a_server_says_instead_is_one_sentence(answer: Said, holds: bool | None, words: str) -> None:
    with stranger(lambda *_: answer) as url:
        found = check(DIGITS, url)
    assert found.holds is holds
    (cell,) = of_server(found)
    assert words in cell.sentence()


def binary(document: Any, blob: bytes = b"") -> Said:
    head = json.dumps(document).encode()
    return said(head + blob, Inference_Header_Content_Length=str(len(head)))


LOGITS = {"name": "logits", "datatype": "FP32", "shape": [1, 10]}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (said(b"<html>"), "no JSON"),
        (said({"outputs": 3}), "no list of outputs"),
        (said({"outputs": []}), "no output 'logits'"),
        (said({"outputs": [{**LOGITS, "name": "other"}]}), "the output 'other'"),
        (said({"outputs": [{**LOGITS, "datatype": "FP64"}]}), "datatype 'FP64'"),
        (said({"outputs": [{**LOGITS, "shape": [1, 11]}]}), "has shape [1, 11]"),
        (said({"outputs": [{**LOGITS, "shape": [2**50, 10]}]}), "has shape"),
        (said({"outputs": [{**LOGITS, "shape": None}]}), "has shape None"),
        (said({"outputs": [LOGITS]}), "not the 10 numbers"),
        (said({"outputs": [{**LOGITS, "data": [1.0] * 9}]}), "not the 10 numbers"),
        (said({"outputs": [{**LOGITS, "data": ["1"] * 10}]}), "not the 10 numbers"),
        (said({"outputs": [{**LOGITS, "data": [True] * 10}]}), "not the 10 numbers"),
        (said({"outputs": [{**LOGITS, "data": [10**400] * 10}]}), "beyond float32"),
        (binary({"outputs": [{**LOGITS, "parameters": {"binary_data_size": 40}}]}, b"\0" * 39), "has 40 bytes"),
        (binary({"outputs": [{**LOGITS, "parameters": {"binary_data_size": 44}}]}, b"\0" * 44), "has 44 bytes"),
        (binary({"outputs": [{**LOGITS, "parameters": {"binary_data_size": 40}}]}, b"\0" * 41), "1 bytes follow"),
        (said(b"{}", Inference_Header_Content_Length="99"), "header length '99'"),
        (said(b"{}", Inference_Header_Content_Length="-1"), "header length '-1'"),
    ],
)
def test_an_answer_that_is_none_fails_in_one_sentence(answer: Said, words: str) -> None:
    def reply(path: str, *_: Any) -> Said:
        return said(METADATA) if path.endswith("/versions/1") else answer

    with stranger(reply) as url:
        found = check(DIGITS, url)
    assert found.holds is False
    assert words in next(cell for cell in of_server(found) if cell.batch == 1).sentence()


@pytest.mark.parametrize(
    ("status", "holds", "words"),
    [
        (500, False, "answered 500: it broke"),
        (503, None, "answered 503: it broke"),
        (400, None, "it took no batch through any door: it answered 400: it broke"),
    ],
)
def test_a_server_that_refuses_every_batch(status: int, holds: bool | None, words: str) -> None:
    def reply(path: str, *_: Any) -> Said:
        return said(METADATA) if path.endswith("/versions/1") else said({"error": "it broke"}, status)

    with stranger(reply) as url:
        found = check(DIGITS, url)
    assert found.holds is holds
    assert any(words in sentence for sentence in found.sentences())


def test_no_server_leaves_it_open() -> None:
    with stranger(lambda *_: said({})) as url:
        pass
    found = check(DIGITS, url)
    assert found.holds is None
    (cell,) = of_server(found)
    assert "gave no answer" in cell.sentence()
    assert cell.to_dict()["status"] == "cannot tell"


def test_a_server_that_goes_away_leaves_it_open() -> None:
    def reply(path: str, *_: Any) -> Said:
        if path.endswith("/versions/1"):
            return said(METADATA)
        return said(b"{}", Content_Length="100")  # and nothing more

    with stranger(reply) as url:
        found = check(DIGITS, url)
    assert found.holds is None
    assert [cell.door for cell in of_server(found)] == ["v2 binary"]  # the other doors are not waited for


@pytest.mark.parametrize("at", ["metadata", "infer"])
def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    monkeypatch.setattr(server_module, "SECONDS", 0.2)
    over = threading.Event()

    def reply(path: str, *_: Any) -> Said:
        if at == "metadata" or not path.endswith("/versions/1"):
            over.wait(60)
        return said(METADATA)

    with stranger(reply) as url:
        found = check(DIGITS, url)
        over.set()
    assert found.holds is None
    assert any("timed out" in sentence for sentence in found.sentences())


@pytest.mark.parametrize("url", ["http://[::1", "ftp://127.0.0.1", "127.0.0.1:8000", "http://", "file:///etc/passwd"])
def test_what_is_no_address_is_one_sentence(url: str) -> None:
    found = check(DIGITS, url)
    assert found.holds is None
    assert "is no address of a server" in of_server(found)[0].sentence()


def test_a_password_is_not_repeated() -> None:
    found = check(DIGITS, "http://somebody:secret@127.0.0.1:1")
    assert found.holds is None
    assert "secret" not in json.dumps(found.to_dict())
    assert "no address of a server" in of_server(found)[0].sentence()


# ------------------------------------------------------------------------------------------------- /predict, imitated


class Person(Imitation):
    """The /predict of a server, whose document `twist` has its way with."""

    def __init__(self, twist: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self._twist = twist

    def __call__(self, path: str, body: bytes, headers: Any) -> Said:
        if not path.startswith("/models/digits-cnn/predict"):
            return super().__call__(path, body, headers)
        rows = np.array(json.loads(body)["instances"], np.float32)
        logits = run(self._session, {"input": rows})["logits"].astype(np.float64)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances = raised / raised.sum(axis=1, keepdims=True)
        predictions = []
        for scores, row in zip(logits, chances, strict=True):
            order = np.argsort(-scores, kind="stable").tolist()
            top = [{"class": at, "label": str(at), "probability": float(row[at])} for at in order]
            predictions.append({**top[0], "top": top})
        document = {"model": "digits-cnn", "version": "1", "predictions": predictions}
        self._twist(document)
        return said(document)


def predictions_of(twist: Callable[[dict[str, Any]], Any]) -> list[Cell]:
    with stranger(Person(twist)) as url:
        return [cell for cell in of_server(check(DIGITS, url)) if cell.door == "/predict"]


def test_an_untwisted_prediction_holds() -> None:
    cells = predictions_of(dict)
    assert [(cell.holds, cell.difference) for cell in cells] == [(True, 0.0)] * 4


def unlikely(document: dict[str, Any]) -> None:
    """The least likely class of the first row comes to be 1e-3 likelier; the order stays."""
    document["predictions"][0]["top"][-1]["probability"] += 1e-3
    document["predictions"][0]["top"].sort(key=lambda entry: -entry["probability"])


@pytest.mark.parametrize(
    ("twist", "words"),
    [
        (unlikely, "the folded model is"),
        (lambda d: d.update(version="2"), "version '2'"),
        (lambda d: d.update(predictions=3), "no list of predictions"),
        (lambda d: d["predictions"].append(d["predictions"][0]), "predictions, expected"),
        (lambda d: d["predictions"][0].update({"class": 11}), "not the first in its list"),
        (lambda d: d["predictions"][0]["top"].pop(), "does not name 10 classes"),
        (lambda d: d["predictions"][0]["top"][1].update({"label": "nine"}), "calls class"),
        (lambda d: d["predictions"][0]["top"][1].update({"class": 10}), "has a class 10"),
        (lambda d: d["predictions"][0]["top"][1].update({"probability": "1"}), "with the probability '1'"),
        (lambda d: d["predictions"][0]["top"][1].update(d["predictions"][0]["top"][2]), "each class once"),
    ],
)
def test_a_twisted_prediction_fails(twist: Callable, words: str) -> None:
    cells = predictions_of(twist)
    assert cells[0].holds is False
    assert words in cells[0].sentence()
