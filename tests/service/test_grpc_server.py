"""gRPC as a server: health, keys, workers, the access log, a full queue, the start and the stop."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_messages import INVALID, NOT_FOUND, SERVICE, channel, failures, message, outcome, pending, refusal, slow
from service_clients import Doors, both_doors
from service_runs import ROOT, until
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from service import errors
from service.http.answers import status_of
from service.rpc.door import check_grpc
from service.rpc.statuses import code_of, metadata_of
from service.settings import Settings


@pytest.fixture(scope="module")
def doors(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with both_doors(repository, tmp_path_factory.mktemp("grpc"), BNFOLD_THREADS="2") as started:
        yield started


def test_a_stream_answers_in_order_of_completion(doors: Doors):
    with channel(doors) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        first = [
            each.infer_response.id for each in stub.ModelStreamInfer(iter([slow("slow"), message(identity="fast")]))
        ]
    assert first == ["fast", "slow"]


def test_health_of_the_server_and_of_models(doors: Doors):
    with channel(doors) as opened:
        health = health_pb2_grpc.HealthStub(opened)
        for name in ("", SERVICE.full_name, "digits"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1, name
        assert refusal(health.Check, health_pb2.HealthCheckRequest(service="digit"))[0] is NOT_FOUND


def test_keys_come_in_the_metadata(digits_only: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-inference\n")
    keys.chmod(0o600)
    with both_doors(digits_only, tmp_path, BNFOLD_API_KEY_FILE=str(keys)) as doors, channel(doors) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        denied = grpc.StatusCode.UNAUTHENTICATED
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert refusal(stub.ModelInfer, message())[0] is denied
        assert refusal(stub.ModelMetadata, pb.ModelMetadataRequest(name="digits"))[0] is denied
        wrong = (("authorization", "Bearer another-key-of-16"),)
        assert refusal(stub.ModelInfer, message(), metadata=wrong)[0] is denied
        assert refusal(lambda: list(stub.ModelStreamInfer(iter([message()]))))[0] is denied
        for metadata in ((("authorization", "Bearer a-key-for-inference"),), (("x-api-key", "a-key-for-inference"),)):
            assert len(stub.ModelInfer(message(), metadata=metadata).raw_output_contents) == 1
            assert len(list(stub.ModelStreamInfer(iter([message()]), metadata=metadata))) == 1
            load = pb.RepositoryModelLoadRequest(model_name="digits")
            assert refusal(stub.RepositoryModelLoad, load, metadata=metadata)[0] is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_message_without_a_key_is_not_taken_into_memory(digits_only: Path, tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-inference\n")
    keys.chmod(0o600)
    # gRPC itself reads up to some 40 MB ahead on a connection, more on a busy machine.
    size, calls = 60 * 2**20, 8

    def most(child: Any) -> int:
        status = Path(f"/proc/{child.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    with both_doors(digits_only, tmp_path, BNFOLD_API_KEY_FILE=str(keys)) as doors, channel(doors) as opened:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(opened).ModelInfer
        known = (("x-api-key", "a-key-for-inference"),)
        assert infer(message(), metadata=known).outputs
        before = most(doors.child.child)
        futures = [infer.future(message([bytes(size)])) for _ in range(calls)]
        assert {future.exception().code() for future in futures} == {grpc.StatusCode.UNAUTHENTICATED}
        unknown = most(doors.child.child) - before
        assert outcome(infer, message([bytes(size)]), metadata=known) is INVALID
        taken = most(doors.child.child) - before
    assert unknown < size < taken


@pytest.mark.parametrize(("given", "expected"), [(None, "ERROR"), ("DEBUG", "DEBUG")])
def test_the_library_of_grpc_keeps_its_own_lines_out_of_the_log_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
):
    """A stranger's greeting that fails is one, and no JSON."""
    monkeypatch.setenv("GRPC_VERBOSITY", given or "")
    if given is None:
        monkeypatch.delenv("GRPC_VERBOSITY")
    check_grpc(Settings(grpc_port=0))
    assert os.environ["GRPC_VERBOSITY"] == expected


NARROW = {
    "BNFOLD_MAX_CONNECTIONS": "4",
    "BNFOLD_HEADER_TIMEOUT": "1",
    "BNFOLD_BODY_TIMEOUT": "1",
    "BNFOLD_MAX_BODY_BYTES": "64KiB",
    "BNFOLD_KEEP_ALIVE_TIMEOUT": "2",
}


