"""Golden vectors and safetensors files of a bundle: inputs, the outputs of the folded model, and the float64 truth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnfold.errors import BundleError
from bnfold.manifest import TRUTH, Manifest, TensorSpec

if TYPE_CHECKING:
    import onnx

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_MEASURED = {"mean", "variance", "eps"}
_COMPOSED = {"scale", "shift"}
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Golden:
    """One golden vector: a batch and what must come out.

    name: `test_data_set_N` in a bundle; the writer numbers by position. inputs, outputs: by tensor name, in the
    dtypes of the specs; outputs are those of the folded model. truth: float64, by output name, same shapes. labels: (N,) int64 or None.
    """

    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    truth: dict[str, Array]
    labels: Array | None = None


def hash_tensor(array: Array) -> str:
    """The sha256 of a tensor: of `"<dtype> <shape as a,b,c>\\n"` and its little-endian bytes in C order."""
    plain = np.asarray(array, order="C")
    head = f"{plain.dtype.name} {','.join(map(str, plain.shape))}\n".encode()
    return hashlib.sha256(head + _little(plain).tobytes()).hexdigest()


def encode_goldens(
    goldens: Sequence[Golden], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> dict[str, bytes]:
    """The files of golden/ by path. Raises BundleError when a golden does not fit the specs."""
    files: dict[str, bytes] = {}
    truths: dict[str, Array] = {}
    if not goldens:
        raise BundleError(
            "the bundle has no golden vector; expected at least one; give data to build it with"
        )
    for at, golden in enumerate(goldens):
        name = f"test_data_set_{at}"
        for side, specs, arrays in (("input", inputs, golden.inputs), ("output", outputs, golden.outputs)):
            _check_names(name, arrays, [spec.name for spec in specs])
            for position, spec in enumerate(specs):
                array = _checked(arrays[spec.name], spec, name)
                files[f"golden/{name}/{side}_{position}.pb"] = _to_proto(spec.name, array).SerializeToString(
                    deterministic=True
                )
        _check_names(f"{name}, truth,", golden.truth, [spec.name for spec in outputs])
        truths |= {f"{name}/{output}": array for output, array in golden.truth.items()}
        if golden.labels is not None:
            truths[f"{name}/labels"] = golden.labels
        _check_truth(name, golden)
    files[TRUTH] = dump_tensors(truths, TRUTH)
    return files


def decode_goldens(read: Callable[[str], bytes], manifest: Manifest) -> tuple[Golden, ...]:
    """Read every golden of a manifest; `read` gives a file's bytes. Raises BundleError on what does not fit it."""
    listed = {path for path in manifest.files if path.startswith("golden/") and path != TRUTH}
    count = len({path.split("/")[1] for path in listed})
    truths = load_tensors(read(TRUTH), TRUTH)
    goldens = []
    for at in range(count):
        name = f"test_data_set_{at}"
        sides = []
        for side, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
            arrays: dict[str, Array] = {}
            for position, spec in enumerate(specs):
                path = f"golden/{name}/{side}_{position}.pb"
                if path not in listed:
                    raise _bad(
                        "golden", f"has no {path[7:]}", "one file an input and output, sets counted from 0"
                    )
                listed.remove(path)
                arrays[spec.name] = _from_proto(read(path), spec, path)
            sides.append(arrays)
        labels = truths.pop(f"{name}/labels", None)
        truth = {spec.name: truths.pop(f"{name}/{spec.name}", None) for spec in manifest.outputs}
        golden = Golden(name, sides[0], sides[1], {k: v for k, v in truth.items() if v is not None}, labels)
        _check_names(f"{TRUTH}, {name},", golden.truth, [spec.name for spec in manifest.outputs])
        _check_truth(name, golden)
        goldens.append(golden)
    left = [*sorted(listed), *sorted(truths)]
    if left or not goldens:
        raise _bad(
            "golden",
            f"has {left[0]!r:.120} too many" if left else "is empty",
            "whole test data sets, at least one",
        )
    return tuple(goldens)


def dump_tensors(tensors: Mapping[str, Array], what: str) -> bytes:
    """Write a safetensors file: the same tensors always give the same bytes. Raises BundleError on a foreign dtype."""
    import safetensors.numpy

    # The library takes the memory as it lies, so that a transposed or strided array would be written wrong.
    plain = {name: _little(np.asarray(array, order="C")) for name, array in sorted(tensors.items())}
    for name, array in plain.items():
        if array.dtype.name not in _SAFETENSORS.values():
            raise BundleError(
                f"{what}, tensor {name!r:.120}, has dtype {array.dtype}; expected numbers; convert it"
            )
    return safetensors.numpy.save(plain)


