from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.bundle import TensorSpec
from bnfold.datatypes import WIRE
from bnfold.errors import BundleError
from service.errors import BadRequest
from service.protocol.tensors import Port, nested_shape, read_blob, read_numbers


def port(datatype: str = "FP32", *shape: int) -> Port:
    return Port("x", datatype, WIRE[datatype], shape or (-1,))


@pytest.mark.parametrize("datatype", sorted(WIRE))
def test_reads_little_endian_blobs_of_every_datatype(datatype: str):
    values = np.array([[0, 1], [1, 0], [1, 1]]).astype(WIRE[datatype])
    found = read_blob(memoryview(values.tobytes()), port(datatype, -1, 2), (3, 2))
    assert found.dtype == WIRE[datatype]
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize("size", [0, 7, 9])
def test_refuses_a_blob_of_another_length(size: int):
    with pytest.raises(BadRequest, match=f"has {size} bytes of binary data; expected 8 "):
        read_blob(memoryview(bytes(size)), port(), (2,))


def test_refuses_a_truth_value_that_is_neither_0_nor_1():
    with pytest.raises(BadRequest, match="BOOL"):
        read_blob(memoryview(b"\x00\x02"), port("BOOL"), (2,))


def test_an_unaligned_blob_becomes_an_aligned_array():
    data = memoryview(b"?" + np.arange(4, dtype=np.float32).tobytes())[1:]
    found = read_blob(data, port(), (4,))
    assert found.flags.aligned
    assert found.tolist() == [0, 1, 2, 3]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_nested_and_flat_numbers_are_the_same_tensor(shape: list[int], random: Any):
    values = np.array([random.uniform(-1e6, 1e6) for _ in range(math.prod(shape))], np.float32).reshape(shape)
    wanted = port("FP32", *[-1] * len(shape))
    for data in (values.tolist(), values.ravel().tolist()):
        found = read_numbers(data, wanted, tuple(shape))
        assert found.dtype == np.float32
        assert found.tobytes() == values.tobytes()
    assert nested_shape(values.tolist()) == shape


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("INT8", [-128, 127]),
        ("UINT8", [0, 255]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT64", [2**64 - 1, 5]),
        ("FP64", [1e308, 5e-324]),
        ("FP32", [3, 0.1]),
        ("BOOL", [True, False]),
    ],
)
def test_reads_the_ends_of_each_range_exactly(datatype: str, values: list[Any]):
    assert read_numbers(values, port(datatype), (2,)).tolist() == np.array(values, WIRE[datatype]).tolist()


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP32", ["1.5", 2]),
        ("FP32", [None, 2]),
        ("FP32", [{}, 2]),
        ("FP32", [1e39, 2]),
        ("FP16", [70000, 2]),
        ("INT32", [1.0, 2]),
        ("INT8", [128, 2]),
        ("UINT8", [-1, 2]),
        ("UINT64", [1.8446744073709552e19, 2]),
        ("BOOL", [1, 0]),
        ("FP32", [True, 2]),
        ("INT8", [2, False]),
        ("FP32", [1]),
        ("FP32", [1, 2, 3]),
        ("FP32", []),
        ("FP32", None),
        ("FP32", "12"),
        ("FP32", 12),
        ("FP32", {"0": 1, "1": 2}),
        ("FP32", [[1], [2]]),
        ("FP32", [[1, 2]]),
    ],
)
def test_refuses_what_numpy_would_convert_or_guess(datatype: str, values: Any):
    with pytest.raises(BadRequest):
        read_numbers(values, port(datatype), (2,))


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3]],
        [[1, 2], 3],
        [[1, 2, 3], [4]],
        [[1, 2], "34"],
        [[[1, 2]], [[3, 4]]],
        [[1], [2], [3], [4]],
        [[1, 2], [3, [4]]],
        [[1, 2], {"3": 4, "5": 6}],
    ],
)
def test_refuses_numbers_nested_unlike_the_shape(values: Any):
    with pytest.raises(BadRequest):
        read_numbers(values, port("FP32", -1, 2), (2, 2))


def test_a_deep_nest_is_refused_and_not_followed():
    deep: Any = 1.0
    for _ in range(900):
        deep = [deep]
    with pytest.raises(BadRequest):
        read_numbers(deep, port("FP32", -1, 1), (1, 1))


def test_a_long_text_between_numbers_takes_no_memory():
    # numpy would make an array of texts, each as long as the longest: 40 GB here.
    with pytest.raises(BadRequest):
        read_numbers(["x" * 1_000_000, *[""] * 9_999], port(), (10_000,))


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 4], [0, 4], [2, 0], [2, 5], [2], [2, 4, 1], [], [2.0, 4], [True, 4], ["2", 4], [2**64, 4], [2**40, 4],
        None, "24", {"0": 2}, 8, [None, 4], [1] * 1000,
    ],
)  # fmt: skip
def test_refuses_a_shape_that_does_not_fit(shape: Any):
    with pytest.raises(BadRequest, match="shape") as refusal:
        port("FP32", -1, 4).check_shape(shape)
    assert len(str(refusal.value)) < 300


def test_takes_a_shape_that_fits():
    assert port("FP32", -1, 4).check_shape([7, 4]) == (7, 4)
    assert port("FP32", -1, 4).has_batch
    assert not port("FP32", 2, 4).has_batch


def test_a_dtype_without_a_wire_format_is_refused_when_the_model_is_loaded():
    with pytest.raises(BundleError, match="bfloat16"):
        Port.of(TensorSpec("x", "bfloat16", (-1, 3)))
