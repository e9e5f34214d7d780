"""Named tensors in a safetensors file, and the hash of one tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from bnfold.errors import BundleError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_MEASURED = {"mean", "variance", "eps"}
_COMPOSED = {"scale", "shift"}


def hash_tensor(array: Array) -> str:
    """The sha256 of a tensor: of its dtype, a space, its sizes with commas, a line feed, and its bytes.

    The bytes are little-endian in C order, so that `float32 3,2` and `float32 2,3` of the same bytes differ.
    """
    plain = little_endian(array)
    head = f"{plain.dtype.name} {','.join(map(str, plain.shape))}\n".encode()
    return hashlib.sha256(head + plain.tobytes()).hexdigest()


def little_endian(array: Array) -> Array:
    """The array in C order and little-endian; itself where it is so already."""
    plain = np.asarray(array, order="C")
    return plain if plain.dtype.name == "bfloat16" else plain.astype(plain.dtype.newbyteorder("<"), copy=False)


def find_dtype(name: str) -> np.dtype[Any]:
    """The little-endian dtype that numpy or, for bfloat16, ml_dtypes has under a name."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name).newbyteorder("<")


def dump_tensors(tensors: Mapping[str, Array], what: str) -> bytes:
    """Write a safetensors file; equal tensors give equal bytes. Raises BundleError on a dtype that is no number."""
    import safetensors.numpy

    # The library copies the memory as it lies: a transposed or strided array would be written wrong, silently.
    plain = {name: little_endian(array) for name, array in sorted(tensors.items())}
    for name, array in plain.items():
        if array.dtype.name not in _DTYPES.values():
            raise _bad(f"{what}, tensor {name!r:.120},", f"has dtype {array.dtype}", "numbers of a plain type")
    return bytes(safetensors.numpy.save(plain))


def load_tensors(data: bytes, what: str) -> dict[str, Array]:
    """Read a safetensors file; the arrays are read-only. Raises BundleError when it is none."""
    import safetensors

    try:
        entries: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as problem:
        raise _bad(what, f"is no safetensors file ({problem})", "one") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise _bad(f"{what}, tensor {name!r:.120},", f"has dtype {entry['dtype']}", "numbers of a plain type")
        flat = np.frombuffer(bytes(entry["data"]), find_dtype(_DTYPES[entry["dtype"]]))
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def group_statistics(tensors: Mapping[str, Array], what: str) -> dict[str, dict[str, Array]]:
    """Group `<norm>.<quantity>` by norm.

    Raises BundleError unless each norm has mean, variance and eps (a float64 scalar), perhaps gamma and beta, or else
    scale and shift, all of them floats.
    """
    norms: dict[str, dict[str, Array]] = {}
    for key, array in tensors.items():
        norm, _, quantity = key.rpartition(".")
        if not norm:
            raise _bad(what, f"has the key {key!r:.120}", "<norm>.mean and the like")
        norms.setdefault(norm, {})[quantity] = array
    for norm, found in norms.items():
        name = f"{what}, norm {norm!r:.120},"
        if set(found) != _COMPOSED and not _MEASURED <= set(found) <= _MEASURED | {"gamma", "beta"}:
            wanted = "mean, variance, eps and perhaps gamma and beta, or scale and shift"
            raise _bad(name, f"has {', '.join(sorted(found))!r:.200}", wanted)
        for quantity, array in found.items():
            scalar = quantity != "eps" or (array.shape == () and array.dtype == np.float64)
            if array.dtype.name not in _FLOATS or not scalar:
                wanted = "a float64 scalar" if quantity == "eps" else "floats"
                raise _bad(name, f"has {quantity} of {array.dtype} {list(array.shape)}", wanted)
    return norms


def _bad(what: str, found: str, expected: str) -> BundleError:
    return BundleError(f"{what} {found}; expected {expected}; build the bundle again")
