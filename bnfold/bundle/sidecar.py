"""Models above the 2 GB of a protobuf message: their tensors go to one file beside them, model.onnx.data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from bnfold.bundle.manifest import SIDECAR
from bnfold.errors import BundleError

if TYPE_CHECKING:
    import onnx

INLINE_BYTES = 2_000_000_000  # a message ends below 2 GiB; the rest is room for the graph
_SMALL = 1024  # shapes, scalars and short vectors stay in the graph
_PAGE = 4096  # ONNX Runtime maps external data by pages


def encode_models(
    folder: Path, models: Mapping[str, onnx.ModelProto], write: Callable[[Path, bytes], str]
) -> dict[str, str]:
    """Write models into a folder, equal models as equal bytes; gives sha256 by file name.

    Where the tensors of a model exceed INLINE_BYTES they go to the sidecar, which the models share: a tensor that two
    of them have is stored once. The models given are not changed. Raises BundleError for a model that stays too large.
    """
    large = [name for name, model in models.items() if _tensor_bytes(model) > INLINE_BYTES]
    hashes = {}
    moved = {name: _copy(models[name]) for name in large}
    if large:
        with (folder / SIDECAR).open("xb") as stream:
            hashes[SIDECAR] = _move_out(moved, stream)
            stream.flush()
            os.fsync(stream.fileno())
    for name, model in models.items():
        hashes[name] = write(folder / name, _serialise(moved.get(name, model), name))
    return hashes


def _serialise(model: onnx.ModelProto, name: str) -> bytes:
    from google.protobuf.message import EncodeError

    try:
        data: bytes = model.SerializeToString(deterministic=True)
        return data
    except (EncodeError, ValueError):
        raise BundleError(
            f"{name} does not fit a protobuf message of 2 GiB without its initialisers; expected a smaller graph;"
            " keep large constants as initialisers with raw data"
        ) from None


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _tensor_bytes(model: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _move_out(models: Mapping[str, onnx.ModelProto], stream: BinaryIO) -> str:
    """Move the large raw tensors of models into the stream, each content once; gives the sha256 of it."""
    import onnx

    digest = hashlib.sha256()
    places: dict[bytes, int] = {}
    end = 0
    for model in models.values():
        for tensor in model.graph.initializer:
            if len(tensor.raw_data) <= _SMALL:
                continue
            key = hashlib.sha256(tensor.raw_data).digest()
            if key not in places:
                padding = bytes(-end % _PAGE)
                for block in (padding, tensor.raw_data):
                    stream.write(block)
                    digest.update(block)
                places[key] = end + len(padding)
                end = places[key] + len(tensor.raw_data)
            entries = {"location": SIDECAR, "offset": str(places[key]), "length": str(len(tensor.raw_data))}
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for field, value in entries.items():
                tensor.external_data.add(key=field, value=value)
    return digest.hexdigest()
