"""Outputs as blobs, for both doors."""

from __future__ import annotations

from collections.abc import Sequence

from service.protocol.classification import classify
from service.protocol.requests import Wanted
from service.protocol.tensors import Array, pack_texts


def to_blob(wanted: Wanted, array: Array) -> tuple[str, Sequence[int], bytes]:
    """Datatype, shape and little-endian bytes of an output. Raises BadRequest for NaN that is to be ranked."""
    if wanted.classes:
        texts, shape = classify(array, wanted.port, wanted.classes, wanted.labels)
        return "BYTES", shape, pack_texts(texts)
    return wanted.port.datatype, array.shape, array.astype(wanted.port.dtype, copy=False).tobytes()
