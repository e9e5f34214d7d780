"""gRPC as messages: both doors agree; hostile messages, deadlines, cancellation, streams, caps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_messages import (
    INVALID,
    NOT_FOUND,
    SERVICE,
    X,
    channel,
    failures,
    logits,
    message,
    outcome,
    pending,
    refusal,
    slow,
)
from service_clients import Doors, both_doors
from service_runs import until
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc


@pytest.fixture(scope="module")
def doors(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    with both_doors(repository, tmp_path_factory.mktemp("grpc"), BNFOLD_MAX_BODY_BYTES="33554432") as started:
        yield started


@pytest.fixture(scope="module")
def holding(digits_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    """A server that holds requests for ten seconds, so that they wait as long as a test needs."""
    with both_doors(digits_only, tmp_path_factory.mktemp("holding"), BNFOLD_MAX_DELAY="10") as started:
        yield started


@pytest.fixture
def stub(doors: Doors) -> Iterator[Any]:
    with channel(doors) as opened:
        yield service_pb2_grpc.GRPCInferenceServiceStub(opened)


def over_rest(doors: Doors) -> np.ndarray:
    answer = httpx.post(
        f"{doors.child.url}/v2/models/digits/infer",
        content=X.tobytes(),
        headers={"inference-header-content-length": "0"},
    )
    start = int(answer.headers["inference-header-content-length"])
    return np.frombuffer(answer.content[start:], np.float32).reshape(2, 10)


# ------------------------------------------------------------------------------------------------ both doors agree


def test_raw_and_typed_contents_give_the_bits_of_rest(stub: Any, doors: Doors):
    wanted = over_rest(doors)
    for request in (message(), message(fp32_contents=X.ravel().tolist())):
        answer, call = stub.ModelInfer.with_call(request)
        assert logits(answer).tobytes() == wanted.tobytes()
        assert (answer.model_name, answer.model_version) == ("digits", "1")
        metadata = dict(call.trailing_metadata())
        assert metadata["bnfold-model-version"] == "1"
        assert metadata["bnfold-provider"] == "CPUExecutionProvider"
        assert metadata["bnfold-model-digest"].startswith("sha256:")
    other = message(fp32_contents=(X.ravel() + np.float32(1e-3)).tolist())
    assert logits(stub.ModelInfer(other)).tobytes() != wanted.tobytes()


def test_documents_are_those_of_rest(stub: Any, doors: Doors):
    from google.protobuf.json_format import MessageToDict, ParseDict

    def rest(path: str) -> Any:
        return httpx.get(f"{doors.child.url}{path}").json()

    def plain(found: Any) -> Any:
        return MessageToDict(found, preserving_proto_field_name=True)

    config = stub.ModelConfig(pb.ModelConfigRequest(name="pair")).config
    assert config == ParseDict(rest("/v2/models/pair/config"), type(config)())
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="pair"))
    assert metadata == ParseDict(rest("/v2/models/pair"), type(metadata)())
    assert plain(stub.ServerMetadata(pb.ServerMetadataRequest())) == rest("/v2")
    statistics = stub.ModelStatistics(pb.ModelStatisticsRequest(name="digits"))
    assert statistics == ParseDict(rest("/v2/models/digits/stats"), type(statistics)())
    index = httpx.post(f"{doors.child.url}/v2/repository/index").json()
    listed = stub.RepositoryIndex(pb.RepositoryIndexRequest()).models
    assert [(each.name, each.version, each.state) for each in listed] == [
        (each["name"], each["version"], each["state"]) for each in index
    ]


ALIKE: dict[str, tuple[Any, dict[str, Any]]] = {
    "unknown model": (message(model="digit"), {"model": "digit"}),
    "unknown input": (message(name="image"), {"name": "image"}),
    "wrong datatype": (message(datatype="FP64"), {"datatype": "FP64"}),
    "BYTES": (message(datatype="BYTES"), {"datatype": "BYTES"}),
    "negative size": (message(shape=(-2, 1, 8, 8)), {"shape": [-2, 1, 8, 8]}),
    "no rows": (message(shape=(0, 1, 8, 8)), {"shape": [0, 1, 8, 8]}),
    "huge shape": (message(shape=(2**62, 1, 8, 8)), {"shape": [2**62, 1, 8, 8]}),
    "wrong rank": (message(shape=(2, 64)), {"shape": [2, 64]}),
    "no shape": (message(shape=()), {"shape": []}),
    "more rows than there are": (message(shape=(3, 1, 8, 8)), {"shape": [3, 1, 8, 8]}),
    "too many rows": (message([bytes(256 * 1025)], shape=(1025, 1, 8, 8)), {"shape": [1025, 1, 8, 8], "rows": 1025}),
}


@pytest.mark.parametrize("case", ALIKE)
def test_what_is_wrong_is_said_in_the_words_of_rest(case: str, stub: Any, doors: Doors):
    request, changes = ALIKE[case]
    model = changes.pop("model", "digits")
    data = bytes(256 * changes.pop("rows")) if "rows" in changes else X.tobytes()
    entry = {"name": "input", "datatype": "FP32", "shape": [2, 1, 8, 8], **changes}
    body = httpx.Request(
        "POST", "http://x", json={"inputs": [{**entry, "parameters": {"binary_data_size": len(data)}}]}
    ).content
    answer = httpx.post(
        f"{doors.child.url}/v2/models/{model}/infer",
        content=body + data,
        headers={"inference-header-content-length": str(len(body))},
    )
    code, details = refusal(stub.ModelInfer, request)
    assert code is {400: INVALID, 404: NOT_FOUND}[answer.status_code]
    assert details == answer.json()["error"]


# ------------------------------------------------------------------------------------------------ hostile messages

HOSTILE = {
    "no data": (message(fp32_contents=[]), "no data"),
    "raw data of another size": (message([b"1"]), "1 bytes of binary data"),
    "empty raw data": (message([b""]), "0 bytes of binary data"),
    "more raw data than inputs": (message([X.tobytes(), b""]), "2 raw_input_contents for 1 inputs"),
    "raw and typed": (message([X.tobytes()], fp32_contents=[1.0]), "both contents and raw_input_contents"),
    "too few elements": (message(fp32_contents=[1.0] * 127), "127 elements; expected 128"),
    "elements of another type": (message(int_contents=[1] * 128), "in int_contents; expected FP32 in fp32_contents"),
    "elements of two types": (
        message(fp32_contents=[1.0] * 128, bool_contents=[True]),
        "in bool_contents, fp32_contents",
    ),
    "few elements for a huge shape": (message(fp32_contents=[1.0], shape=(2**40 - 1, 1, 8, 8)), "1 elements"),
    "texts": (message(bytes_contents=[b"a"]), "in bytes_contents"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_by_name(case: str, stub: Any):
    request, words = HOSTILE[case]
    code, details = refusal(stub.ModelInfer, request)
    assert (code, words in details) == (INVALID, True), details
    assert "\n" not in details


def test_inputs_and_outputs_stand_once(stub: Any):
    twice = message([X.tobytes()] * 2)
    twice.inputs.append(twice.inputs[0])
    assert "stands twice" in refusal(stub.ModelInfer, twice)[1]
    twice = message()
    for _ in range(2):
        twice.outputs.add(name="logits")
    assert "stands twice" in refusal(stub.ModelInfer, twice)[1]
    assert "no input 'input'" in refusal(stub.ModelInfer, pb.ModelInferRequest(model_name="digits"))[1]


def test_parameters_are_checked(stub: Any):
    for name, kind, value in (
        ("timeout", "int64_param", -1),
        ("timeout", "string_param", "soon"),
        ("timeout", "double_param", 0.5),
        ("priority", "int64_param", -3),
        ("priority", "bool_param", True),
    ):
        request = message()
        setattr(request.parameters[name], kind, value)
        code, details = refusal(stub.ModelInfer, request)
        assert (code, f"as {name}; expected" in details) == (INVALID, True), details
    request = message()
    request.parameters["priority"].uint64_param = 1
    request.parameters["mine"].string_param = "x"
    request.parameters["timeout"].int64_param = 0
    request.parameters["empty"].SetInParent()
    assert len(stub.ModelInfer(request).raw_output_contents) == 1


def test_bytes_that_are_no_message(doors: Doors):
    with channel(doors) as opened:
        for method in SERVICE.methods:
            if method.name == "ModelStreamInfer" or not method.input_type.fields:
                continue  # an empty message takes any bytes for fields that it does not know
            call = opened.unary_unary(f"/{SERVICE.full_name}/{method.name}")
            code, details = refusal(call, b"\xff\xff\xff\xff")
            assert code in (INVALID, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED), method.name
            assert "\n" not in details
        code, _ = refusal(opened.unary_unary(f"/{SERVICE.full_name}/ModelExplain"), b"")
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_every_method_of_the_proto_is_answered(doors: Doors):
    """One that a later release adds is not offered until somebody offers it; none ends in an unforeseen error."""
    with channel(doors) as opened:
        for method in SERVICE.methods:
            if method.name == "ModelStreamInfer":
                continue
            call = opened.unary_unary(f"/{SERVICE.full_name}/{method.name}")
            assert outcome(call, b"", timeout=30) not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), (
                method.name
            )
    assert "Traceback" not in doors.child.text(), doors.child.text()[-4000:]


def test_messages_are_capped_also_when_they_unpack(stub: Any):
    too_large = message([bytes(2**25 + 4)], shape=(1, 1, 8, 8))
    for compression in (None, grpc.Compression.Gzip, grpc.Compression.Deflate):
        code, _ = refusal(stub.ModelInfer, too_large, compression=compression)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert logits(stub.ModelInfer(message(), compression=grpc.Compression.Gzip)).shape == (2, 10)


def test_messages_that_are_too_large_write_no_traceback(doors: Doors):
    too_large = message([bytes(2**25 + 4)], shape=(1, 1, 8, 8)).SerializeToString()

    def send(_: int) -> Any:
        with channel(doors) as opened:
            call = opened.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
            return outcome(call, too_large, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        codes = set(pool.map(send, range(12)))
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    assert "Traceback" not in doors.child.text(), doors.child.text()[-4000:]


def _mutations(generator: np.random.Generator) -> Iterator[bytes]:
    """Requests with bytes changed, left out, doubled, or cut off."""
    whole = [message().SerializeToString(), message(fp32_contents=X.ravel().tolist()).SerializeToString()]
    for _ in range(600):
        found = bytearray(whole[generator.integers(len(whole))])
        for _ in range(generator.integers(1, 6)):
            at = int(generator.integers(min(len(found), 120)))  # where the structure is
            match generator.integers(4):
                case 0:
                    found[at] = generator.integers(256)
                case 1:
                    del found[at : at + int(generator.integers(1, 9))]
                case 2:
                    found[at:at] = found[at : at + int(generator.integers(1, 40))]
                case _:
                    del found[len(found) - int(generator.integers(1, 40)) :]
        yield bytes(found)


def test_damaged_messages_are_answered_or_refused(doors: Doors):
    fine = {None, INVALID, NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    fine |= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}  # a parameter may be a timeout now
    with channel(doors) as opened:
        call = opened.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        codes = [outcome(call, body, timeout=30) for body in _mutations(np.random.default_rng(5))]
    assert set(codes) <= fine
    assert INVALID in codes
    assert "Traceback" not in doors.child.text(), doors.child.text()[-4000:]
    assert doors.child.child.poll() is None


# --------------------------------------------------------------------------------------- time, leaving, and streams


def test_a_deadline_of_the_client_or_of_the_request_ends_it(stub: Any, doors: Doors):
    assert refusal(stub.ModelInfer, slow(), timeout=0.001)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    code, details = refusal(stub.ModelInfer, slow(timeout=1))
    assert code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE), details
    assert doors.child.child.poll() is None
    assert logits(stub.ModelInfer(message())).shape == (2, 10)


def _rows(stub: Any) -> int:
    return stub.ModelStatistics(pb.ModelStatisticsRequest(name="digits")).model_stats[0].inference_count


def test_a_call_that_is_cancelled_while_it_waits_is_not_run(holding: Doors):
    with channel(holding) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        failed, run = failures(holding, "cancelled"), _rows(stub)
        calls = [stub.ModelInfer.future(message()) for _ in range(8)]
        until(lambda: pending(holding) == 16)
        for call in calls:
            call.cancel()
        until(lambda: failures(holding, "cancelled") == failed + 8)
        assert pending(holding) == 0
        assert _rows(stub) == run


def test_a_client_that_leaves_its_stream_leaves_nothing_behind(holding: Doors):
    with channel(holding) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        failed, run = failures(holding, "cancelled"), _rows(stub)
        sending: queue.Queue[Any] = queue.Queue()
        call = stub.ModelStreamInfer(iter(sending.get, None))
        for number in range(6):
            sending.put(message(identity=str(number)))
        until(lambda: pending(holding) == 12)
        call.cancel()
        sending.put(None)
        until(lambda: failures(holding, "cancelled") == failed + 6)
        assert pending(holding) == 0
        assert _rows(stub) == run


def test_a_stream_answers_each_message_with_its_id_and_goes_on_after_errors(stub: Any):
    requests = [message(identity=str(number)) for number in range(100)]
    requests[7] = message(identity="7", name="image")
    requests[9] = message(identity="9", model="digit")
    answers = list(stub.ModelStreamInfer(iter(requests)))
    assert sorted((each.infer_response.id for each in answers), key=int) == [str(number) for number in range(100)]
    failed = {each.infer_response.id: each.error_message for each in answers if each.error_message}
    assert set(failed) == {"7", "9"}
    assert "no input 'image'" in failed["7"]
    assert "no model 'digit'" in failed["9"]
    for each in answers:
        if not each.error_message:
            assert len(each.infer_response.raw_output_contents[0]) == 80
            assert each.infer_response.parameters["triton_final_response"].bool_param


def test_many_threads_on_one_channel_get_their_own_rows(stub: Any):
    generator = np.random.default_rng(0)
    batches = [generator.random((int(rows), 1, 8, 8)).astype(np.float32) for rows in generator.integers(1, 5, 60)]
    alone = [logits(stub.ModelInfer(message([each.tobytes()], shape=each.shape))) for each in batches]
    found: dict[int, np.ndarray] = {}

    def ask(number: int) -> None:
        each = batches[number]
        found[number] = logits(stub.ModelInfer(message([each.tobytes()], shape=each.shape), timeout=60))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, wanted in enumerate(alone):
        assert found[number].shape == wanted.shape
        assert np.abs(found[number] - wanted).max() <= 1e-5 * np.abs(wanted).max()
