"""Golden vectors: batches in ONNX's layout for test data, what the folded model gave, and the float64 truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bnfold.bundle.manifest import TRUTH, Manifest, TensorSpec
from bnfold.bundle.tensorfile import Array, dump_tensors, find_dtype, little_endian, load_tensors
from bnfold.errors import BundleError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, eq=False)
class Golden:
    """One golden vector: a batch and what must come out of it.

    name: `test_data_set_N`; the writer numbers by position. inputs, outputs: by tensor name, in the dtypes of the
    specs; the outputs are those of the folded model. truth: by output name, float64, of the same shapes. labels:
    (N,) int64, or None where they are not known.
    """

    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    truth: dict[str, Array]
    labels: Array | None = None


def encode_goldens(
    goldens: Sequence[Golden], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, bytes]:
    """The files under golden/ by path. Raises BundleError when a golden does not fit the specs."""
    files: dict[str, bytes] = {}
    truths: dict[str, Array] = {}
    if not goldens:
        raise _bad("golden", "has no test data set", "at least one")
    for at, golden in enumerate(goldens):
        name = f"test_data_set_{at}"
        for side, specs, arrays in (("input", inputs, golden.inputs), ("output", outputs, golden.outputs)):
            _check_names(f"{name}, {side}s,", arrays, specs)
            for position, spec in enumerate(specs):
                _check_array(arrays[spec.name], spec, name)
                proto = _to_proto(spec.name, arrays[spec.name])
                files[_path(name, side, position)] = proto.SerializeToString(deterministic=True)
        _check_truth(golden, name, outputs)
        truths |= {f"{name}/{output}": array for output, array in golden.truth.items()}
        if golden.labels is not None:
            truths[f"{name}/labels"] = golden.labels
    files[TRUTH] = dump_tensors(truths, TRUTH)
    return files


def decode_goldens(read: Callable[[str], bytes], manifest: Manifest) -> tuple[Golden, ...]:
    """Read every golden of a manifest; `read` gives a file's bytes. Raises BundleError on what does not fit it."""
    listed = {path for path in manifest.files if path.startswith("golden/") and path != TRUTH}
    truths = load_tensors(read(TRUTH), TRUTH)
    goldens = []
    for at in range(len({path.split("/")[1] for path in listed})):
        name = f"test_data_set_{at}"
        sides: dict[str, dict[str, Array]] = {"input": {}, "output": {}}
        for side, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
            for position, spec in enumerate(specs):
                path = _path(name, side, position)
                if path not in listed:
                    raise _bad(path, "is missing", "a file for each input and output, sets counted from 0")
                listed.remove(path)
                sides[side][spec.name] = _from_proto(read(path), spec, path)
        labels = truths.pop(f"{name}/labels", None)
        keys = {spec.name: f"{name}/{spec.name}" for spec in manifest.outputs}
        truth = {output: truths.pop(key) for output, key in keys.items() if key in truths}
        goldens.append(Golden(name, sides["input"], sides["output"], truth, labels))
        _check_truth(goldens[-1], f"{TRUTH}, {name}", manifest.outputs)
    left = [*sorted(listed), *sorted(truths)]
    if left or not goldens:
        found = f"has {left[0]!r:.120}, which belongs to no test data set" if left else "has no test data set"
        raise _bad("golden", found, "whole sets, at least one")
    return tuple(goldens)


def _path(name: str, side: str, position: int) -> str:
    return f"golden/{name}/{side}_{position}.pb"


def _check_names(what: str, arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    wanted = sorted(spec.name for spec in specs)
    if sorted(arrays) != wanted:
        raise _bad(what, f"has the tensors {sorted(arrays)!r:.200}", f"{wanted!r:.200}")


def _check_array(array: Array, spec: TensorSpec, what: str) -> None:
    fits = len(array.shape) == len(spec.shape) and all(
        stated in (found, -1) for found, stated in zip(array.shape, spec.shape, strict=True)
    )
    if array.dtype.name != spec.dtype or not fits:
        found = f"has {array.dtype} {list(array.shape)!r:.200}"
        raise _bad(f"{what}, tensor {spec.name!r:.120},", found, f"{spec.dtype} {list(spec.shape)}")


def _check_truth(golden: Golden, what: str, outputs: Sequence[TensorSpec]) -> None:
    _check_names(f"{what}, truth,", golden.truth, outputs)
    for output, array in golden.truth.items():
        _check_array(array, TensorSpec(output, "float64", golden.outputs[output].shape), f"{what}, truth")
    if golden.labels is not None:
        rows = golden.outputs[outputs[0].name].shape[:1]
        _check_array(golden.labels, TensorSpec("labels", "int64", rows), what)


def _to_proto(name: str, array: Array) -> onnx.TensorProto:
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.TensorProto(name=name, dims=array.shape, data_type=kind, raw_data=little_endian(array).tobytes())


def _from_proto(data: bytes, spec: TensorSpec, what: str) -> Array:
    """The array of a TensorProto as `_to_proto` writes it: raw data alone, as many bytes as the shape says."""
    import onnx
    from google.protobuf.message import DecodeError

    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise _bad(what, "is no TensorProto", "a tensor in ONNX's layout for test data") from None
    dtype = find_dtype(spec.dtype)
    plain = onnx.TensorProto(
        name=spec.name,
        dims=proto.dims,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(dtype),
        raw_data=proto.raw_data,
    )
    if plain != proto:
        found = f"is {proto.name!r:.120} of ONNX type {proto.data_type}, or has more than raw data"
        raise _bad(what, found, f"{spec.name!r:.120} of type {spec.dtype} as raw data alone")
    sizes = tuple(proto.dims[: len(spec.shape) + 1])
    if (
        len(sizes) != len(spec.shape)
        or min(sizes, default=0) < 0
        or math.prod(sizes) * dtype.itemsize != len(proto.raw_data)
    ):
        found = f"has {len(proto.raw_data)} bytes for the shape {list(sizes)}"
        raise _bad(what, found, f"whole values of {spec.dtype} {list(spec.shape)}")
    array = np.frombuffer(proto.raw_data, dtype).reshape(sizes)
    _check_array(array, spec, what)
    return array


def _bad(what: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{what} {found}; expected {expected}; build the bundle again")
