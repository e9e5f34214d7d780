from __future__ import annotations

import json
import re
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bnfold.datatypes import WIRE
from service.errors import BadRequest
from service.http.rest import build_response, parse_request
from service.protocol.classification import classify
from service.protocol.requests import InferRequest, Limits, Signature
from service.protocol.tensors import Port

LABELS = ("cat", "dog", "a:b", "é")
SCORES = np.array([[0.5, 3, -1, 3], [-0.0, 1e-7, 1e10, 7.125]], np.float32)


def port(datatype: str = "FP32", shape: tuple[int, ...] = (-1, 4)) -> Port:
    return Port("scores", datatype, WIRE[datatype], shape)


def ask(k: Any, *, binary: bool = False, labels: tuple[str, ...] = LABELS, datatype: str = "FP32") -> InferRequest:
    document = {
        "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}],
        "outputs": [{"name": "scores", "parameters": {"classification": k, "binary_data": binary}}],
    }
    signature = Signature((Port("x", "FP32", WIRE["FP32"], (-1,)),), (port(datatype),), True, labels)
    return parse_request(json.dumps(document).encode(), None, signature, Limits(8, 10_000))


def test_writes_what_triton_writes():
    """Recorded from Triton 2.51: six decimals, the first of equals first, the label last."""
    assert classify(SCORES, port(), 2, LABELS) == (
        ["3.000000:1:dog", "3.000000:3:é", "10000000000.000000:2:a:b", "7.125000:3:é"],
        [2, 2],
    )
    assert classify(SCORES, port(), 30, ())[1] == [2, 4]
    assert classify(SCORES, port(), 3, LABELS[:2])[0][:3] == ["3.000000:1:dog", "3.000000:3", "0.500000:0:cat"]


def test_without_a_batch_axis_the_answer_has_one_axis():
    texts, shape = classify(SCORES[0], port(shape=(4,)), 2, ())
    assert (texts, shape) == (["3.000000:1", "3.000000:3"], [2])


def test_further_axes_count_as_classes_in_row_major_order():
    texts, shape = classify(SCORES.reshape(2, 2, 2), port(shape=(-1, 2, 2)), 1, ())
    assert (texts, shape) == (["3.000000:1", "10000000000.000000:2"], [2, 1])


@pytest.mark.parametrize("datatype", [name for name in WIRE if name != "BOOL"])
def test_ranks_every_kind_of_number_to_its_ends(datatype: str):
    dtype = WIRE[datatype]
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    scores = np.array([[limits.min, 1, limits.max, 0]], dtype)
    texts, _ = classify(scores, port(datatype), 4, ())
    smallest = [3, 0] if limits.min else [0, 3]  # of unsigned numbers it is 0, and then the first comes first
    assert [int(text.split(":")[1]) for text in texts] == [2, 1, *smallest]
    if dtype.kind != "f":
        assert texts[0] == f"{limits.max}:2"


@given(arrays.arrays(np.float32, (3, 5), elements=st.floats(width=32, allow_nan=False)), st.integers(1, 7))
def test_ranks_as_sorting_does(scores: np.ndarray, k: int):
    texts, shape = classify(scores, port(shape=(-1, 5)), k, ())
    assert shape == [3, min(k, 5)]
    found = np.array([int(text.split(":")[1]) for text in texts]).reshape(shape)
    for row, indices in zip(scores.tolist(), found.tolist(), strict=True):
        assert indices == sorted(range(5), key=lambda index: (-row[index], index))[: min(k, 5)]
    assert all(re.fullmatch(r"-?(\d+\.\d{6}|inf):\d", text) for text in texts)


def test_nan_has_no_rank():
    with pytest.raises(BadRequest, match="NaN"):
        classify(np.array([[np.nan, 1]], np.float32), port(shape=(-1, 2)), 1, ())


def test_comes_as_json_and_as_binary():
    body, length = build_response("m", "1", ask(2), {"scores": SCORES})
    assert length is None
    (entry,) = json.loads(body)["outputs"]
    assert (entry["datatype"], entry["shape"]) == ("BYTES", [2, 2])
    assert entry["data"] == ["3.000000:1:dog", "3.000000:3:é", "10000000000.000000:2:a:b", "7.125000:3:é"]
    packed, length = build_response("m", "1", ask(2, binary=True), {"scores": SCORES})
    assert length is not None
    (head,) = json.loads(packed[:length])["outputs"]
    blob = packed[length:]
    assert (head["datatype"], head["parameters"]) == ("BYTES", {"binary_data_size": len(blob)})
    found = []
    while blob:
        (size,) = struct.unpack_from("<I", blob)
        found.append(blob[4 : 4 + size].decode())
        blob = blob[4 + size :]
    assert found == entry["data"]


def test_half_precision_can_be_ranked_in_json():
    body, _ = build_response("m", "1", ask(1, datatype="FP16"), {"scores": SCORES[:1].astype(np.float16)})
    assert json.loads(body)["outputs"][0]["data"] == ["3.000000:1:dog"]


def test_none_asks_for_the_numbers():
    body, _ = build_response("m", "1", ask(0), {"scores": SCORES})
    assert json.loads(body)["outputs"][0]["datatype"] == "FP32"


@pytest.mark.parametrize("k", [-1, 1.5, "2", True, [1], 2**64])
def test_refuses_what_is_no_number_of_classes(k: Any):
    if k == 2**64:
        assert build_response("m", "1", ask(2**63), {"scores": SCORES})[1] is None
        return
    with pytest.raises(BadRequest, match="classification"):
        ask(k)


def test_bools_have_no_rank():
    with pytest.raises(BadRequest, match="BOOL"):
        ask(1, datatype="BOOL")


def test_labels_belong_to_the_first_output_alone():
    other = Port("other", "FP32", WIRE["FP32"], (-1, 4))
    signature = Signature((Port("x", "FP32", WIRE["FP32"], (-1,)),), (port(), other), True, LABELS)
    document = {
        "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0]}],
        "outputs": [{"name": name, "parameters": {"classification": 1}} for name in ("scores", "other")],
    }
    request = parse_request(json.dumps(document).encode(), None, signature, Limits(8, 10_000))
    body, _ = build_response("m", "1", request, {"scores": SCORES[:1], "other": SCORES[:1]})
    assert [entry["data"] for entry in json.loads(body)["outputs"]] == [["3.000000:1:dog"], ["3.000000:1"]]
