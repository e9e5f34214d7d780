from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.datatypes import WIRE
from service.errors import BadRequest, Fault, TooLarge, Unsupported
from service.http.rest import build_response, parse_header_length, parse_request
from service.protocol.requests import InferRequest, Limits, Signature
from service.protocol.tensors import Port

LIMITS = Limits(rows=8, json_bytes=10_000)
LEFT = Port("left", "FP32", WIRE["FP32"], (-1, 2))
RIGHT = Port("right", "INT64", WIRE["INT64"], (-1, 3))
SUM = Port("sum", "FP32", WIRE["FP32"], (-1, 2))
HALF = Port("half", "FP16", WIRE["FP16"], (-1,))

LEFT_DATA = np.array([[1.5, -2], [3, 4]], np.float32)
RIGHT_DATA = np.array([[1, 2, 3], [4, 5, 6]], np.int64)


def document() -> dict[str, Any]:
    """A request in JSON that is in order."""
    return {
        "id": "a",
        "inputs": [
            {"name": "left", "shape": [2, 2], "datatype": "FP32", "data": LEFT_DATA.tolist()},
            {"name": "right", "shape": [2, 3], "datatype": "INT64", "data": RIGHT_DATA.ravel().tolist()},
        ],
    }


def parse(body: Any, blobs: bytes | None = None, outputs: tuple[Port, ...] = (SUM,)) -> InferRequest:
    head = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = None if blobs is None else len(head)
    return parse_request(head + (blobs or b""), length, Signature((LEFT, RIGHT), outputs, True), LIMITS)


def test_reads_json():
    request = parse(document())
    assert request.id == "a"
    assert request.rows == 2
    assert request.timeout is None
    assert request.inputs["left"].tobytes() == LEFT_DATA.tobytes()
    assert request.inputs["right"].tobytes() == RIGHT_DATA.tobytes()
    assert [(wanted.port.name, wanted.binary) for wanted in request.outputs] == [("sum", False)]


def test_reads_blobs_in_the_order_of_the_request_and_gives_the_order_of_the_model():
    body = document()
    body["inputs"].reverse()
    for entry, array in zip(body["inputs"], (RIGHT_DATA, LEFT_DATA), strict=True):
        del entry["data"]
        entry["parameters"] = {"binary_data_size": array.nbytes}
    request = parse(body, RIGHT_DATA.tobytes() + LEFT_DATA.tobytes())
    assert list(request.inputs) == ["left", "right"]
    assert request.inputs["left"].tobytes() == LEFT_DATA.tobytes()
    assert request.inputs["right"].tobytes() == RIGHT_DATA.tobytes()


def test_json_and_binary_inputs_may_stand_in_one_request():
    body = document()
    body["inputs"][1] = {**body["inputs"][1], "parameters": {"binary_data_size": 48}}
    del body["inputs"][1]["data"]
    assert parse(body, RIGHT_DATA.tobytes()).inputs["right"].tolist() == RIGHT_DATA.tolist()


def test_nan_and_infinity_survive_as_binary():
    values = np.array([[np.nan, np.inf], [-np.inf, -0.0]], np.float32)
    body = document()
    body["inputs"][0] = {"name": "left", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    assert parse(body, values.tobytes()).inputs["left"].tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, None, [False]),
        ({}, [], [False]),
        ({"binary_data_output": True}, None, [True]),
        ({"binary_data_output": True}, [{"name": "sum", "parameters": {"binary_data": False}}], [False]),
        ({}, [{"name": "sum", "parameters": {"binary_data": True}}], [True]),
        ({"binary_data_output": True}, [{"name": "sum"}], [True]),
    ],
)
def test_outputs_are_binary_where_the_request_says_so(parameters: Any, outputs: Any, binary: list[bool]):
    request = parse({**document(), "parameters": parameters, "outputs": outputs})
    assert [wanted.binary for wanted in request.outputs] == binary


def test_timeout_is_in_microseconds():
    assert parse({**document(), "parameters": {"timeout": 250_000}}).timeout == 0.25
    assert parse({**document(), "parameters": {"timeout": 0}}).timeout is None


def test_priority_is_a_whole_number():
    assert parse(document()).priority == 0
    assert parse({**document(), "parameters": {"priority": 3}}).priority == 3
    assert parse({**document(), "parameters": {"priority": 0, "mine": "x"}}).priority == 0


def test_an_empty_id_is_none():
    assert parse({**document(), "id": ""}).id is None


def _input(**changes: Any) -> dict[str, Any]:
    body = document()
    body["inputs"][0] = {key: value for key, value in {**body["inputs"][0], **changes}.items() if value is not ...}
    return body


