from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bnfold.bundle import Golden, Manifest, TensorSpec, hash_tensor
from bnfold.bundle.goldens import decode_goldens, encode_goldens
from bnfold.bundle.manifest import DTYPES, REQUIRED_FILES
from bnfold.bundle.tensorfile import dump_tensors, find_dtype, load_tensors
from bnfold.errors import BundleError


def any_array(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Any bit patterns at all, NaN and subnormals with them; for bool 0 and 1."""
    size = int(np.prod(shape, dtype=int)) * find_dtype(dtype).itemsize
    data = np.random.default_rng(seed).bytes(size)
    if dtype == "bool":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, find_dtype(dtype)).reshape(shape)


arrays = st.builds(
    any_array,
    st.sampled_from(DTYPES),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    st.integers(0, 2**32),
)


def same_bits(one: np.ndarray, two: np.ndarray) -> bool:
    return (one.dtype.name, one.shape, one.tobytes()) == (two.dtype.name, two.shape, two.tobytes())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=9), arrays, max_size=4))
def test_tensors_come_back_bit_for_bit(tensors: dict[str, np.ndarray]) -> None:
    data = dump_tensors(tensors, "file")
    found = load_tensors(data, "file")
    assert sorted(found) == sorted(tensors)
    assert all(same_bits(found[name], array) for name, array in tensors.items())
    assert dump_tensors(dict(reversed(tensors.items())), "file") == data


@settings(max_examples=200, deadline=None)
@given(arrays, st.data())
def test_any_layout_of_memory_is_written_alike(array: np.ndarray, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    turned = np.array(array.transpose(axes), order="C").transpose(np.argsort(axes))
    assert same_bits(turned, array)
    assert dump_tensors({"x": turned}, "file") == dump_tensors({"x": array}, "file")
    assert hash_tensor(turned) == hash_tensor(array)


def test_byte_order_does_not_change_what_is_written() -> None:
    array = np.arange(3, dtype=np.float32)
    assert dump_tensors({"x": array.astype(">f4")}, "file") == dump_tensors({"x": array}, "file")
    assert hash_tensor(array.astype(">f4")) == hash_tensor(array)


def test_the_hash_of_a_tensor_is_that_of_dtype_shape_and_bytes() -> None:
    array = np.array([[1, 2, 3]], np.float32)
    assert hash_tensor(array) == hashlib.sha256(b"float32 1,3\n" + array.tobytes()).hexdigest()
    others = [array.T, array.view(np.int32), array[0], array + 1, array.astype(np.float64)]
    assert hash_tensor(array) not in [hash_tensor(other) for other in others]
    assert hash_tensor(np.float64(2.0)) == hashlib.sha256(b"float64 \n" + np.float64(2.0).tobytes()).hexdigest()
    assert hash_tensor(np.zeros(2, ml_dtypes.bfloat16)) == hashlib.sha256(b"bfloat16 2\n" + bytes(4)).hexdigest()


@pytest.mark.parametrize("array", [np.array(["a"]), np.array([object()]), np.zeros(1, np.complex64)])
def test_writes_numbers_alone(array: np.ndarray) -> None:
    with pytest.raises(BundleError, match="file, tensor 'x', has dtype"):
        dump_tensors({"x": array}, "file")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_reads_or_refuses_any_bytes(data: bytes) -> None:
    try:
        load_tensors(data, "file")
    except BundleError as problem:
        assert "is no safetensors file" in str(problem)  # noqa: PT017  either outcome is right


def manifest(spec: TensorSpec, output: TensorSpec, files: dict[str, bytes]) -> Manifest:
    hashes = dict.fromkeys([*REQUIRED_FILES, *files], "0" * 64)
    return Manifest(
        1, "x", 1, {"kind": "onnx"}, (spec,), (output,), "raw", None, None, (), {}, {}, hashes, "2026-01-31T23:59:59Z"
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2**32), st.booleans()), min_size=1, max_size=3), st.data())
def test_goldens_come_back_bit_for_bit(sets: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    dtypes = data.draw(st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)))
    given_spec, made_spec = TensorSpec("x", dtypes[0], (-1, 2)), TensorSpec("/y:0", dtypes[1], (-1, 3))
    goldens = [
        Golden(
            "any",
            {"x": any_array(dtypes[0], (rows, 2), seed)},
            {"/y:0": any_array(dtypes[1], (rows, 3), seed + 1)},
            {"/y:0": any_array("float64", (rows, 3), seed + 2)},
            any_array("int64", (rows,), seed) if labelled else None,
        )
        for rows, seed, labelled in sets
    ]
    files = encode_goldens(goldens, (given_spec,), (made_spec,))
    found = decode_goldens(files.__getitem__, manifest(given_spec, made_spec, files))
    for at, (one, two) in enumerate(zip(found, goldens, strict=True)):
        assert one.name == f"test_data_set_{at}"
        assert same_bits(one.inputs["x"], two.inputs["x"])
        assert same_bits(one.outputs["/y:0"], two.outputs["/y:0"])
        assert same_bits(one.truth["/y:0"], two.truth["/y:0"])
        assert (one.labels is None) == (two.labels is None)
        if one.labels is not None and two.labels is not None:
            assert same_bits(one.labels, two.labels)


def test_a_golden_file_is_what_onnx_tools_read() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    golden = Golden("any", {"x": array}, {"y": array}, {"y": array.astype(np.float64)})
    spec = TensorSpec("x", "float32", (-1, 3)), TensorSpec("y", "float32", (-1, 3))
    files = encode_goldens([golden], spec[:1], spec[1:])
    proto = onnx.TensorProto.FromString(files["golden/test_data_set_0/output_0.pb"])
    assert proto.name == "y"
    assert np.array_equal(onnx.numpy_helper.to_array(proto), array)


def test_arrays_that_are_read_cannot_be_changed() -> None:
    found = load_tensors(dump_tensors({"x": np.zeros(3)}, "file"), "file")["x"]
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
