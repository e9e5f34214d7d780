"""What is asked of Triton when its answers are recorded, and of bnfold when they are compared; plain data.

Both serve a model `copy` that gives the first ten numbers of each row: (N, 16) FP32 -> (N, 10) FP32, labels c0 to c9,
at most eight rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ROWS = np.array([[0.5, 0.25, 3, -1, 3, 7.125, 1e-7, 1e10, 0, 2], [2, 0, 1e10, 1e-7, 7.125, 3, -1, 3, 0.25, 0.5]], "<f4")
X = np.concatenate([ROWS, np.ones((2, 6), "<f4")], axis=1)
LABELS = tuple(f"c{number}" for number in range(10))
INFER = "/v2/models/copy/infer"


@dataclass(frozen=True)
class Exchange:
    """One HTTP request."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def document(**changes: Any) -> dict[str, Any]:
    """A request in JSON; changes: of its parts, with `input_` before the name for those of the input."""
    entry = {"name": "input", "shape": [2, 16], "datatype": "FP32", "data": X.ravel().tolist()}
    entry.update({name.removeprefix("input_"): value for name, value in changes.items() if name.startswith("input_")})
    return {
        "inputs": [{name: value for name, value in entry.items() if value is not None}],
        **{name: value for name, value in changes.items() if not name.startswith("input_")},
    }


def as_json(name: str, accept: str | None = None, **changes: Any) -> Exchange:
    headers = {} if accept is None else {"Accept-Encoding": accept}
    return Exchange(name, "POST", INFER, json.dumps(document(**changes)).encode(), headers)


def as_binary(name: str, blob: bytes = X.tobytes(), declared: int | None = None, **changes: Any) -> Exchange:
    parameters = {"binary_data_size": len(blob) if declared is None else declared}
    head = json.dumps(document(input_data=None, input_parameters=parameters, **changes)).encode()
    return Exchange(name, "POST", INFER, head + blob, {"Inference-Header-Content-Length": str(len(head))})


def output(**parameters: Any) -> list[dict[str, Any]]:
    return [{"name": "scores", "parameters": parameters}]


def get(name: str, path: str, method: str = "GET", body: bytes = b"") -> Exchange:
    return Exchange(name, method, path, body)