HOSTILE: dict[str, Any] = {
    "empty body": b"",
    "no JSON": b"hello",
    "not UTF-8": b'{"id": "\xff"}',
    "cut short": orjson.dumps(document())[:-5],
    "too deep": b"[" * 2000 + b"]" * 2000,
    "a list": [document()],
    "null": None,
    "no inputs": {"id": "a"},
    "inputs are no list": {"inputs": {"left": 1}},
    "inputs of texts": {"inputs": ["left", "right"]},
    "an input is missing": {"inputs": document()["inputs"][:1]},
    "an input twice": {"inputs": [*document()["inputs"], document()["inputs"][0]]},
    "an unknown input": {"inputs": [*document()["inputs"], {**document()["inputs"][0], "name": "other"}]},
    "a name that is no text": _input(name=["left"]),
    "a name that is an object": _input(name={"left": 1}),
    "no shape": _input(shape=...),
    "negative size": _input(shape=[-2, -2]),
    "size of zero": _input(shape=[0, 2], data=[]),
    "size overflow": _input(shape=[2**62, 2]),
    "size beyond 64 bits": _input(shape=[2**64 + 2, 2]),
    "a product that is right in 64 bits": _input(shape=[2**62 + 1, 4], data=[1, 2, 3, 4]),
    "sizes of truth": _input(shape=[True, 2], data=[1, 2]),
    "sizes with a fraction": _input(shape=[2.0, 2]),
    "a hundred axes": _input(shape=[1] * 100, data=[1]),
    "wrong rank": _input(shape=[4]),
    "rows that differ": _input(shape=[1, 2], data=[1, 2]),
    "wrong datatype": _input(datatype="FP64"),
    "BYTES": _input(datatype="BYTES", data=["a", "b", "c", "d"]),
    "no datatype": _input(datatype=...),
    "no data": _input(data=...),
    "data of null": _input(data=None),
    "NaN literal": orjson.dumps(_input(data=[1, 2, 3, 4])).replace(b"[1,2,3,4]", b"[NaN,2,3,4]"),
    "infinite number": orjson.dumps(_input(data=[1, 2, 3, 4])).replace(b"[1,2,3,4]", b"[1e999,2,3,4]"),
    "data and a blob": _input(parameters={"binary_data_size": 16}),
    "a blob that is not there": _input(data=..., parameters={"binary_data_size": 16}),
    "a blob of negative size": _input(data=..., parameters={"binary_data_size": -16}),
    "a blob of no size": _input(data=..., parameters={"binary_data_size": "16"}),
    "a blob of true size": _input(data=..., parameters={"binary_data_size": True}),
    "parameters are a list": _input(parameters=[1]),
    "id is a number": {**document(), "id": 7},
    "parameters of the request are text": {**document(), "parameters": "fast"},
    "binary_data_output is a number": {**document(), "parameters": {"binary_data_output": 1}},
    "negative timeout": {**document(), "parameters": {"timeout": -1}},
    "timeout with a fraction": {**document(), "parameters": {"timeout": 0.5}},
    "timeout of truth": {**document(), "parameters": {"timeout": True}},
    "negative priority": {**document(), "parameters": {"priority": -1}},
    "priority of text": {**document(), "parameters": {"priority": "1"}},
    "priority of truth": {**document(), "parameters": {"priority": True}},
    "classification of text": {**document(), "outputs": [{"name": "sum", "parameters": {"classification": "2"}}]},
    "negative classification": {**document(), "outputs": [{"name": "sum", "parameters": {"classification": -2}}]},
    "an output without a name": {**document(), "outputs": [{}]},
    "an unknown output": {**document(), "outputs": [{"name": "other"}]},
    "an output twice": {**document(), "outputs": [{"name": "sum"}, {"name": "sum"}]},
    "outputs are text": {**document(), "outputs": "sum"},
    "binary_data is text": {**document(), "outputs": [{"name": "sum", "parameters": {"binary_data": "yes"}}]},
    "too many rows": _input(shape=[9, 2], data=[0] * 18),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses_by_name(case: str):
    with pytest.raises(BadRequest) as refusal:
        parse(HOSTILE[case])
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 500


def test_first_axes_may_differ_where_they_count_no_rows():
    body = json.dumps(HOSTILE["rows that differ"]).encode()
    assert parse_request(body, None, Signature((LEFT, RIGHT), (SUM,), False), LIMITS).rows == 2


def test_counts_rows_before_anything_runs():
    body = {
        "inputs": [
            {"name": "left", "shape": [9, 2], "datatype": "FP32", "data": [0] * 18},
            {"name": "right", "shape": [9, 3], "datatype": "INT64", "data": [0] * 27},
        ]
    }
    with pytest.raises(BadRequest, match="9 rows; expected at most 8"):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        {**document(), "parameters": {"sequence_id": 1}},
        _input(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}),
        {**document(), "outputs": [{"name": "sum", "parameters": {"shared_memory_region": "r"}}]},
    ],
)
def test_says_what_is_not_offered(body: Any):
    with pytest.raises(Unsupported):
        parse(body)


def test_refuses_json_above_its_cap_and_bytes_after_the_last_blob():
    with pytest.raises(TooLarge):
        parse(b" " * 10_001)
    with pytest.raises(BadRequest, match="4 bytes follow"):
        parse(document(), b"1234")


def test_a_hint_at_binary_data_comes_with_nan_in_json():
    with pytest.raises(BadRequest, match="binary data"):
        parse(HOSTILE["NaN literal"])


