"""The servers of the benchmark: how each is started, what it is asked, and how its answer is read."""

from __future__ import annotations

import json
import re
import struct
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from open_loop import Ask

from serving.networks import CLASSES, sample
from serving.processes import free_port

PEERS = Path(__file__).parent / "peers"
MAX_BATCH = 64  # as many rows as bnfold puts together by default
Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Place:
    """Where a server runs. repository: of the bundles. network: which of them. counts: of a peer's calls and rows."""

    python: str
    port: int
    repository: Path
    network: str
    folder: Path
    counts: Path

    @property
    def model(self) -> Path:
        """The folded network."""
        return self.repository / self.network / "1" / "model.onnx"


@dataclass(frozen=True)
class Wire:
    """One way to ask. read: the ten numbers in an answer's body."""

    name: str
    ask: Callable[[Place], Ask]
    read: Callable[[bytes], Numbers]


@dataclass(frozen=True)
class Server:
    """A row of the table. environment: the name of the peer's virtual environment, empty for this one.

    prepare: writes what the server needs into its folder. counts: (calls, rows) of the runtime so far.
    """

    name: str
    environment: str
    packages: tuple[str, ...]
    command: Callable[[Place], list[str]]
    wires: tuple[Wire, ...]
    max_batch: int = 1
    prepare: Callable[[Place, int], None] = field(default=lambda *_: None)
    counts: Callable[[Place], tuple[float, float]] = field(default=lambda place: peer_counts(place.counts))

    def variables(self, place: Place) -> Mapping[str, str]:
        """Its environment variables."""
        return {
            "SERVE_PEERS_MODEL": str(place.model),
            "SERVE_PEERS_PORT": str(place.port),
            "SERVE_PEERS_COUNTS": str(place.counts),
            "SERVE_PEERS_MAX_BATCH": str(self.max_batch),
            "PYTHONPATH": str(PEERS),
            "OMP_NUM_THREADS": "1",
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(place.folder / "bentoml"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }


# ------------------------------------------------------------------------------------------------ requests


def _json(document: object) -> bytes:
    """Numbers as short as float32 allows, the same text for everybody."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _v2_json(name: str) -> bytes:
    tensor = {"name": name, "shape": sample().shape, "datatype": "FP32", "data": sample().reshape(-1)}
    return _json({"id": "1", "inputs": [tensor]})


def _v2_binary(name: str) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    blob = sample().tobytes()
    tensor = {"name": name, "shape": sample().shape, "datatype": "FP32", "parameters": {"binary_data_size": len(blob)}}
    head = _json({"id": "1", "inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + blob, (
        ("Inference-Header-Content-Length", str(len(head))),
        ("Content-Type", "application/octet-stream"),
    )


def _ask_v2_json(model: str, tensor: str) -> Ask:
    return Ask(f"/v2/models/{model}/infer", _v2_json(tensor), (("Content-Type", "application/json"),))


def _ask_v2_binary(model: str, tensor: str) -> Ask:
    return Ask(f"/v2/models/{model}/infer", *_v2_binary(tensor))


def _ask_json(path: str, key: str, value: Numbers) -> Ask:
    return Ask(path, _json({key: value}), (("Content-Type", "application/json"),))


def _read_v2_json(body: bytes) -> Numbers:
    return np.asarray(json.loads(body)["outputs"][0]["data"], np.float32).reshape(-1)


def _read_tail(body: bytes) -> Numbers:
    """The only output is the last thing in a binary answer."""
    return np.frombuffer(body[-4 * CLASSES :], np.float32)


def _read_flat(body: bytes) -> Numbers:
    found = json.loads(body)
    return np.asarray(found["output"] if isinstance(found, dict) else found, np.float32).reshape(-1)


# ------------------------------------------------------------------------------------------------ counts


def peer_counts(path: Path) -> tuple[float, float]:
    """Calls and rows, as peers/onnx_model.py writes them."""
    calls, rows = struct.unpack("<QQ", path.read_bytes())
    return float(calls), float(rows)


def _bnfold_counts(place: Place) -> tuple[float, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{place.port}/metrics") as answer:
        page = answer.read().decode()

    def total(name: str) -> float:
        lines = re.findall(rf"^bnfold_inference_{name}_total\{{(.*)\}} (\S+)$", page, re.MULTILINE)
        return sum(float(value) for labels, value in lines if f'model="{place.network}"' in labels)

    return total("exec_count"), total("count")


# ------------------------------------------------------------------------------------------------ settings


def _prepare_mlserver(place: Place, rows: int) -> None:
    settings = {
        "debug": False, "host": "127.0.0.1", "http_port": place.port, "grpc_port": free_port(),
        "metrics_endpoint": None, "parallel_workers": 0,
    }  # fmt: skip
    model = {"name": "network", "implementation": "mlserver_app.Network"}
    if rows > 1:
        model |= {"max_batch_size": rows, "max_batch_time": 0.002}  # type: ignore[dict-item]
    (place.folder / "settings.json").write_text(json.dumps(settings))
    (place.folder / "model-settings.json").write_text(json.dumps(model))


# ------------------------------------------------------------------------------------------------ the list


def _script(name: str) -> Callable[[Place], list[str]]:
    return lambda place: [place.python, str(PEERS / name)]


def _mlserver(place: Place) -> list[str]:
    return [str(Path(place.python).with_name("mlserver")), "start", str(place.folder)]


def _bnfold(place: Place) -> list[str]:
    return [
        place.python, "-m", "bnfold", "serve", str(place.repository), "--port", str(place.port), "--device", "cpu",
    ]  # fmt: skip


def _bentoml(place: Place) -> list[str]:
    return [
        place.python, "-m", "bentoml", "serve", "bentoml_app:Network", "--host", "127.0.0.1",
        "--port", str(place.port), "--working-dir", str(PEERS),
    ]  # fmt: skip


_LITSERVE = Wire("JSON", lambda _: _ask_json("/predict", "input", sample()[0]), _read_flat)
_MLSERVER = Wire("JSON", lambda _: _ask_v2_json("network", "x"), _read_v2_json)
_BENTOML = Wire("JSON", lambda _: _ask_json("/predict", "x", sample()), _read_flat)
_KSERVE = (
    Wire("binary", lambda _: _ask_v2_binary("network", "x"), _read_tail),
    Wire("JSON", lambda _: _ask_v2_json("network", "x"), _read_v2_json),
)
_RAY = Wire("binary", lambda _: Ask("/", sample().tobytes()), _read_tail)
_BNFOLD = (
    Wire("binary", lambda place: _ask_v2_binary(place.network, "x"), _read_tail),
    Wire("JSON", lambda place: _ask_v2_json(place.network, "x"), _read_v2_json),
)
_LITSERVE_NEEDS = ("litserve", "onnxruntime", "uvloop", "httptools")
_MLSERVER_NEEDS = ("mlserver", "onnxruntime", "uvloop", "httptools")
_BENTOML_NEEDS = ("bentoml", "onnxruntime", "uvloop", "httptools")
_KSERVE_NEEDS = ("kserve", "onnxruntime", "uvloop", "httptools")
_RAY_NEEDS = ("ray[serve]", "onnxruntime", "uvloop", "httptools")

SERVERS = (
    Server("bnfold", "", (), _bnfold, _BNFOLD, MAX_BATCH, counts=_bnfold_counts),
    Server("LitServe", "litserve", _LITSERVE_NEEDS, _script("litserve_app.py"), (_LITSERVE,)),
    Server("LitServe, batches", "litserve", _LITSERVE_NEEDS, _script("litserve_app.py"), (_LITSERVE,), MAX_BATCH),
    Server(
        "MLServer", "mlserver", _MLSERVER_NEEDS, _mlserver, (_MLSERVER,),
        prepare=_prepare_mlserver,
    ),
    Server(
        "MLServer, batches", "mlserver", _MLSERVER_NEEDS, _mlserver, (_MLSERVER,), MAX_BATCH,
        prepare=_prepare_mlserver,
    ),
    Server("BentoML", "bentoml", _BENTOML_NEEDS, _bentoml, (_BENTOML,)),
    Server("BentoML, batches", "bentoml", _BENTOML_NEEDS, _bentoml, (_BENTOML,), MAX_BATCH),
    Server("KServe", "kserve", _KSERVE_NEEDS, _script("kserve_app.py"), _KSERVE),
    Server("Ray Serve", "ray", _RAY_NEEDS, _script("ray_app.py"), (_RAY,)),
    Server("Ray Serve, batches", "ray", _RAY_NEEDS, _script("ray_app.py"), (_RAY,), MAX_BATCH),
)  # fmt: skip
