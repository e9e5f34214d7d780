"""Requests that the fuzzer begins with: valid ones through every door, and the hostile ones that have a name."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

GRPC = b"GRPC "  # an input that begins so is a method's name and the bytes of its message
LENGTH = b"Inference-Header-Content-Length"
MODELS = ("digits", "pair", "free", "mixing")
MOST_BYTES = 2**18  # of a body, as the server under test has it

Tensor = dict[str, Any]
Headers = Sequence[tuple[bytes, bytes]]


def request(path: str, body: bytes = b"", headers: Headers = (), method: str = "POST") -> bytes:
    """One request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: x"]
    lines += [name + b": " + value for name, value in headers]
    if body or method == "POST":
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def tensor(name: str, shape: Sequence[int], **more: Any) -> Tensor:
    return {"name": name, "shape": list(shape), "datatype": "FP32", **more}


def inputs_of(model: str, rows: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows)
    if model == "pair":
        return {name: generator.random((rows, 4), np.float32) for name in ("left", "right")}
    shape = (rows, 1, 8, 8) if model == "digits" else (rows, 1, 2, 3)
    return {"input": generator.random(shape, np.float32)}


def json_body(model: str, rows: int = 1, **more: Any) -> bytes:
    entries = [tensor(name, x.shape, data=x.ravel().round(2).tolist()) for name, x in inputs_of(model, rows).items()]
    return json.dumps({"inputs": entries, **more}).encode()


def binary_body(model: str, rows: int = 1, **more: Any) -> tuple[bytes, int]:
    arrays = inputs_of(model, rows)
    entries = [tensor(name, x.shape, parameters={"binary_data_size": x.nbytes}) for name, x in arrays.items()]
    head = json.dumps({"inputs": entries, **more}).encode()
    return head + b"".join(x.tobytes() for x in arrays.values()), len(head)


def picture(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, kind)
    return stream.getvalue()


def valid_requests() -> Iterator[bytes]:
    """Each is answered with 200."""
    for model in MODELS:
        path = f"/v2/models/{model}/infer"
        yield request(path, json_body(model))
        body, split = binary_body(model, 2, id="7", parameters={"binary_data_output": True})
        yield request(path, body, [(LENGTH, b"%d" % split)])
        yield request(path, gzip.compress(body), [(LENGTH, b"%d" % split), (b"Content-Encoding", b"gzip")])
        yield request(path, zlib.compress(json_body(model, 3)), [(b"Content-Encoding", b"deflate")])
        yield request(f"/v2/models/{model}/versions/1/infer", json_body(model, 2, parameters={"priority": 1}))
        yield request(path, json_body(model, 40), [(b"Accept-Encoding", b"gzip;q=1, identity;q=0")])
        yield from (request(f"/v2/models/{model}{end}", method="GET") for end in ("", "/ready", "/config", "/stats"))
    ranked = [{"name": "logits", "parameters": {"classification": 3}}]
    yield request("/v2/models/digits/infer", json_body("digits", outputs=ranked))
    yield request("/v2/models/digits/infer", inputs_of("digits", 1)["input"].tobytes(), [(LENGTH, b"0")])
    yield request("/v2/models/digits/infer", json_body("digits"), [(b"Expect", b"100-continue")])
    yield request("/models/digits/predict?top=2", json.dumps({"instances": [[0.5] * 64]}).encode())
    yield from (request("/models/digits/predict", picture(kind)) for kind in ("PNG", "JPEG", "WEBP"))
    yield request("/v2/repository/index", b"{}")
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/metrics", "/openapi.json", "/v2/models/digits/parity"):
        yield request(path, method="GET")
    body = json_body("pair")
    yield request("/v2/models/pair/infer", body) + request("/v2/models/pair/infer", body)
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = b"POST /v2/models/pair/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield head + chunks


def form() -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n%b\r\n--b--\r\n' % picture()
    return request("/models/digits/predict", part, [(b"Content-Type", b"multipart/form-data; boundary=b")])


def hostile_requests() -> Iterator[bytes]:
    """Each is refused, and the connection or the next request is none the worse for it."""
    path, body = "/v2/models/digits/infer", json_body("digits")
    bomb = gzip.compress(bytes(4 * MOST_BYTES))
    yield request(path, bomb, [(b"Content-Encoding", b"gzip")])
    yield request(path, b"[" * 2000 + b"]" * 2000)
    yield request(path, json.dumps({"inputs": [tensor("input", [-1, 1, 8, 8], data=[0] * 64)]}).encode())
    yield request(path, json.dumps({"inputs": [tensor("input", [2**40, 2**40], data=[])]}).encode())
    yield request(path, json.dumps({"inputs": [tensor("input", [0, 1, 8, 8], data=[])] * 2}).encode())
    yield request(path, body, [(LENGTH, b"99999")])
    yield request(path, body, [(LENGTH, b"-1")])
    yield request(path, body.replace(b"FP32", b"BYTES"))
    yield request(path, body, [(b"Transfer-Encoding", b"chunked")])
    yield request("/v2/models/%2e%2e%2fdigits/infer", body)
    yield request("/v2/models/digits%00/infer", body)
    yield request("/models/digits/predict", picture()[:40])
    yield request("/models/digits/predict?top=0", body)
    yield request(path, body)[:-20]
    yield b"GET /v2\r\n\r\n"


def grpc_messages() -> Iterator[bytes]:
    """Messages of the methods that take one; none without the extra grpc."""
    try:
        from tritonclient.grpc import service_pb2 as pb
    except ImportError:
        return
    for model in MODELS:
        for raw in (True, False):
            message = pb.ModelInferRequest(model_name=model, id="g")
            for name, array in inputs_of(model, 2).items():
                entry = message.inputs.add(name=name, datatype="FP32", shape=array.shape)
                if raw:
                    message.raw_input_contents.append(array.tobytes())
                else:
                    entry.contents.fp32_contents.extend(array.ravel().tolist())
            message.parameters["priority"].int64_param = 1
            yield GRPC + b"ModelInfer\n" + message.SerializeToString()
        named = {"ModelMetadata": pb.ModelMetadataRequest, "ModelConfig": pb.ModelConfigRequest}
        named |= {"ModelStatistics": pb.ModelStatisticsRequest, "ModelReady": pb.ModelReadyRequest}
        for method, kind in named.items():
            yield GRPC + method.encode() + b"\n" + kind(name=model, version="1").SerializeToString()
    yield GRPC + b"RepositoryIndex\n" + pb.RepositoryIndexRequest(ready=True).SerializeToString()
    yield GRPC + b"RepositoryModelLoad\n" + pb.RepositoryModelLoadRequest(model_name="digits").SerializeToString()


def all_seeds() -> list[bytes]:
    return [*valid_requests(), form(), *hostile_requests(), *grpc_messages()]
