from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import service.http.flat
import service.http.rest
from bnfold.datatypes import WIRE
from service.errors import BadRequest, Fault, TooLarge
from service.http.rest import parse_request
from service.protocol.requests import Limits, Signature
from service.protocol.tensors import Port

pytest.importorskip("simdjson")

LIMITS = Limits(rows=64, json_bytes=100_000)
X = Port("x", "FP32", WIRE["FP32"], (-1,))
Y = Port("y", "FP32", WIRE["FP32"], (-1, 2))
LIST = '{"id":"a","inputs":[{"name":"x","shape":[%d],"datatype":"FP32","data":%s}]}'


def signature(*ports: Port) -> Signature:
    return Signature(ports or (X,), (Y,), True)


def outcome(body: bytes, ports: Signature, limits: Limits = LIMITS) -> tuple[Any, ...]:
    """All that is understood of a body, to the bit; or how it is refused."""
    try:
        request = parse_request(body, None, ports, limits)
    except Fault as fault:
        return type(fault), str(fault)
    arrays = [(name, array.dtype, array.shape, array.tobytes()) for name, array in request.inputs.items()]
    return request.id, request.rows, request.outputs, request.timeout, request.priority, arrays


def outcomes(body: bytes, ports: Signature, limits: Limits = LIMITS) -> tuple[Any, Any]:
    """Of a body on both ways: the first time, and again when its head is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.http.flat, "simdjson", None)
        expected = outcome(body, ports, limits)
    first, again = outcome(body, ports, limits), outcome(body, ports, limits)
    assert first == again
    return first, expected


@pytest.fixture
def numbers_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No JSON is read but heads."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the whole body was read as JSON")

    monkeypatch.setattr(service.http.rest, "parse_json", refuse)


@pytest.mark.usefixtures("numbers_cut")
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("last", ["data", "name"])
def test_a_flat_list_is_cut_out_and_read_at_once(indent: int | None, last: str):
    entry = {"data": [1.5, -2, 3e-3], "datatype": "FP32", "shape": [3], "name": "x"}
    entry[last] = entry.pop(last)
    request = parse_request(json.dumps({"inputs": [entry]}, indent=indent).encode(), None, signature(), LIMITS)
    assert request.inputs["x"].tobytes() == np.array([1.5, -2, 3e-3], np.float32).tobytes()


@pytest.mark.usefixtures("numbers_cut")
def test_a_head_is_understood_once_whatever_its_id():
    ports = signature()
    for identity in ("a", "b", 'quoted "data":[', "é"):
        entry = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
        body = json.dumps({"id": identity, "inputs": [entry], "parameters": {"priority": 3}}).encode()
        request = parse_request(body, None, ports, LIMITS)
        assert (request.id, request.priority, request.inputs["x"].tolist()) == (identity, 3, [1.0, 2.0])
    assert len(ports.plans) == 1


def test_a_body_that_is_spelt_like_the_key_of_a_head_is_no_json():
    ports = signature()
    parse_request((LIST % (2, "[1,2]")).encode(), None, ports, LIMITS)
    assert len(ports.plans) == 1
    found, expected = outcomes(b"\0" + (LIST % (2, "[1,2]")).replace('"id":"a",', "").encode(), ports)
    assert found == expected
    assert found[0] is BadRequest


@given(st.lists(st.floats(allow_nan=False) | st.integers(-(2**70), 2**70), max_size=8))
@example([3.4028235677973362e38])  # the last double that rounds to the largest FP32
@example([3.4028235677973366e38])  # the first that does not
@example([-3.4028235677973366e38])
@example([16777217, 9007199254740993, 2**63, 2**64 - 1, 2**64, -(2**63) - 1])
@example([1.000000059604644775390625, 1e-46, 7e-46, -0.0, 5e-324])
def test_numbers_become_the_same_bits(numbers: list[float]):
    found, expected = outcomes((LIST % (len(numbers), json.dumps(numbers))).encode(), signature())
    assert found == expected


@given(st.text('0123456789.,-+eE \n\t[]{}:"trufalsn\\\0\x0bNI', max_size=24))
@example("-0,0,-0.0,-0e9")
@example("1e400,1")
@example("01,1")
@example("true,1")
@example("null")
@example('"1"')
@example("1],[2")
@example('{"a":1}')
@example("NaN")
@example("1.,2")
@example("")
@example("\ufeff1")
@example('{"a":' * 2000)
def test_whatever_stands_in_the_list_is_read_or_refused_in_the_same_way(text: str):
    for count in (1, 2, 3):
        found, expected = outcomes((LIST % (count, f"[{text}]")).encode(), signature())
        assert found == expected


@given(st.integers(0, 89), st.sampled_from(["", " ", ",", '"', "[", "]", "1", "\\", "\xff", ":", '"data":[3],']))
def test_a_head_that_is_damaged_anywhere_is_read_or_refused_in_the_same_way(at: int, text: str):
    body = (LIST % (2, "[1,2]")).encode()
    for cut in (0, 1):
        found, expected = outcomes(body[:at] + text.encode("latin-1") + body[at + cut :], signature())
        assert found == expected


# Where they say @, there stands what is right of the input.
_INPUT = '"name":"x","shape":[2],"datatype":"FP32"'
BODIES = {
    "data twice, the list first": '{"inputs":[{@,"data":[1,2],"data":[3]}]}',
    "data twice, the list last": '{"inputs":[{@,"data":7,"data":[1,2]}]}',
    "data twice, one name escaped": '{"inputs":[{@,"data":[1,2],"d\\u0061ta":[3,4]}]}',
    "data under another name": '{"inputs":[{@,"my\\"data":[1,2]}]}',
    "data in the parameters, and in its place": '{"parameters":{"data":[1,2]},"inputs":[{@,"data":[3,4]}]}',
    "data in the parameters alone": '{"parameters":{"data":[1,2]},"inputs":[{@}]}',
    "data of the request": '{"data":[1,2],"inputs":[{@}]}',
    "two inputs": '{"inputs":[{@,"data":[1,2]},{@,"data":[3,4]}]}',
    "inputs twice": '{"inputs":[{@,"data":[1,2]}],"inputs":[]}',
    "no list of inputs": '{"inputs":{@,"data":[1,2]}}',
    "a list alone": '[{"data":[1,2]}]',
    "nested": '{"inputs":[{@,"data":[[1,2]]}]}',
    "too few": '{"inputs":[{@,"data":[1]}]}',
    "too many": '{"inputs":[{@,"data":[1,2,3]}]}',
    "with a blob's size": '{"inputs":[{@,"parameters":{"binary_data_size":0},"data":[1,2]}]}',
    "in shared memory": '{"inputs":[{@,"parameters":{"shared_memory_region":"a"},"data":[1,2]}]}',
    "an id that is no text": '{"id":3,"inputs":[{@,"data":[1,2]}]}',
    "an empty id": '{"id":"","inputs":[{@,"data":[1,2]}]}',
    "outputs and a deadline": '{"inputs":[{@,"data":[1,2]}],"outputs":[{"name":"y"}],"parameters":{"timeout":7}}',
    "binary answers": '{"inputs":[{@,"data":[1,2]}],"parameters":{"binary_data_output":true}}',
    "no such output": '{"inputs":[{@,"data":[1,2]}],"outputs":[{"name":"z"}]}',
    "text after it": '{"inputs":[{@,"data":[1,2]}]}x',
    "a list that does not end": '{"inputs":[{@,"data":[1,2',
    "another type": '{"inputs":[{"name":"x","shape":[2],"datatype":"INT64","data":[1,2]}]}',
    "too many rows": '{"inputs":[{"name":"x","shape":[65],"datatype":"FP32","data":[1' + 64 * ",1" + "]}]}",
}


@pytest.mark.parametrize("case", BODIES)
def test_what_is_no_plain_request_is_read_or_refused_as_before(case: str):
    found, expected = outcomes(BODIES[case].replace("@", _INPUT).encode(), signature())
    assert found == expected


@pytest.mark.parametrize("limits", [Limits(64, json_bytes=60), Limits(64, 10_000, json_values=8)])
def test_the_caps_of_json_hold(limits: Limits):
    found, expected = outcomes((LIST % (9, "[1,2,3,4,5,6,7,8,9]")).encode(), signature(), limits)
    assert found == expected
    assert found[0] is TooLarge


@pytest.mark.parametrize("ports", [(X, Y), (Port("x", "FP64", WIRE["FP64"], (-1,)),)])
def test_other_inputs_go_the_longer_way(ports: tuple[Port, ...]):
    entries = [
        {"name": port.name, "shape": [2] if port is not Y else [2, 2], "datatype": port.datatype, "data": [0.1] * 2}
        for port in ports
    ]
    if len(ports) == 2:
        entries[1]["data"] = [0.1] * 4
    found, expected = outcomes(json.dumps({"inputs": entries}).encode(), signature(*ports))
    assert found == expected
    assert found[1] == 2


def test_a_body_that_is_very_large_is_read_without_the_fast_parser(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service.http.flat, "_LARGEST", 50)
    assert service.http.flat.cut_numbers((LIST % (1, "[1]")).encode()) is None
