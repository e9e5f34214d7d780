"""Datatypes of the Open Inference Protocol and of numpy.

BYTES is missing: a bundle has number tensors only, so that a BYTES tensor can fit no model. BF16 is missing too: the
runtime's Python interface takes no such arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

DType = np.dtype[Any]

# Open Inference Protocol, "Tensor Data Types"; blobs are little-endian (extension_binary_data).
_NAMES = {
    "BOOL": "bool",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
    "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip

WIRE: dict[str, DType] = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in _NAMES.items()}
DATATYPES: dict[str, str] = {dtype: name for name, dtype in _NAMES.items()}

BINARY_ONLY = frozenset({"FP16"})  # JSON has no half precision; the protocol sends it as a blob alone
