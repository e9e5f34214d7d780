"""Messages for the gRPC door, and what becomes of them."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from service_clients import Doors
from tritonclient.grpc import service_pb2 as pb

X = np.random.default_rng(3).random((2, 1, 8, 8)).astype(np.float32)
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SLOW = 1700  # pixels a side of a picture that keeps a worker busy for tens of milliseconds


def channel(doors: Doors) -> grpc.Channel:
    sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(doors.grpc, options=sizes)


def message(
    raw: list[bytes] | None = None,
    *,
    model: str = "digits",
    shape: tuple[int, ...] = (2, 1, 8, 8),
    name: str = "input",
    datatype: str = "FP32",
    identity: str = "",
    **contents: Any,
) -> Any:
    found = pb.ModelInferRequest(model_name=model, id=identity)
    tensor = found.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    found.raw_input_contents.extend(raw or ([] if contents else [X.tobytes()]))
    return found


def slow(identity: str = "slow", timeout: int = 0) -> Any:
    found = message([bytes(SLOW * SLOW * 4)], model="free", shape=(1, 1, SLOW, SLOW), identity=identity)
    if timeout:
        found.parameters["timeout"].int64_param = timeout
    return found


def refusal(call: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as problem:
        call(*arguments, **options)
    return problem.value.code(), problem.value.details()


def outcome(call: Any, *arguments: Any, **options: Any) -> grpc.StatusCode | None:
    """The code of a call that failed, None of one that did not."""
    try:
        call(*arguments, **options)
    except grpc.RpcError as problem:
        return problem.code()
    return None


def logits(response: Any) -> np.ndarray:
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(list(response.outputs[0].shape))


def failures(doors: Doors, reason: str, model: str = "digits") -> float:
    lines = httpx.get(f"{doors.child.url}/metrics").text.splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("bnfold_inference_request_failure_total")
        and f'reason="{reason}"' in line and f'model="{model}"' in line
    )  # fmt: skip


def pending(doors: Doors, model: str = "digits") -> float:
    lines = httpx.get(f"{doors.child.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "pending_rows" in line and f'model="{model}"' in line)
