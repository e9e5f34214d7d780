"""`bnfold serve`, and `bnfold predict` against it: real processes on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_networks import save_network
from onnx import numpy_helper
from PIL import Image

from bnfold.build import build_bundle
from bnfold.cli import main
from bnfold.preprocessing import Preprocessing

LABELS = ("circle", "square", "triangle")
STOP_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with one proven version of one model."""
    folder = tmp_path_factory.mktemp("served")
    build_bundle(
        save_network(folder / "small.onnx"),
        folder / "models" / "small",
        labels=LABELS,
        preprocessing=Preprocessing("L", 8, 8, 1 / 255, (0.0,), (1.0,)),
        output_kind="logits",
    )
    return folder / "models"


def start(repository: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bnfold", "serve", str(repository), "--port", "0", "--device", "cpu", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    """A server that is stopped with SIGTERM, and has to end with 0."""
    process = start(repository, "--json")
    try:
        assert process.stdout is not None
        said = "".join(iter(process.stdout.readline, "}\n")) + "}"
        yield json.loads(said)["url"]
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, ""), err
    assert "Traceback" not in err


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment is not for loopback."""
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)


pytestmark = pytest.mark.usefixtures("no_proxy")


def test_ready_and_metadata_answer_at_the_announced_url(url):
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=30) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{url}/v2/models/small", timeout=30) as answer:
        assert json.load(answer)["name"] == "small"


@pytest.mark.parametrize("kind", ["png", "npy", "json"])
def test_predict_from_the_server_is_the_prediction_of_the_bundle(url, repository, tmp_path, capsys, kind):
    pixels = np.random.default_rng(11).integers(0, 256, (8, 8), np.uint8)
    sample = (pixels / np.float32(255)).astype(np.float32)[np.newaxis, np.newaxis]
    file = tmp_path / f"input.{kind}"
    if kind == "png":
        Image.fromarray(pixels).save(file)
    elif kind == "npy":
        np.save(file, sample)
    else:
        file.write_text(json.dumps(sample.tolist()), encoding="utf-8")
    rows = []
    for model in (url, f"{url}/models/small", f"{url}/models/small/predict", str(repository / "small")):
        assert main(["predict", model, str(file), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["predictions"]
        rows.append((row["class"], row["label"], row["probability"]))
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][:2] == rows[3][:2]
    assert abs(rows[0][2] - rows[3][2]) < 1e-6
    assert main(["predict", url, str(file)]) == 0
    assert f'label "{rows[0][1]}"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("note.png", b"this is no image", 400),
        ("shape.json", b"[[1.0, 2.0]]", 400),
        ("words.json", b'[["a"]]', 400),
    ],
)
def test_predict_passes_on_what_the_server_says_of_a_wrong_input(url, tmp_path, capsys, name, content, status):
    (tmp_path / name).write_bytes(content)
    assert main(["predict", url, str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"answered {status}: " in err
    assert "unexpected error" not in err


def test_predict_from_an_unknown_model_passes_on_the_404(url, tmp_path, capsys):
    np.save(tmp_path / "sample.npy", np.zeros((1, 1, 8, 8), np.float32))
    assert main(["predict", f"{url}/models/large", str(tmp_path / "sample.npy")]) == 2
    assert "answered 404: " in capsys.readouterr().err


def test_predict_without_a_server_is_one_sentence(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    np.save(tmp_path / "sample.npy", np.zeros((1, 1, 8, 8), np.float32))
    assert main(["predict", f"http://127.0.0.1:{port}", str(tmp_path / "sample.npy")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "gave no answer" in err


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://", "https://[::1"])
def test_predict_from_a_url_that_is_none_is_one_sentence(tmp_path, capsys, url):
    np.save(tmp_path / "sample.npy", np.zeros((1, 1, 8, 8), np.float32))
    assert main(["predict", url, str(tmp_path / "sample.npy")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "unexpected error" not in err


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"[]", b'{"predictions": 3}', b'{"predictions": [{"class": 1}]}']
)
def test_predict_from_something_else_that_answers_is_one_sentence(tmp_path, capsys, body):
    class Stranger(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    np.save(tmp_path / "sample.npy", np.zeros((1, 1, 8, 8), np.float32))
    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = threading.Thread(target=stranger.handle_request)
        thread.start()
        code = main(["predict", f"http://127.0.0.1:{stranger.server_port}", str(tmp_path / "sample.npy")])
        thread.join()
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "unexpected error" not in err


def run_to_its_end(repository: Path, *options: str) -> tuple[int, str, str]:
    process = start(repository, *options)
    with contextlib.closing(process.stdout), contextlib.closing(process.stderr):
        out, err = process.communicate(timeout=STOP_TIMEOUT_S)
    return process.returncode, out, err


def test_port_in_use_is_one_sentence_and_exit_code_2(repository):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        code, out, err = run_to_its_end(repository, "--port", str(port))
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("bnfold: ")
    assert str(port) in err.splitlines()[-1]


def test_repository_that_is_not_there_is_one_sentence_and_exit_code_2(tmp_path):
    code, out, err = run_to_its_end(tmp_path / "nothing", "--json")
    assert code == 2
    assert "nothing" in json.loads(out)["error"]
    assert "Traceback" not in err


def test_version_with_one_broken_channel_is_not_served_even_with_its_hash_mended(repository, tmp_path):
    import hashlib

    models = tmp_path / "models"
    shutil.copytree(repository, models)
    version = models / "small" / "1"
    model = onnx.load(version / "model.onnx")
    (tensor,) = (item for item in model.graph.initializer if len(item.dims) == 4)
    values = numpy_helper.to_array(tensor).copy()
    values[1] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, version / "model.onnx")
    manifest = json.loads((version / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.onnx"] = hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()
    (version / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, out, err = run_to_its_end(models)
    assert (code, out) == (2, "")
    assert tensor.name in err
    assert "Traceback" not in err