def load_tensors(data: bytes, what: str) -> dict[str, Array]:
    """Read a safetensors file; the arrays are read-only views. Raises BundleError when it is none."""
    import safetensors

    try:
        entries = safetensors.deserialize(data)
    except safetensors.SafetensorError as problem:
        raise _bad(what, f"is no safetensors file ({problem})", "one with plain number tensors") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS:
            raise _bad(f"{what}, tensor {name!r:.120},", f"has dtype {entry['dtype']}", "a plain number type")
        tensors[name] = np.frombuffer(bytes(entry["data"]), _dtype(_SAFETENSORS[entry["dtype"]])).reshape(
            entry["shape"]
        )
    return tensors


def check_statistics(tensors: Mapping[str, Array], what: str) -> dict[str, dict[str, Array]]:
    """Group `<norm>.<quantity>` by norm. Raises BundleError for a norm that has neither statistics nor scale and shift."""
    norms: dict[str, dict[str, Array]] = {}
    for key, array in tensors.items():
        norm, dot, quantity = key.rpartition(".")
        if not norm or not dot:
            raise _bad(what, f"has the key {key!r:.120}", "<norm>.mean, .variance, .eps and so on")
        norms.setdefault(norm, {})[quantity] = array
    for norm, found in norms.items():
        if set(found) != _COMPOSED and not _MEASURED <= set(found) <= _MEASURED | {"gamma", "beta"}:
            raise _bad(
                f"{what}, norm {norm!r:.120},",
                f"has {', '.join(sorted(found))}",
                "mean, variance, eps (gamma, beta), or scale and shift",
            )
        if "eps" in found and (found["eps"].dtype != np.float64 or found["eps"].shape != ()):
            raise _bad(
                f"{what}, norm {norm!r:.120},",
                f"has eps of {found['eps'].dtype} {found['eps'].shape}",
                "a float64 scalar",
            )
    return norms


def _check_names(what: str, arrays: Mapping[str, Array], names: Sequence[str]) -> None:
    if set(arrays) != set(names):
        raise _bad(what, f"has tensors {sorted(arrays)}"[:200], f"{sorted(names)}"[:200])


def _checked(array: Array, spec: TensorSpec, what: str) -> Array:
    plain = np.asarray(array, order="C")
    fits = len(plain.shape) == len(spec.shape) and all(
        size in (found, -1) for found, size in zip(plain.shape, spec.shape, strict=True)
    )
    if plain.dtype.name != spec.dtype or not fits:
        raise _bad(
            f"{what}, tensor {spec.name!r:.120},",
            f"has {plain.dtype} {list(plain.shape)}"[:200],
            f"{spec.dtype} {list(spec.shape)}",
        )
    return plain


def _check_truth(name: str, golden: Golden) -> None:
    for output, array in golden.truth.items():
        wanted = golden.outputs[output].shape
        if array.dtype != np.float64 or array.shape != wanted:
            raise _bad(
                f"{name}, truth of {output!r:.120},",
                f"has {array.dtype} {list(array.shape)}"[:200],
                f"float64 {list(wanted)}",
            )
    if golden.labels is not None:
        rows = next(iter(golden.outputs.values())).shape[:1]
        if golden.labels.dtype != np.int64 or golden.labels.shape != rows:
            raise _bad(
                f"{name}, labels,",
                f"has {golden.labels.dtype} {list(golden.labels.shape)}"[:200],
                f"int64 {list(rows)}",
            )


def _to_proto(name: str, array: Array) -> onnx.TensorProto:
    import onnx

    proto = onnx.TensorProto(name=name, dims=array.shape)
    proto.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    proto.raw_data = _little(array).tobytes()
    return proto


def _from_proto(data: bytes, spec: TensorSpec, what: str) -> Array:
    """The array of a TensorProto that the writer wrote: raw data alone, as many bytes as the shape says."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.TensorProto.FromString(data)
    except DecodeError:
        raise _bad(what, "is no TensorProto", "a golden tensor in ONNX layout") from None
    plain = onnx.TensorProto(
        name=proto.name, dims=proto.dims, data_type=proto.data_type, raw_data=proto.raw_data
    )
    dtype = _dtype(spec.dtype)
    wanted = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    if plain != proto or (proto.name, proto.data_type) != (spec.name, wanted):
        raise _bad(
            what, f"is not the {spec.dtype} tensor {spec.name!r:.120} as raw data", "what the manifest says"
        )
    elements = 1
    for size in proto.dims:
        elements *= size
    if (
        len(proto.dims) != len(spec.shape)
        or min(proto.dims, default=0) < 0
        or elements * dtype.itemsize != len(proto.raw_data)
    ):
        raise _bad(
            what,
            f"has {len(proto.raw_data)} bytes for the shape {list(proto.dims)[:32]}",
            f"a whole {spec.dtype} {list(spec.shape)}",
        )
    return _checked(np.frombuffer(proto.raw_data, dtype).reshape(tuple(proto.dims)), spec, what)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder("<")


def _little(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"), copy=False) if array.dtype.isbuiltin != 2 else array


def _bad(what: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{what} {found}; expected {expected}; build the bundle again")
