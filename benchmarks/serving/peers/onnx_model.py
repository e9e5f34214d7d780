"""The network in every peer's process: ONNX Runtime on one thread, as bnfold runs it, and a count of its calls.

The peers have environments of their own, where neither bnfold nor anything of this repository but this folder is.
"""

import mmap
import os
import struct
from pathlib import Path

import numpy as np
import onnxruntime

_PAIR = struct.Struct("<QQ")  # calls, rows


class OnnxModel:
    """model.onnx of a bundle. The counts lie in a file that the benchmark reads, whichever process runs the model."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path, providers = os.environ["SERVE_PEERS_MODEL"], ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)  # noqa: TID251  a peer's own
        self._input = self._session.get_inputs()[0].name
        self._names = [self._session.get_outputs()[0].name]
        with Path(os.environ["SERVE_PEERS_COUNTS"]).open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), _PAIR.size)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, 3, 32, 32) float32 to (N, 10)."""
        calls, rows = _PAIR.unpack_from(self._counts)
        _PAIR.pack_into(self._counts, 0, calls + 1, rows + len(x))
        return self._session.run(self._names, {self._input: x})[0]


def port() -> int:
    """Where to listen, on the loopback."""
    return int(os.environ["SERVE_PEERS_PORT"])


def max_batch() -> int:
    """Rows that may be put together; 1 where batching is off."""
    return int(os.environ["SERVE_PEERS_MAX_BATCH"])