@pytest.mark.parametrize(
    ("value", "length", "expected"),
    [(None, 5, None), (b"5", 5, 5), (b"0", 5, 0), (b" 3 ", 5, 3), (b"007", 9, 7)],
)
def test_reads_the_length_of_the_json(value: bytes | None, length: int, expected: int | None):
    assert parse_header_length(value, length) == expected


@pytest.mark.parametrize("value", [b"6", b"-1", b"+1", b"1.0", b"", b"five", b"1" * 40, b"\xb2", b"0x1", b"1_0"])
def test_refuses_a_length_that_is_none(value: bytes):
    with pytest.raises(BadRequest, match="Inference-Header-Content-Length"):
        parse_header_length(value, 5)


def test_a_raw_tensor_is_the_whole_body_and_is_answered_in_binary():
    request = parse_request(LEFT_DATA.tobytes(), 0, Signature((LEFT,), (SUM,), True), LIMITS)
    assert request.inputs["left"].tolist() == LEFT_DATA.tolist()
    assert request.rows == 2
    assert [wanted.binary for wanted in request.outputs] == [True]


@pytest.mark.parametrize(
    ("body", "ports"),
    [
        (bytes(8), (LEFT, RIGHT)),
        (bytes(7), (LEFT,)),
        (b"", (LEFT,)),
        (bytes(8 * 9), (LEFT,)),
        (bytes(8), (Port("x", "FP32", WIRE["FP32"], (-1, -1)),)),
        (bytes(4), (Port("x", "FP32", WIRE["FP32"], (2,)),)),
        (bytes(8), (Port("x", "FP32", WIRE["FP32"], (-1, 0)),)),
    ],
)
def test_refuses_a_raw_tensor_that_leaves_something_open(body: bytes, ports: tuple[Port, ...]):
    with pytest.raises(BadRequest):
        parse_request(body, 0, Signature(ports, (SUM,), True), LIMITS)


def test_writes_json_and_blobs_in_the_order_that_was_asked_for():
    request = parse({**document(), "outputs": [{"name": "half", "parameters": {"binary_data": True}}, {"name": "sum"}]},
                    outputs=(SUM, HALF))  # fmt: skip
    outputs = {"sum": np.array([[0.1, 2]], np.float32), "half": np.array([1.5], np.float16)}
    body, length = build_response("m", "3", request, outputs)
    assert length is not None
    assert json.loads(body[:length]) == {
        "model_name": "m",
        "model_version": "3",
        "id": "a",
        "outputs": [
            {"name": "half", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
            {"name": "sum", "datatype": "FP32", "shape": [1, 2], "data": [0.1, 2.0]},
        ],
    }
    assert body[length:] == np.array([1.5], "<f2").tobytes()


def test_numbers_in_json_are_the_shortest_that_give_the_same_float32():
    values = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    body, length = build_response("m", "1", parse(document()), {"sum": values})
    assert length is None
    found = np.array(json.loads(body)["outputs"][0]["data"], np.float64).astype(np.float32)
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_to_write_nan_as_json_and_says_how_to_get_it(value: float):
    outputs = {"sum": np.array([[1, value]], np.float32)}
    with pytest.raises(BadRequest, match="binary_data"):
        build_response("m", "1", parse(document()), outputs)
    binary = parse({**document(), "parameters": {"binary_data_output": True}})
    body, length = build_response("m", "1", binary, outputs)
    assert body[length:] == outputs["sum"].tobytes()


def test_half_precision_travels_as_binary_alone():
    with pytest.raises(BadRequest, match="binary_data"):
        parse(document(), outputs=(HALF,))
    body = orjson.dumps({"inputs": [{"name": "half", "shape": [1], "datatype": "FP16", "data": [1.0]}]})
    with pytest.raises(BadRequest, match="binary data"):
        parse_request(body, None, Signature((HALF,), (SUM,), True), LIMITS)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_PATHS = [
    "id", "inputs", "outputs", "parameters", "inputs.0", "inputs.0.name", "inputs.0.shape", "inputs.0.shape.1",
    "inputs.0.datatype", "inputs.0.data", "inputs.0.parameters", "inputs.0.parameters.binary_data_size",
]  # fmt: skip


@given(st.sampled_from(_PATHS), _JSON, st.integers(-1, 300), st.binary(max_size=40))
def test_whatever_stands_anywhere_is_read_or_refused(path: str, value: Any, length: int, blobs: bytes):
    body: Any = document()
    body["inputs"][0]["parameters"] = {}
    holder = body
    *steps, last = path.split(".")
    for step in steps:
        holder = holder[int(step) if step.isdigit() else step]
    holder[int(last) if last.isdigit() else last] = value
    data = json.dumps(body).encode() + blobs
    for header in (None, max(0, length) % (len(data) + 1), len(data) - len(blobs)):
        try:
            request = parse_request(data, header, Signature((LEFT, RIGHT), (SUM,), True), LIMITS)
        except Fault:
            continue
        assert list(request.inputs) == ["left", "right"]
        assert 1 <= request.rows <= LIMITS.rows
