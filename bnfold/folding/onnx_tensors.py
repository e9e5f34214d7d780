"""Large tensors that are read when they are used and let go when they are not: of a ModelProto, or of a mapped file."""

from __future__ import annotations

import math
import mmap

import numpy as np
import onnx_ir as ir


class _Held:
    """A tensor of a ModelProto. Asking a message for its data copies them, so the first reading is kept."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self.tensor = tensor
        self._read: ir.TensorProtocol | None = None

    def __call__(self) -> ir.TensorProtocol:
        if self._read is None:
            self._read = ir.Tensor(self.tensor.numpy(), dtype=self.tensor.dtype, name=self.tensor.name)
        return self._read

    def let_go(self) -> None:
        self._read = None


class _Mapped:
    """A tensor that lies in a mapped file, or in the bytes of one."""

    def __init__(self, data: mmap.mmap | bytes, offset: int, dtype: ir.DataType, sizes: tuple[int, ...]) -> None:
        self._data, self._offset, self._dtype, self._sizes = data, offset, dtype, sizes

    def __call__(self) -> ir.TensorProtocol:
        count, kind = math.prod(self._sizes), self._dtype.numpy().newbyteorder("<")
        return ir.Tensor(np.frombuffer(self._data, kind, count, self._offset).reshape(self._sizes), dtype=self._dtype)

    def let_go(self) -> None:
        """Give the pages back to the system; they are read from the file again when they are used again."""
        if isinstance(self._data, bytes) or not hasattr(mmap, "MADV_DONTNEED"):  # Windows has none
            return
        start = self._offset // mmap.PAGESIZE * mmap.PAGESIZE
        length = self._offset + math.prod(self._sizes) * self._dtype.numpy().itemsize - start
        self._data.madvise(mmap.MADV_DONTNEED, start, length)


def held(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    """The tensor, of which the first reading is kept."""
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(_Held(tensor), tensor.dtype, shape, name=tensor.name, doc_string=tensor.doc_string)


def mapped(data: mmap.mmap | bytes, offset: int, dtype: ir.DataType, shape: ir.Shape, name: str) -> ir.LazyTensor:
    """The tensor that lies in a mapped file or in bytes, not empty, of a type with whole bytes."""
    return ir.LazyTensor(_Mapped(data, offset, dtype, tuple(shape.numpy())), dtype, shape, name=name)


def let_go(tensor: ir.TensorProtocol | None) -> None:
    """Drop what is in memory of a tensor; it is read again when it is used again."""
    if isinstance(tensor, ir.LazyTensor) and isinstance(tensor.raw, _Held | _Mapped):
        tensor.raw.let_go()


def stored(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The tensor under one that is held, which can be written without being read; any other as it is."""
    return tensor.raw.tensor if isinstance(tensor, ir.LazyTensor) and isinstance(tensor.raw, _Held) else tensor
