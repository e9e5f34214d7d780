"""Record what a real Triton server answers to the exchanges of tests/service/triton_exchanges.py.

    python scripts/record_triton.py tests/service/triton_answers.json

Linux on x86_64 and Python 3.11 alone: the server comes with the package nvidia-pytriton, whose Python backend wants a
numpy below 2. Both are installed into a temporary folder. The tests need none of this: they compare with the file.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SERVER = "nvidia-pytriton==0.7.0"
KEPT = ("content-type", "content-encoding", "inference-header-content-length")
PATIENCE = 60.0

CONFIG = """
name: "copy"
backend: "python"
max_batch_size: 8
input [ { name: "input" data_type: TYPE_FP32 dims: [16] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" } ]
dynamic_batching { }
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
MODEL = """
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        arrays = [utils.get_input_tensor_by_name(each, "input").as_numpy()[:, :10].copy() for each in requests]
        return [utils.InferenceResponse([utils.Tensor("scores", array)]) for array in arrays]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write the answers")
    options = parser.parse_args()
    exchanges = runpy.run_path(str(ROOT / "tests" / "service" / "triton_exchanges.py"))
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), exchanges["LABELS"]) as port:
        version = json.loads(ask(port, "GET", "/v2")["body"])["version"]
        answers = {each.name: recorded(port, each) for each in exchanges["EXCHANGES"]}
    document = {"server": f"Triton {version}", "package": SERVER, "answers": answers}
    options.file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{len(answers)} answers of Triton {version} in {options.file}")


def recorded(port: int, exchange: Any) -> dict[str, Any]:
    """Status, the headers that say how to read the body, and the body: as text where it is some, else in base64."""
    answer = ask(port, exchange.method, exchange.path, exchange.body, exchange.headers)
    try:
        body = {"text": answer["body"].decode()}
    except UnicodeDecodeError:
        body = {"base64": base64.b64encode(answer["body"]).decode()}
    return {"status": answer["status"], "headers": answer["headers"], **body}


def ask(port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> dict[str, Any]:
    """One request on a connection of its own."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
        connection.request(method, path, body or None, headers or {})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        kept = {name: found[name] for name in KEPT if name in found}
        return {"status": answer.status, "headers": kept, "body": answer.read()}


@contextlib.contextmanager
def serve(folder: Path, labels: tuple[str, ...]) -> Iterator[int]:
    """The server with the model `copy`; gives its HTTP port."""
    packages, numpy, models = folder / "packages", folder / "numpy", folder / "models"
    for target, requirement in ((packages, SERVER), (numpy, "numpy<2")):
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), requirement]
        subprocess.run(command, check=True)
    (models / "copy" / "1").mkdir(parents=True)
    (models / "copy" / "config.pbtxt").write_text(CONFIG)
    (models / "copy" / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    (models / "copy" / "1" / "model.py").write_text(MODEL)
    home = packages / "pytriton" / "tritonserver"
    backend = home / "backends" / "python"
    stub = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    (backend / "triton_python_backend_stub").write_bytes((stub / "triton_python_backend_stub").read_bytes())
    (backend / "triton_python_backend_stub").chmod(0o755)
    (home / "bin" / "tritonserver").chmod(0o755)
    utilities = backend / "triton_python_backend_utils.py"
    utilities.write_text(f"import sys\nsys.path.insert(0, {str(numpy)!r})\n{utilities.read_text()}")
    port = free_port()
    flags = {
        "model-repository": models, "backend-directory": home / "backends", "http-address": "127.0.0.1",
        "http-port": port, "allow-grpc": "false", "allow-metrics": "false", "model-control-mode": "explicit",
        "load-model": "copy",
    }  # fmt: skip
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{Path(sys.base_prefix) / 'lib'}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [home / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in flags.items())],
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(port, server, folder / "log")
        yield port
    finally:
        server.terminate()
        server.wait(PATIENCE)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server is ready. Raises SystemExit with its log when it ends."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            if ask(port, "GET", "/v2/health/ready")["status"] == 200:
                return
        time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
