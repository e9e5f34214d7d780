"""The stock HTTP client of the Triton server, unmodified, sync and aio: inference in its forms, and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from service_runs import Running
from tritonclient.utils import InferenceServerException

X = np.random.default_rng(3).random((5, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def sync(server: Running) -> Any:
    with triton.InferenceServerClient(server.address, connection_timeout=60, network_timeout=60) as client:
        yield client


def on_aio(server: Running, call: Any) -> Any:
    async def run() -> Any:
        async with triton_aio.InferenceServerClient(server.address) as client:
            return await call(client)

    return asyncio.run(run())


def inputs(*, binary: bool, x: np.ndarray = X, name: str = "input") -> list[triton.InferInput]:
    tensor = triton.InferInput(name, list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return [tensor]


def agrees(server: Running, result: triton.InferResult) -> bool:
    found = result.as_numpy("logits")
    wanted = server.hub.repository.find("digits").run({"input": X})["logits"]
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infers(sync: Any, server: Running, binary_in: bool, binary_out: bool | None, compression: str | None):
    options: dict[str, Any] = {
        "outputs": None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)],
        "request_id": "r1",
        "model_version": "1",
        "request_compression_algorithm": compression,
        "response_compression_algorithm": compression,
    }
    result = sync.infer("digits", inputs(binary=binary_in), **options)
    assert agrees(server, result)
    assert result.get_response()["id"] == "r1"
    assert result.get_response()["model_version"] == "1"
    assert agrees(server, on_aio(server, lambda client: client.infer("digits", inputs(binary=binary_in), **options)))


def test_infers_with_two_inputs_of_which_one_is_binary(sync: Any):
    left, right = np.ones((2, 4), np.float32), np.arange(8, dtype=np.float32).reshape(2, 4)
    both = [*inputs(binary=False, x=left, name="left"), *inputs(binary=True, x=right, name="right")]
    result = sync.infer("pair", both)
    assert result.as_numpy("doubled").tolist() == (left * 2).tolist()
    assert result.as_numpy("total").shape == (2, 3)
    assert result.as_numpy("none") is None


def test_infers_many_at_once(server: Running):
    async def on(client: Any) -> list[Any]:
        return await asyncio.gather(*(client.infer("digits", inputs(binary=True)) for _ in range(40)))

    assert all(agrees(server, result) for result in on_aio(server, on))


def test_async_infer_of_the_sync_client(server: Running):
    with triton.InferenceServerClient(server.address, concurrency=4) as client:
        waiting = [client.async_infer("digits", inputs(binary=True)) for _ in range(8)]
        assert all(agrees(server, one.get_result()) for one in waiting)


@pytest.mark.parametrize(
    ("model", "tensors", "status"),
    [
        ("digit", inputs(binary=True), "404"),
        ("digits", inputs(binary=True, name="image"), "400"),
        ("digits", inputs(binary=False, x=X[:, :, :4]), "400"),
    ],
)
def test_errors_arrive_as_the_clients_exception(
    sync: Any, server: Running, model: str, tensors: list[Any], status: str
):
    with pytest.raises(InferenceServerException) as refusal:
        sync.infer(model, tensors)
    assert refusal.value.status() == status
    assert "client received" not in refusal.value.message()
    with pytest.raises(InferenceServerException) as again:
        on_aio(server, lambda client: client.infer(model, tensors))
    assert again.value.message() == refusal.value.message()
