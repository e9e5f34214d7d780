"""The Open Inference Protocol from the client's side: what is written is read back as the same bits."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.bundle import TensorSpec
from bnfold.datatypes import DATATYPES
from bnfold.errors import DataError
from bnfold.remote import Reply
from bnfold.wire import HEADER_LENGTH, read_numbers, read_response, write_request

FLOATS = ("float16", "float32", "float64")


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_float32_goes_out_and_comes_back_through_json_as_the_same_bits(values: list[float]) -> None:
    array = np.array(values, np.float32)
    body, _ = write_request({"x": array}, ["y"], binary=False)
    sent = orjson.loads(body)["inputs"][0]["data"]
    assert bits(np.array(sent, np.float64).astype(np.float32)) == bits(array)
    # A server may write the shortest digits that mean this float32, or all digits of the double.
    for written in (orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY), orjson.dumps(array.tolist())):
        entry = b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [%d], "data": %s}]}' % (len(array), written)
        found = read_response(Reply(200, {}, entry), [TensorSpec("y", "float32", (-1,))])
        assert bits(found["y"]) == bits(array)


@pytest.mark.parametrize("dtype", sorted(DATATYPES))
def test_every_dtype_comes_back_from_a_blob(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    if dtype in FLOATS:
        array[0] = np.nan, np.inf
    body, headers = write_request({"x": array}, ["y"], binary=True)
    length = int(headers[HEADER_LENGTH])
    (entry,) = orjson.loads(body[:length])["inputs"]
    assert body[length:] == bits(array)
    head = orjson.dumps({"outputs": [{**entry, "name": "y"}]})
    reply = Reply(200, {HEADER_LENGTH: str(len(head))}, head + body[length:])
    found = read_response(reply, [TensorSpec("y", dtype, (-1, 2))])["y"]
    assert found.dtype.name == dtype
    assert bits(found) == bits(array)


@pytest.mark.parametrize("dtype", sorted(set(DATATYPES) - set(FLOATS)))
def test_whole_numbers_and_truth_values_stay_what_they_are_in_json(dtype: str) -> None:
    info = None if dtype == "bool" else np.iinfo(dtype)
    array = np.array([True, False]) if info is None else np.array([info.min, info.max], dtype)
    spec = TensorSpec("y", dtype, (-1,))
    assert bits(read_numbers(array.tolist(), spec, 2)) == bits(array)
    for wrong in ([0.5, 0], ["0", "1"], [None, None], [True, 0] if info is not None else [1, 0]):
        with pytest.raises(DataError, match="not the 2 numbers"):
            read_numbers(wrong, spec, 2)
    if info is not None:
        with pytest.raises(DataError, match="beyond"):
            read_numbers([int(info.max) + 1, 0], spec, 2)


def test_nested_data_are_read_in_order() -> None:
    spec = TensorSpec("y", "float32", (-1, 2))
    assert read_numbers([[1, 2], [3, 4]], spec, 4).tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError):
        read_numbers([[1, 2], [3, {}]], spec, 4)
    deep: object = 1.0
    for _ in range(100):
        deep = [deep]
    with pytest.raises(DataError):
        read_numbers(deep, spec, 1)


def test_nan_is_never_written_as_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_request({"x": np.array([np.nan], np.float32)}, ["y"], binary=False)


def test_several_outputs_take_their_blobs_in_order() -> None:
    first, second = np.arange(2, dtype=np.float32), np.arange(3, dtype=np.int64)
    entries = [
        {"name": "b", "datatype": "INT64", "shape": [3], "parameters": {"binary_data_size": 24}},
        {"name": "a", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}},
    ]
    head = orjson.dumps({"outputs": entries})
    reply = Reply(200, {HEADER_LENGTH: str(len(head))}, head + bits(second) + bits(first))
    found = read_response(reply, [TensorSpec("a", "float32", (-1,)), TensorSpec("b", "int64", (-1,))])
    assert found["a"].tolist() == [0, 1]
    assert found["b"].tolist() == [0, 1, 2]
    twice = orjson.dumps({"outputs": [entries[1], entries[1]]})
    reply = Reply(200, {HEADER_LENGTH: str(len(twice))}, twice + bits(first) * 2)
    with pytest.raises(DataError, match="each once"):
        read_response(reply, [TensorSpec("a", "float32", (-1,))])