EXCHANGES = (
    as_json("JSON"),
    as_json("JSON with an id", id="seven"),
    as_json("an empty id", id=""),
    as_json("nested data", input_data=X.tolist()),
    as_json("no outputs named", outputs=[]),
    as_json("binary_data_output", parameters={"binary_data_output": True}),
    as_json("binary_data of one output", outputs=output(binary_data=True)),
    as_json("one output stays JSON", outputs=output(binary_data=False), parameters={"binary_data_output": True}),
    as_json("parameters of one's own", parameters={"mine": "x", "truth": True, "number": 2}),
    as_json("priority and timeout", parameters={"priority": 1, "timeout": 10_000_000}),
    as_json("classification", outputs=output(classification=3)),
    as_json("classification in binary", outputs=output(classification=3, binary_data=True)),
    as_json("more classes than there are", outputs=output(classification=30)),
    as_json("no classes", outputs=output(classification=0)),
    as_json("one row", input_shape=[1, 16], input_data=X[0].tolist()),
    as_binary("binary"),
    as_binary("binary, JSON out", outputs=output(binary_data=False)),
    as_binary("binary both ways", parameters={"binary_data_output": True}),
    as_binary("a size that is not that of the shape", blob=X.tobytes()[:-4]),
    as_binary("a size beyond the body", declared=4096),
    as_binary("a negative size", declared=-1),
    Exchange("one raw row", "POST", INFER, X[:1].tobytes(), {"Inference-Header-Content-Length": "0"}),
    Exchange("two raw rows", "POST", INFER, X.tobytes(), {"Inference-Header-Content-Length": "0"}),
    Exchange("half a raw row", "POST", INFER, X[0, :8].tobytes(), {"Inference-Header-Content-Length": "0"}),
    Exchange("a JSON length beyond the body", "POST", INFER, b"{}", {"Inference-Header-Content-Length": "9"}),
    Exchange("a JSON length of nonsense", "POST", INFER, b"{}", {"Inference-Header-Content-Length": "two"}),
    as_json("gzip asked for", accept="gzip, identity;q=0", outputs=output(binary_data=True)),
    as_json("deflate asked for", accept="deflate, identity;q=0"),
    as_json("gzip refused", accept="gzip;q=0, deflate, identity;q=0"),
    as_json("deflate preferred", accept="gzip;q=0.1, deflate;q=0.9, identity;q=0"),
    as_json("deflate named first", accept="deflate, gzip, identity;q=0"),
    as_json("another coding asked for", accept="br"),
    as_json("everything refused", accept="identity;q=0"),
    as_json("a compressed error", accept="gzip, identity;q=0", input_name="other"),
    as_json("an unknown input", input_name="other"),
    as_json("an unknown output", outputs=[{"name": "other"}]),
    as_json("an output twice", outputs=[{"name": "scores"}, {"name": "scores"}]),
    as_json("another datatype", input_datatype="FP64"),
    as_json("no such datatype", input_datatype="FP99"),
    as_json("too few numbers", input_data=[1.0] * 31),
    as_json("text for a number", input_data=["a"] * 32),
    as_json("null for a number", input_data=[None] * 32),
    as_json("no rows", input_shape=[0, 16], input_data=[]),
    as_json("a negative size in the shape", input_shape=[-2, 16]),
    as_json("another rank", input_shape=[32]),
    as_json("too many rows", input_shape=[9, 16], input_data=[0.0] * 144),
    as_json("no shape", input_shape=None),
    as_json("no data", input_data=None),
    as_json("priority of text", parameters={"priority": "x"}),
    as_json("classification of text", outputs=output(classification="2")),
    as_json("a negative number of classes", outputs=output(classification=-1)),
    as_json("a sequence", parameters={"sequence_id": 5, "sequence_start": True}),
    Exchange("no inputs", "POST", INFER, b'{"inputs": []}'),
    Exchange("a list for a request", "POST", INFER, b"[]"),
    Exchange("no JSON", "POST", INFER, b"{"),
    Exchange("no body", "POST", INFER),
    Exchange("an unknown model", "POST", "/v2/models/other/infer", json.dumps(document()).encode()),
    Exchange("an unknown version", "POST", "/v2/models/copy/versions/9/infer", json.dumps(document()).encode()),
    Exchange("a version", "POST", "/v2/models/copy/versions/1/infer", json.dumps(document()).encode()),
    get("inference by GET", INFER),
    get("server metadata", "/v2"),
    get("live", "/v2/health/live"),
    get("ready", "/v2/health/ready"),
    get("model ready", "/v2/models/copy/ready"),
    get("version ready", "/v2/models/copy/versions/1/ready"),
    get("unknown model ready", "/v2/models/other/ready"),
    get("metadata", "/v2/models/copy"),
    get("metadata of a version", "/v2/models/copy/versions/1"),
    get("metadata of an unknown model", "/v2/models/other"),
    get("metadata of an unknown version", "/v2/models/copy/versions/9"),
    get("config", "/v2/models/copy/config"),
    get("config of an unknown version", "/v2/models/copy/versions/9/config"),
    get("statistics", "/v2/models/copy/stats"),
    get("statistics of everything", "/v2/models/stats"),
    get("statistics of an unknown model", "/v2/models/other/stats"),
    get("index", "/v2/repository/index", "POST"),
    get("index of what is ready", "/v2/repository/index", "POST", b'{"ready": true}'),
    get("nothing there", "/v2/nothing"),
    get("trace settings", "/v2/trace/setting"),
    get("log settings", "/v2/logging"),
    get("shared memory", "/v2/systemsharedmemory/status"),
    get("CUDA shared memory", "/v2/cudasharedmemory/status"),
)
