"""gRPC calls and what outlives them: a load whose caller has gone, a stream whose key was taken out."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from service_reloads import KEY, admin, build_versions, put, serving
from service_runs import PATIENCE, running, until
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from service.repository.proving import Workshop
from service.rpc.service import Service
from service.settings import Settings

FIRST, SECOND = "the-first-key-of-this-test", "the-second-key-of-this-test"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_versions(tmp_path_factory.mktemp("versions"), 2)


@pytest.fixture
def models(built: Path, tmp_path: Path) -> Path:
    (tmp_path / "models" / "digits").mkdir(parents=True)
    put(built, tmp_path / "models", 1)
    return tmp_path / "models"


def bearer(key: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {key}")]


def test_a_load_whose_caller_has_gone_is_done_to_its_end(
    built: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun, go_on = threading.Event(), threading.Event()
    prove = Workshop.prove

    def wait(shop: Workshop, name: str, version: int) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return prove(shop, name, version)

    with serving(models, tmp_path, grpc_port=0) as server, admin(server.url) as operator:
        monkeypatch.setattr(Workshop, "prove", wait)
        put(built, models, 2)
        with grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            wanted = pb.RepositoryModelLoadRequest(model_name="digits")
            call = stub.RepositoryModelLoad.future(wanted, metadata=bearer(KEY))
            assert begun.wait(PATIENCE)
            call.cancel()
        assert operator.serves() == "1"
        go_on.set()
        until(lambda: operator.serves() == "2")
        until(lambda: operator.states() == {"1": "UNAVAILABLE", "2": "READY"})


def test_a_caller_that_leaves_before_its_message_is_no_bad_request(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun, ended = threading.Event(), threading.Event()
    only = Service._only

    async def note(service: Service, messages: Any, patience: float) -> bytes:
        begun.set()
        try:
            return await only(service, messages, patience)
        finally:
            ended.set()

    monkeypatch.setattr(Service, "_only", note)
    monkeypatch.setattr("service.rpc.service._MOMENT", 2.0, raising=False)
    with serving(models, tmp_path, grpc_port=0) as server:

        def refused() -> float:
            found = server.hub.metrics.registry.get_sample_value(
                "bnfold_inference_request_failure_total", {"model": "", "version": "", "reason": "bad_request"}
            )
            return found or 0.0

        with grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as channel:
            infer = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
            call = infer.future(iter(sent.get, None))
            assert begun.wait(PATIENCE)
            call.cancel()
            sent.put(None)
            assert ended.wait(PATIENCE)
            assert refused() == 0
            with pytest.raises(grpc.RpcError, match="ended without a message"):
                infer(iter(()))
            assert refused() == 1


def test_a_stream_is_of_no_use_once_its_key_is_taken_out(models: Path, tmp_path: Path):
    file = tmp_path / "infer.keys"

    def write(*keys: str) -> None:
        file.write_text("".join(f"{key}\n" for key in keys))
        file.chmod(0o600)

    write(FIRST)
    message = pb.ModelInferRequest(model_name="digits")
    message.inputs.add(name="input", datatype="FP32", shape=(1, 1, 8, 8))
    message.raw_input_contents.append(np.zeros((1, 1, 8, 8), np.float32).tobytes())
    settings = Settings(repository=models, device="cpu", port=0, grpc_port=0, threads=1, api_key_file=file)
    with running(settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as channel:
        sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers: Iterator[Any] = stub.ModelStreamInfer(iter(sent.get, None), metadata=bearer(FIRST), timeout=PATIENCE)

        def ask() -> str:
            sent.put(message)
            return str(next(answers).error_message)

        assert ask() == ""
        write(SECOND)
        until(lambda: "the key is not one that this server knows" in ask())
        write(SECOND, FIRST)
        until(lambda: ask() == "")
        sent.put(None)
        assert list(answers) == []
