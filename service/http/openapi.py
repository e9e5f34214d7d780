"""What /docs says of each endpoint: bodies, answers, errors."""

from __future__ import annotations

from typing import Any

Responses = dict[int | str, dict[str, Any]]

ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def error(what: str, message: str) -> dict[str, Any]:
    """One kind of error, with an example of its sentence."""
    return {
        "description": what,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Error"}, "example": {"error": message}}
        },
    }


def _example(what: str, value: Any) -> dict[str, Any]:
    return {"description": what, "content": {"application/json": {"schema": {"type": "object"}, "example": value}}}


_PORTS = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
}
_PROOF_HEADERS = {
    "bnfold-model": {"description": "the model that answered", "schema": {"type": "string"}},
    "bnfold-model-version": {"description": "its version", "schema": {"type": "string"}},
    "bnfold-model-digest": {"description": "sha256 of the model.onnx in use", "schema": {"type": "string"}},
    "bnfold-provider": {"description": "what the model runs on", "schema": {"type": "string"}},
}

ERRORS: Responses = {
    404: error("No such model or version", "there is no model 'digit' here; /v2/health/ready lists the models"),
    503: error(
        "Not proven, overloaded or stopping; comes with Retry-After", "the server is stopping; try again elsewhere"
    ),
}
SERVER: Responses = {
    200: _example("The server", {"name": "bnfold", "version": "0.1.0", "extensions": ["binary_tensor_data"]})
}
LIVE: Responses = {200: _example("The process answers", {"live": True})}
METRICS: Responses = {
    200: {
        "description": "Prometheus' text format",
        "content": {"text/plain": {"example": 'bnfold_inference_count_total{model="digits-cnn",version="1"} 42.0'}},
    }
}
READY: Responses = {
    200: _example(
        "Every model has a proven version",
        {
            "ready": True,
            "draining": False,
            "models": [{"name": "digits-cnn", "version": "1", "state": "ready", "refused": []}],
        },
    ),
    503: error("A model has no proven version, or the server is stopping", "the server is stopping"),
}
MODEL_READY: Responses = {
    200: _example("It is served", {"ready": True, "name": "digits-cnn", "version": "1"}),
    **ERRORS,
}
METADATA: Responses = {
    200: _example("The model", {"name": "digits-cnn", "versions": ["1"], "platform": "onnxruntime_onnx", **_PORTS}),
    **ERRORS,
}
PARITY: Responses = {
    200: _example(
        "The proof",
        {
            "name": "digits-cnn",
            "state": "ready",
            "served": {
                "version": "1",
                "model_sha256": "9f2c…",
                "provider": "CPUExecutionProvider",
                "batching": True,
                "gate": {"passed": True, "reasons": [], "worst_ulp": 0.5, "ratio": 1.02, "rows": 369, "agreeing": 369},
                "parity": {},
            },
            "refused": [],
            "not_examined": [],
        },
    ),
    404: ERRORS[404],
}
INDEX: Responses = {
    200: {
        "description": "The versions",
        "content": {
            "application/json": {
                "schema": {"type": "array", "items": {"type": "object"}},
                "example": [
                    {"name": "digits-cnn", "version": "1", "state": "READY", "reason": ""},
                    {
                        "name": "digits-cnn",
                        "version": "2",
                        "state": "UNAVAILABLE",
                        "reason": "2/model.onnx has sha256 …",
                    },
                ],
            }
        },
    },
    400: error("What is no JSON object", "'ready' is 1; expected true or false"),
}
LOAD: Responses = {
    200: _example("Done", {}),
    400: error(
        "A version that was to be loaded is not proven", "model digits-cnn/2 was refused: …; version 1 is served"
    ),
    **ERRORS,
    501: error("No admin key is set, or something that is not proven", "loading and unloading is off here; …"),
}
PREDICT: Responses = {
    200: {
        **_example(
            "One prediction a row; raw outputs instead where the model gives no classes",
            {
                "model": "digits-cnn",
                "version": "1",
                "output_kind": "logits",
                "predictions": [
                    {
                        "class": 7,
                        "label": "7",
                        "probability": 0.998,
                        "top": [
                            {"class": 7, "label": "7", "probability": 0.998},
                            {"class": 9, "label": "9", "probability": 0.001},
                        ],
                    }
                ],
            },
        ),
        "headers": _PROOF_HEADERS,
    },
    400: error("A request that the model cannot take", "input 'input' has shape [1, 7]; expected [-1, 1, 8, 8]"),
    408: error("A body that came too slowly", "the body did not arrive in time (0 bytes so far); send it faster"),
    413: error("A body above the cap", "the body is larger than the 67108864 bytes that this server takes"),
    415: error("A Content-Encoding other than gzip and deflate", "the body has Content-Encoding 'br'"),
    **ERRORS,
}

_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"instances": {"type": "array"}}, "required": ["instances"]},
                "example": {"instances": [[[[0.0] * 8] * 8]]},
            },
            "image/png": _BINARY,
            "image/jpeg": _BINARY,
            "image/webp": _BINARY,
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": _BINARY["schema"]}}},
        },
    }
}


def _optional(example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}, "example": example}}
    return {"requestBody": {"required": False, "content": content}}


INDEX_BODY = _optional({"ready": True})
LOAD_BODY = _optional({"parameters": {"version_policy": "latest"}})
UNLOAD_BODY = _optional({"parameters": {"unload_dependents": False}})

INFER: dict[str, Any] = {
    "summary": "Inference, JSON or binary",
    "tags": ["Open Inference Protocol v2"],
    "description": (
        "The body is JSON, or JSON followed by the binary inputs; the header `Inference-Header-Content-Length` then "
        "says how long the JSON is (0: the body is the one input's raw data). Clients need no Content-Type. Bodies "
        "may be compressed with gzip or deflate, and answers are for who sends Accept-Encoding. NaN and infinity "
        "travel as binary data only. Parameters of the request: `timeout` (µs), `priority` (1 first), "
        "`binary_data_output`; of an output: `binary_data`, `classification` (the k largest scores as text)."
    ),
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"]},
                "example": {
                    "id": "42",
                    "inputs": [{"name": "input", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.0] * 64}],
                    "outputs": [{"name": "logits", "parameters": {"binary_data": False}}],
                },
            },
            "application/octet-stream": _BINARY,
        },
    },
    "responses": {
        "200": {
            "description": "The outputs; application/octet-stream where one of them is binary",
            "headers": _PROOF_HEADERS,
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {
                        "model_name": "digits-cnn",
                        "model_version": "1",
                        "id": "42",
                        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": [0.1] * 10}],
                    },
                },
                "application/octet-stream": _BINARY,
            },
        },
        **{str(status): PREDICT[status] for status in (400, 404, 408, 413, 415, 503)},
        "500": error("The runtime failed on the input", "model digits-cnn/1 failed on this input"),
        "501": error("A part of the protocol that is not offered", "input 'input' is in shared memory"),
    },
}