@pytest.fixture(scope="module")
def narrow(digits_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with both_doors(digits_only, tmp_path_factory.mktemp("narrow"), **NARROW) as started:
        yield started


def test_silent_connections_are_bounded_in_number_and_in_time(narrow: Doors):
    host, _, port = narrow.grpc.rpartition(":")
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(12)]
        for each in silent:  # those beyond the fourth at once, the others when they have sent no greeting in time
            assert is_closed(each)
    with channel(narrow) as opened:
        assert service_pb2_grpc.GRPCInferenceServiceStub(opened).ServerLive(pb.ServerLiveRequest(), timeout=60).live


def is_closed(connection: socket.socket) -> bool:
    """Whether the other end closes a connection before the time of the socket is over."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return True


def test_calls_beyond_the_bound_are_refused_and_taken_again_later(narrow: Doors):
    waiting: list[queue.Queue[Any]] = [queue.Queue() for _ in range(4)]
    with channel(narrow) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        streams = [stub.ModelStreamInfer(iter(each.get, None)) for each in waiting]
        for each, stream in zip(waiting, streams, strict=True):
            each.put(message())
            next(stream)
        assert refusal(stub.ModelInfer, message())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        for each in waiting:
            each.put(None)
        assert [list(stream) for stream in streams] == [[]] * 4
        until(lambda: outcome(stub.ModelInfer, message()) is None)


def test_a_call_whose_message_does_not_come_is_ended(narrow: Doors):
    waiting: queue.Queue[Any] = queue.Queue()
    with channel(narrow) as opened:
        tensors, short = f"/{SERVICE.full_name}/ModelInfer", f"/{SERVICE.full_name}/ModelMetadata"
        for path, seconds in ((tensors, 2), (short, 1), ("/grpc.health.v1.Health/Check", 1)):
            code, said = refusal(opened.stream_unary(path), iter(waiting.get, None))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert said == f"no message arrived within {seconds} s; send it faster"
        waiting.put(None)
    assert failures(narrow, "slow_client", model="") == 1


def test_an_idle_connection_is_closed_and_the_next_call_opens_another(narrow: Doors):
    seen: list[grpc.ChannelConnectivity] = []
    with channel(narrow) as opened:
        opened.subscribe(seen.append)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        until(lambda: grpc.ChannelConnectivity.READY in seen)
        until(lambda: seen[-1] is grpc.ChannelConnectivity.IDLE)
        assert stub.ServerLive(pb.ServerLiveRequest()).live


def test_sigterm_finishes_what_was_accepted_and_ends_streams(digits_only: Path, tmp_path: Path):
    settings = {"BNFOLD_DRAIN_DELAY": "0.2", "BNFOLD_MAX_DELAY": "3"}
    with both_doors(digits_only, tmp_path, **settings) as doors, channel(doors) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        sending: queue.Queue[Any] = queue.Queue()
        call = stub.ModelStreamInfer(iter(sending.get, None))
        sending.put(message(identity="streamed"))
        accepted = [stub.ModelInfer.future(message(identity=str(number))) for number in range(4)]
        until(lambda: pending(doors) == 10)
        doors.child.child.send_signal(signal.SIGTERM)
        until(lambda: not _is_ready(stub))
        assert [each.result(60).id for each in accepted] == ["0", "1", "2", "3"]
        # What was read of a stream is answered; then it is ended, and in peace.
        assert [each.infer_response.id for each in call] == ["streamed"]
        sending.put(None)
        assert doors.child.wait() == 0
    assert "Traceback" not in doors.child.text()


def _is_ready(stub: Any) -> bool:
    """Whether it says so; a server that has gone does not."""
    try:
        return stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
    except grpc.RpcError:
        return False


def test_calls_stand_in_the_access_log_with_their_ids(digits_only: Path, tmp_path: Path):
    settings = {"BNFOLD_ACCESS_LOG": "1", "BNFOLD_LOG_FORMAT": "json"}
    with both_doors(digits_only, tmp_path, **settings) as doors, channel(doors) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        _, call = stub.ModelInfer.with_call(message(), metadata=(("x-request-id", "mine-1"),))
        assert dict(call.trailing_metadata())["x-request-id"] == "mine-1"
        assert refusal(stub.ModelInfer, message(name="image"))[0] is INVALID
        list(stub.ModelStreamInfer(iter([message(), message(model="digit")])))
        until(lambda: doors.child.text().count("/inference.GRPCInferenceService/") == 4)
        lines = [json.loads(line) for line in doors.child.text().splitlines() if "GRPCInferenceService/" in line]
    assert sorted(line["status"] for line in lines) == [200, 200, 400, 404]
    (mine,) = (line for line in lines if line["request_id"] == "mine-1")
    assert (mine["model"], mine["version"], mine["status"]) == ("digits", "1", 200)
    assert mine["path"].endswith("/ModelInfer")


def test_several_workers_share_the_port_and_their_counts(digits_only: Path, tmp_path: Path):
    with both_doors(digits_only, tmp_path, BNFOLD_WORKERS="2") as doors:
        for _ in range(12):  # a connection each, so that both workers get some
            with channel(doors) as opened:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
                assert len(stub.ModelInfer(message(), wait_for_ready=True, timeout=30).raw_output_contents) == 1
        with channel(doors) as opened:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
            statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(name="digits")).model_stats[0]
        assert statistics.inference_stats.success.count == 12
        assert statistics.inference_count == 24
        doors.child.child.send_signal(signal.SIGTERM)
        assert doors.child.wait() == 0


# ------------------------------------------------------------------------------------------------------- the start


def _serve(repository: Path, *flags: str, code: str = "") -> tuple[int, list[str]]:
    """Exit code and lines of a server that cannot start."""
    command = [
        sys.executable,
        "-c",
        f"{code}\nfrom bnfold.__main__ import main\nimport sys\nsys.exit(main(sys.argv[1:]))",
    ]
    ran = subprocess.run(
        [*command, "serve", str(repository), "--port", "0", "--device", "cpu", *flags],
        cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return ran.returncode, ran.stderr.splitlines()


def test_without_the_extra_a_port_is_one_sentence_and_no_port_is_fine(digits_only: Path):
    hidden = "import sys\nsys.modules['grpc'] = None"
    status, lines = _serve(digits_only, "--grpc-port", "0", code=hidden)
    assert status == 2
    assert len(lines) == 1
    assert "pip install 'bnfold[grpc]'" in lines[0]
    probe = f"{hidden}\nimport service.app, service.rpc.door\nassert 'tritonclient' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", probe], cwd=ROOT).returncode == 0


def test_a_port_that_is_taken_is_one_sentence(digits_only: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, lines = _serve(digits_only, "--grpc-port", str(taken.getsockname()[1]))
    assert status == 2
    assert len(lines) == 1
    assert "cannot listen" in lines[0]


def test_a_second_signal_ends_it_at_once(digits_only: Path, tmp_path: Path):
    with both_doors(digits_only, tmp_path, BNFOLD_MAX_DELAY="10") as doors, channel(doors) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        calls = [stub.ModelInfer.future(message()) for _ in range(4)]
        until(lambda: pending(doors) == 8)
        doors.child.child.send_signal(signal.SIGTERM)
        until(lambda: not _is_ready(stub))
        doors.child.child.send_signal(signal.SIGTERM)
        doors.child.wait()
        assert all(call.exception(60) is not None for call in calls)  # they were not waited for
    assert "rpc/door" not in doors.child.text().partition("CancelledError")[2]


FAULTS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.Fault)), key=str
)


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind is not errors.Fault])
def test_codes_follow_the_statuses_of_rest(kind: type[errors.Fault]):
    problem = kind("words", "POST") if kind is errors.BadMethod else kind("words")
    status, code = status_of(problem), code_of(problem)
    expected = {
        400: INVALID, 401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED, 404: NOT_FOUND,
        413: grpc.StatusCode.RESOURCE_EXHAUSTED, 500: grpc.StatusCode.INTERNAL, 501: grpc.StatusCode.UNIMPLEMENTED,
        503: grpc.StatusCode.UNAVAILABLE,
    }  # fmt: skip
    special = {
        errors.Expired: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.LoadFailed: grpc.StatusCode.FAILED_PRECONDITION,
    }
    http_only = (errors.UnknownPath, errors.BadMethod, errors.BadEncoding, errors.SlowClient)
    if kind not in http_only:
        assert code is special.get(kind, expected[status])
    assert (dict(metadata_of(problem)) == {"grpc-retry-pushback-ms": "1000"}) == (code is grpc.StatusCode.UNAVAILABLE)


def test_a_full_queue_says_when_to_try_again(digits_only: Path, tmp_path: Path):
    settings = {"BNFOLD_MAX_QUEUE_ROWS": "2", "BNFOLD_MAX_REQUEST_ROWS": "2", "BNFOLD_MAX_DELAY": "2"}
    with both_doors(digits_only, tmp_path, **settings) as doors, channel(doors) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        waiting = stub.ModelInfer.future(message())
        until(lambda: pending(doors) == 2)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(message())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        assert len(waiting.result(60).raw_output_contents) == 1
