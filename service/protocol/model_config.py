"""A served version as Triton's ModelConfig: what `.../config` answers, in JSON and over gRPC.

Fields that would claim something that is not there are left out. A model whose rows are run together has a
`max_batch_size`, the most rows of one request, and dims without the batch axis; every other has 0 and whole shapes.
Source: model_config.proto of the Triton inference server; the model configuration extension.
"""

from __future__ import annotations

from typing import Any

from bnfold.bundle.manifest import MODEL
from service.engine import Engine
from service.protocol.tensors import Port
from service.queueing.backlog import DEFAULT_PRIORITY, PRIORITIES
from service.repository.policy import Policy
from service.settings import Settings

PLATFORM = "onnxruntime_onnx"
_BACKEND = "onnxruntime"


def describe_config(engine: Engine, policy: Policy, settings: Settings) -> dict[str, Any]:
    """JSON-ready values, named as in the proto. policy: which versions of the model are served."""
    on_gpu = engine.provider.startswith("CUDA")
    document: dict[str, Any] = {
        "name": engine.name,
        "platform": PLATFORM,
        "backend": _BACKEND,
        "version_policy": _describe_policy(policy),
        "max_batch_size": settings.max_request_rows if engine.batchable else 0,
        "input": [_describe_input(port, batched=engine.batchable) for port in engine.signature.inputs],
        "output": [_describe_port(port, batched=engine.batchable) for port in engine.signature.outputs],
        "optimization": {"priority": "PRIORITY_DEFAULT"},
        "instance_group": [
            {
                "name": f"{engine.name}_0",
                "kind": "KIND_GPU" if on_gpu else "KIND_CPU",
                "count": settings.thread_count * settings.workers,
                "gpus": [0] if on_gpu else [],
            }
        ],
        "default_model_filename": MODEL,
        "parameters": {
            "model_sha256": {"string_value": engine.digest},
            "provider": {"string_value": engine.provider},
        },
        "model_warmup": [_describe_warmup(engine)],
        "model_transaction_policy": {"decoupled": False},
    }
    if engine.batchable:
        document["dynamic_batching"] = _describe_batching(settings)
    return document


def _describe_policy(policy: Policy) -> dict[str, Any]:
    if policy.named is not None:
        return {"specific": {"versions": list(policy.named)}}
    return {"all": {}} if policy.most is None else {"latest": {"num_versions": policy.most}}


def _describe_port(port: Port, *, batched: bool) -> dict[str, Any]:
    return {
        "name": port.name,
        "data_type": f"TYPE_{port.datatype}",
        "dims": list(port.shape[1:] if batched else port.shape),
    }


def _describe_input(port: Port, *, batched: bool) -> dict[str, Any]:
    return {**_describe_port(port, batched=batched), "format": "FORMAT_NONE", "optional": False}


def _describe_batching(settings: Settings) -> dict[str, Any]:
    return {
        "preferred_batch_size": [settings.max_batch_rows],
        "max_queue_delay_microseconds": round(settings.max_delay * 1e6),
        "preserve_ordering": False,
        "priority_levels": PRIORITIES,
        "default_priority_level": DEFAULT_PRIORITY,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": round(settings.request_timeout * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": settings.max_queue_rows,
        },
    }


def _describe_warmup(engine: Engine) -> dict[str, Any]:
    """The golden vectors, which are run before the version is ready."""
    inputs = {
        port.name: {
            "data_type": f"TYPE_{port.datatype}",
            "dims": list(port.shape),
            "input_data_file": f"golden/test_data_set_0/input_{index}.pb",
        }
        for index, port in enumerate(engine.signature.inputs)
    }
    return {"name": "golden vectors", "inputs": inputs, "count": 1}
