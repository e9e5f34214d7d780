"""ONNX Runtime on CUDA: bound inputs and outputs, host memory that the card reads by itself, few sizes of batches.

Sizes: the choice of a convolution is searched for each shape anew, so batches are padded with rows of zeros to the next
power of two; the load runs each size once. Copies: an input goes into pinned host memory, from which a copy to the card
needs no second copy in the driver.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.engine.runtimes import Array, Session

_logger = logging.getLogger(__name__)
_CUDA = "CUDAExecutionProvider"


class BoundRuntime:
    """A session whose inputs and outputs are bound, each thread with buffers of its own.

    device: "cuda", or "cpu", on which the same class can be tried. largest: up to so many rows batches are padded;
    0 where the model has no batch. pinned: whether the host side is memory that the card can read.
    """

    def __init__(self, session: Session, outputs: Sequence[str], device: str, largest: int) -> None:
        self._session: Any = session
        self._outputs = list(outputs)
        self._device = device
        self._largest = largest
        self._memory = _pinned_memory() if device == "cuda" else None
        self._local = threading.local()
        self.pinned = self._memory is not None
        self.provider: str = session.get_providers()[0]
        self.input_names = frozenset(entry.name for entry in session.get_inputs())

    def run(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Run the graph; see Runtime.run."""
        if self._session is None:
            raise RuntimeError("the session is closed")
        size = pad_to(rows, self._largest)
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, self._place(name, array, rows, size))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        found: list[Array] = binding.copy_outputs_to_cpu()
        if size != rows:
            found = [array[:rows] for array in found]
        if self._device == "cpu":  # there they lie in memory of the binding, which goes with it
            found = [array.copy() for array in found]
        return dict(zip(self._outputs, found, strict=True))

    def close(self) -> None:
        """Let the session and its buffers go."""
        self._session = None
        self._local = threading.local()

    def _place(self, name: str, array: Array, rows: int, size: int) -> Any:
        """An input where the session reads it, padded to `size` rows."""
        import onnxruntime as ort

        shape = (size, *array.shape[1:]) if size != rows else array.shape
        host = self._host(name, shape, array.dtype)
        target = host.numpy() if self.pinned else host
        if size != rows:
            target[:rows] = array
            target[rows:] = np.zeros((), array.dtype)
        else:
            target[...] = array
        return host if self.pinned else ort.OrtValue.ortvalue_from_numpy(target, self._device, 0)

    def _host(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """The buffer of a shape that the thread has, kept for the sizes that come again."""
        import onnxruntime as ort

        kept: dict[Any, Any] = self._local.__dict__.setdefault("buffers", {})
        key = (name, shape, dtype)
        buffer = kept.get(key)
        if buffer is None:
            if self._memory is None:
                buffer = np.empty(shape, dtype)
            else:
                buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=self._memory)
            if not self._largest or shape[0] <= self._largest:
                if len(kept) >= _MOST_BUFFERS:  # shapes that strangers choose must not fill the memory
                    kept.clear()
                kept[key] = buffer
        return buffer


_MOST_BUFFERS = 32


def pad_to(rows: int, largest: int) -> int:
    """The size that a batch of so many rows is run at: the next power of two, and at most `largest`.

    Above `largest` it is run as it is.
    """
    if rows < 1 or rows > largest:
        return rows
    size: int = 1 << (rows - 1).bit_length()
    return min(size, largest)


def padded_sizes(largest: int) -> list[int]:
    """Every size that `pad_to` gives."""
    return sorted({pad_to(rows, largest) for rows in range(1, largest + 1)})


def provider_options(search: str) -> dict[str, str]:
    """The options of ONNX Runtime's CUDA provider.

    search: exhaustive, heuristic or default, how cuDNN's convolutions are chosen. TF32 is off: it keeps 10 bits of the
    fraction, and the load gate proves the model without it.
    """
    return {"use_tf32": "0", "cudnn_conv_algo_search": search.upper()}


def _pinned_memory() -> Any:
    """Where pinned host memory comes from; None where this runtime does not offer it."""
    import onnxruntime as ort

    try:
        for device in ort.get_ep_devices():
            if device.ep_name == _CUDA:
                return device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    except Exception as problem:  # ONNX Runtime raises its own types, generated at run time
        _logger.warning("no pinned host memory: %s", problem)
    return None
